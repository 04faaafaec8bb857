"""Laws of tokenizers: bytes and trained vocabularies lose nothing."""

import hashlib
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import sentencepiece
from hypothesis import strategies

from block_recurrent.config import DataConfig
from block_recurrent.data import (
    ByteTokenizer,
    DataError,
    Document,
    SentencePieceTokenizer,
    make_tokenizer,
)
from block_recurrent.data.tokenized import lost_bytes
from block_recurrent.lab.corpora.train_vocab import train_vocabulary

TEXTS = [
    "",
    "plain\r\n\ttext",
    "né à 水 \U0001f600",
    "\0 and \0",
    "\ufeff\ufffd",
    "  two  spaces \n\n\n ",
    "\u2581 marks \u2581\u2581",
    "<pad></s><unk><0x0A>",
]
PROSE = "The state of a layer goes in and comes out.\n    def f(x):\n        return x\n" * 40
LETTERS = "".join(map(chr, range(33, 127))) + PROSE + Path(__file__).read_text()


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory):
    """The file of a vocabulary trained on a few sentences."""
    path = tmp_path_factory.mktemp("vocabulary") / "small.model"
    path.write_bytes(train_vocabulary([Document("a", "", LETTERS)], 440))
    return path


@pytest.fixture
def tokenizers(vocabulary):
    return [ByteTokenizer(), SentencePieceTokenizer(vocabulary)]


@pytest.mark.parametrize("text", TEXTS)
def test_text_comes_back(text, tokenizers):
    for tokenizer in tokenizers:
        tokens = tokenizer.encode(text)
        assert tokens.dtype == np.int32 and tokens.ndim == 1
        assert tokenizer.decode(tokens) == tokenizer.decode(tokens.tolist()) == text
        assert not tokens.size or 0 <= tokens.min() <= tokens.max() < tokenizer.vocab_size
        assert 0 <= tokenizer.beginning_of_document < tokenizer.vocab_size


@hypothesis.settings(max_examples=150, deadline=None)
@hypothesis.given(strategies.text(strategies.characters(exclude_categories=["Cs"])))
def test_any_text_comes_back(vocabulary, text):
    tokenizer = SentencePieceTokenizer(vocabulary)
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.fixture(scope="session")
def with_prefix(tmp_path_factory):
    """The file of a vocabulary that puts a space before a text, as most of other people's do."""
    path = tmp_path_factory.mktemp("vocabulary") / "prefix"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LETTERS.split("\n")),
        model_prefix=str(path),
        vocab_size=440,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        byte_fallback=True,
        minloglevel=2,
    )
    return path.with_suffix(".model")


@pytest.mark.parametrize("text", [*TEXTS, "under\u2581score", "a\u2581 b \u2581c", "\ue000\u2581x"])
def test_text_comes_back_of_a_vocabulary_that_puts_a_space_before_it(text, with_prefix):
    tokenizer = SentencePieceTokenizer(with_prefix)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_what_a_vocabulary_loses_is_counted(tmp_path):
    """Without bytes for other text, and with white space that is joined."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(PROSE.split("\n")),
        model_prefix=str(tmp_path / "lossy"),
        vocab_size=30,
        minloglevel=2,
    )
    tokenizer = SentencePieceTokenizer(tmp_path / "lossy.model")
    for text, lost in {"the state": 0, "the\nstate": 1, "the  state": 1, "the {state}": 2}.items():
        assert lost_bytes(text, tokenizer.encode(text), tokenizer) == lost, text
    assert lost_bytes("\n", ByteTokenizer().encode("\n"), ByteTokenizer()) == 0


def test_a_byte_is_a_token():
    text = "".join(map(chr, range(0x800)))
    tokens = ByteTokenizer().encode(text)
    assert tokens.tolist() == list(text.encode())


def test_cut_character_is_replaced():
    tokenizer = ByteTokenizer()
    assert tokenizer.decode(tokenizer.encode("aé")[:-1]) == "a\ufffd"


def test_id_outside_the_vocabulary_is_an_error(tokenizers):
    for tokenizer in tokenizers:
        for token in (-1, tokenizer.vocab_size):
            with pytest.raises(DataError, match=f"token id {token} is not a"):
                tokenizer.decode([65, token])


def test_pieces_are_learnt_and_white_space_is_kept(vocabulary):
    tokenizer = SentencePieceTokenizer(vocabulary)
    assert len(tokenizer.encode(PROSE)) < 0.6 * len(PROSE)
    assert tokenizer.vocab_size == 440
    newline = tokenizer.encode("\n")
    assert tokenizer.encode("a\n\nb").tolist().count(newline[0]) == 2


def test_spellings_of_a_texts_pieces_are_the_text(vocabulary):
    pieces = SentencePieceTokenizer(vocabulary)
    for tokenizer in (ByteTokenizer(), pieces):
        spellings = tokenizer.spellings()
        assert len(spellings) == tokenizer.vocab_size
        for text in [*TEXTS, PROSE]:
            spelled = b"".join(spellings[token] for token in tokenizer.encode(text))
            assert spelled.decode() == text
    assert pieces.spellings()[pieces.beginning_of_document] == b""


def test_training_depends_on_the_documents_alone():
    documents = [Document(str(i), "", PROSE[: 500 * i] + LETTERS) for i in range(1, 5)]
    first = train_vocabulary(iter(documents), 420)
    assert first == train_vocabulary(documents, 420)
    assert first != train_vocabulary(documents[1:], 420)
    assert first != train_vocabulary(documents, 420, share=0.3)


def test_text_that_does_not_suffice_is_an_error():
    with pytest.raises(DataError, match="no vocabulary of 32,000 pieces.* <= "):
        train_vocabulary([Document("a", "", LETTERS)], 32_000)
    with pytest.raises(DataError, match="no vocabulary of 440 pieces"):
        train_vocabulary([], 440)


def test_tokenizer_is_made_by_its_name(vocabulary):
    assert make_tokenizer(DataConfig()).name == "bytes"
    digest = hashlib.sha256(vocabulary.read_bytes()).hexdigest()
    config = DataConfig(tokenizer="sentencepiece", vocab_path=str(vocabulary), vocab_sha256=digest)
    made = make_tokenizer(config)
    assert made.name == f"sentencepiece:{digest}"
    with pytest.raises(ValueError, match="'byte'.*did you mean 'bytes'"):
        DataConfig(tokenizer="byte")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="needs a vocab_path"):
        DataConfig(tokenizer="sentencepiece")


def test_vocabulary_that_is_not_the_one_meant_is_an_error(vocabulary, tmp_path):
    with pytest.raises(DataError, match=f"{vocabulary} has SHA-256 .* asks for {'0' * 64}"):
        SentencePieceTokenizer(vocabulary, "0" * 64)
    with pytest.raises(DataError, match=r"missing\.model cannot be read: No such file"):
        SentencePieceTokenizer(tmp_path / "missing.model")
    for content in (b"", b"no model", vocabulary.read_bytes()[:-100]):
        (tmp_path / "bad.model").write_bytes(content)
        with pytest.raises(DataError, match=r"bad\.model is not a SentencePiece vocabulary"):
            SentencePieceTokenizer(tmp_path / "bad.model")
