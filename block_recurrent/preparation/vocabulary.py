"""Training a SentencePiece vocabulary that loses no text."""

import io
from collections.abc import Iterable, Iterator

from block_recurrent.data.documents import Document
from block_recurrent.data.errors import DataError

# Unigram training adds up in as many parts as it has threads: the same number, the same result.
_THREADS = 16
_LONGEST_LINE = 2048


def train_vocabulary(
    documents: Iterable[Document], vocab_size: int, *, share: float = 1.0
) -> bytes:
    """Returns a unigram vocabulary (Kudo 2018, arXiv 1804.10959), the same for the same documents.

    White space is kept as it is, newline and tab are pieces of their own, and what no piece covers
    falls back to the bytes of UTF-8, so every text comes back from its tokens. Ids 0, 1 and 2 are
    <pad>, </s> and <unk>, as in T5's vocabulary.

    Args:
      documents: the text to learn from.
      vocab_size: number of pieces, with the 256 bytes.
      share: of the lines that are used, spread evenly over the documents, in (0, 1].

    Raises:
      DataError: if there is not enough text for so many pieces, or the size is too small.
    """
    import sentencepiece

    if not 0 < share <= 1:
        raise DataError(f"share = {share} must be above 0 and at most 1.")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_lines(documents, share),
            model_writer=model,
            model_type="unigram",
            vocab_size=vocab_size,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            allow_whitespace_only_pieces=True,
            byte_fallback=True,
            user_defined_symbols=["\n", "\t"],
            split_digits=True,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            num_threads=_THREADS,
            train_extremely_large_corpus=True,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise DataError(
            f"no vocabulary of {vocab_size:,} pieces can be trained on this text: "
            f"{str(error).rpartition(']')[2].strip() or error}"
        ) from error
    return model.getvalue()


def _lines(documents: Iterable[Document], share: float) -> Iterator[str]:
    """Yields every so many lines, long ones in pieces; NUL cannot be trained on."""
    number = 0
    for document in documents:
        for line in document.text.replace("\0", "").split("\n"):
            for begin in range(0, len(line), _LONGEST_LINE):
                number += 1
                if int(number * share) > int((number - 1) * share):
                    yield line[begin : begin + _LONGEST_LINE]
