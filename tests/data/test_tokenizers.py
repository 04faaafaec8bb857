"""Laws of tokenizers: bytes and vocabularies that know all bytes lose nothing."""

import base64
import hashlib
import io
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import sentencepiece
import tiktoken_ext.openai_public
import tokenizers
from hypothesis import strategies
from sentencepiece import sentencepiece_model_pb2
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from block_recurrent.command_line.generate import Stream
from block_recurrent.config import DataConfig
from block_recurrent.data import (
    ByteTokenizer,
    DataError,
    Document,
    HuggingFaceTokenizer,
    SentencePieceTokenizer,
    TiktokenTokenizer,
    make_tokenizer,
)
from block_recurrent.data.tokenized import lost_bytes
from block_recurrent.data.vocabularies import PATTERNS
from block_recurrent.lab.corpora.train_vocab import train_vocabulary

TEXTS = [
    "",
    "plain\r\n\ttext",
    "né à 水 \U0001f600",
    "\0 and \0",
    "\ufeff\ufffd",
    "  two  spaces \n\n\n ",
    "\u2581 marks \u2581\u2581",
    "<pad></s><unk><0x0A><|endoftext|>[CLS]",
    "e\u0301 \u200d \U0001f469\u200d\U0001f52c",
]
PROSE = "The state of a layer goes in and comes out.\n    def f(x):\n        return x\n" * 40
LETTERS = "".join(map(chr, range(33, 127))) + PROSE + Path(__file__).read_text()


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory):
    """The file of a vocabulary trained on a few sentences."""
    path = tmp_path_factory.mktemp("vocabulary") / "small.model"
    path.write_bytes(train_vocabulary([Document("a", "", LETTERS)], 440))
    return path


@pytest.fixture(scope="session")
def byte_level():
    """Byte-level pairs trained on a few sentences, with all that a tokenizer.json may add."""
    trained = tokenizers.Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    alphabet, special = pre_tokenizers.ByteLevel.alphabet(), ["<|endoftext|>", "[CLS]"]
    trainer = trainers.BpeTrainer(
        vocab_size=440, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    trained.train_from_iterator([LETTERS], trainer)
    trained.post_processor = processors.TemplateProcessing(
        "[CLS] $A", special_tokens=[("[CLS]", 1)]
    )
    trained.enable_truncation(4)
    trained.enable_padding(length=9)
    return trained


@pytest.fixture(scope="session")
def files(tmp_path_factory, vocabulary, byte_level):
    """The file of a vocabulary of each kind; that of tiktoken has the pairs of `byte_level`."""
    folder = tmp_path_factory.mktemp("vocabularies")
    found = {"sentencepiece": vocabulary}
    found |= {kind: folder / kind for kind in ("huggingface", "tiktoken")}
    byte_level.save(str(found["huggingface"]))
    pairs = HuggingFaceTokenizer(found["huggingface"]).spellings()[2:]
    write_ranks(found["tiktoken"], pairs)
    return found


def write_ranks(path: Path, tokens: list[bytes]) -> Path:
    lines = [f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(tokens)]
    path.write_text("".join(lines))
    return path


def made(kind: str, path: Path, **fields):
    fields |= {"vocab_pattern": "gpt2"} if kind == "tiktoken" else {}
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return make_tokenizer(
        DataConfig(tokenizer=kind, vocab_path=str(path), vocab_sha256=sha256, **fields)  # type: ignore[arg-type]
    )


@pytest.fixture(scope="session", params=["bytes", "sentencepiece", "huggingface", "tiktoken"])
def tokenizer(request, files):
    """Each tokenizer that knows all bytes."""
    return made(request.param, files[request.param]) if request.param in files else ByteTokenizer()


@pytest.mark.parametrize("text", TEXTS)
def test_text_comes_back(text, tokenizer):
    tokens = tokenizer.encode(text)
    assert tokens.dtype == np.int32 and tokens.ndim == 1
    assert tokenizer.decode(tokens) == tokenizer.decode(tokens.tolist()) == text
    assert not tokens.size or 0 <= tokens.min() <= tokens.max() < tokenizer.vocab_size
    assert 0 <= tokenizer.beginning_of_document < tokenizer.vocab_size
    assert lost_bytes(text, tokens, tokenizer) == 0


@hypothesis.settings(max_examples=100, deadline=None)
@hypothesis.given(strategies.text(strategies.characters(exclude_categories=["Cs"])))
def test_any_text_comes_back(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("text", [text for text in TEXTS if "\ufffd" not in text])
def test_tokens_are_written_as_they_come(text, tokenizer):
    tokens, file = tokenizer.encode(text), io.StringIO()
    stream = Stream(tokenizer, np.array([tokenizer.beginning_of_document]), file)
    for end in range(len(tokens)):
        stream(tokens[end : end + 1])
        assert text.startswith(file.getvalue())
    assert file.getvalue() == text


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


def test_what_a_normalizer_or_a_pattern_loses_is_counted(byte_level, files, tmp_path):
    changed = tokenizers.Tokenizer.from_str(byte_level.to_str())
    changed.normalizer = normalizers.Lowercase()
    changed.save(str(tmp_path / "lower.json"))
    lower = HuggingFaceTokenizer(tmp_path / "lower.json")
    letters = TiktokenTokenizer(files["tiktoken"], r"\p{L}+")
    for tokenizer, text, lost in ((lower, "The State", 2), (letters, "the (state)", 3)):
        assert lost_bytes(text, tokenizer.encode(text), tokenizer) == lost


def test_a_byte_is_a_token():
    text = "".join(map(chr, range(0x800)))
    tokens = ByteTokenizer().encode(text)
    assert tokens.tolist() == list(text.encode())


def test_cut_character_is_replaced(tokenizer):
    assert tokenizer.decode(tokenizer.encode("aǁ")[:-1]) == "a\ufffd"


def test_id_outside_the_vocabulary_is_an_error(tokenizer):
    for token in (-1, tokenizer.vocab_size):
        with pytest.raises(DataError, match=f"token id {token} is not a"):
            tokenizer.decode([65, token])


def test_pieces_are_learnt_and_white_space_is_kept(vocabulary):
    tokenizer = SentencePieceTokenizer(vocabulary)
    assert len(tokenizer.encode(PROSE)) < 0.6 * len(PROSE)
    assert tokenizer.vocab_size == 440
    newline = tokenizer.encode("\n")
    assert tokenizer.encode("a\n\nb").tolist().count(newline[0]) == 2


def test_spellings_of_a_texts_tokens_are_the_text(tokenizer):
    spellings = tokenizer.spellings()
    assert len(spellings) == tokenizer.vocab_size
    for text in [*TEXTS, PROSE]:
        spelled = b"".join(spellings[token] for token in tokenizer.encode(text))
        assert spelled.decode() == text
    begins = tokenizer.beginning_of_document
    assert spellings[begins] == (b"\0" if tokenizer.name == "bytes" else b"")


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


def test_pairs_are_the_same_in_both_files(files):
    """The gpt2 pattern is that of `pre_tokenizers.ByteLevel`."""
    theirs, ours = (made(kind, files[kind]) for kind in ("huggingface", "tiktoken"))
    assert (theirs.vocab_size, ours.vocab_size) == (440, 439)
    for text in (LETTERS, *TEXTS[:6]):
        assert theirs.encode(text).tolist() == (ours.encode(text) + 2).tolist()


def test_a_document_begins_as_the_file_says(byte_level, tmp_path):
    """With what it puts before a text, its first special token, or an id of its own."""

    def beginning_and_size(changed: tokenizers.Tokenizer) -> tuple[int, int]:
        changed.save(str(tmp_path / "changed.json"))
        tokenizer = HuggingFaceTokenizer(tmp_path / "changed.json")
        return tokenizer.beginning_of_document, tokenizer.vocab_size

    assert beginning_and_size(byte_level) == (1, 440)
    after = tokenizers.Tokenizer.from_str(byte_level.to_str())
    after.post_processor = processors.TemplateProcessing("$A [CLS]", special_tokens=[("[CLS]", 1)])
    assert beginning_and_size(after) == (0, 440)
    assert beginning_and_size(tokenizers.Tokenizer(models.WordLevel({"a": 0}, "a"))) == (1, 2)


def test_pieces_of_other_kinds_are_spelled_as_inside_a_text(tmp_path):
    """The decoder leaves out the first space, and bytes stand for characters without a piece."""
    vocabulary = {
        piece: id for id, piece in enumerate(["<unk>", "▁the", "▁", "s", "<0xC7>", "<0x81>"])
    }
    words = tokenizers.Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    words.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    words.save(str(tmp_path / "words.json"))
    spellings = HuggingFaceTokenizer(tmp_path / "words.json").spellings()
    assert spellings[1:6] == [b" the", b" ", b"s", b"\xc7", b"\x81"]


def test_patterns_cut_text_as_tiktoken_does(files, monkeypatch):
    content = dict.fromkeys("ab")
    for name in ("load_tiktoken_bpe", "data_gym_to_mergeable_bpe_ranks"):
        monkeypatch.setattr(tiktoken_ext.openai_public, name, lambda *_, **__: content)
    text = "I'LL we'll  x1234 ǅé\u0301 ...//\n\r\n \t-\u00a0- \n  "
    for name, ours in PATTERNS.items():
        theirs = getattr(tiktoken_ext.openai_public, name)()["pat_str"]
        a, b = (TiktokenTokenizer(files["tiktoken"], each) for each in (ours, theirs))
        assert a.encode(text).tolist() == b.encode(text).tolist()


def test_white_space_without_end_comes_back(files):
    text = "a" + " " * 1_000_001 + "b"
    tokenizer = made("tiktoken", files["tiktoken"])
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("kind", ["sentencepiece", "huggingface", "tiktoken"])
def test_name_follows_from_the_content_of_the_file(kind, files, tmp_path):
    assert make_tokenizer(DataConfig()).name == "bytes"
    copy = tmp_path / "copy"
    copy.write_bytes(files[kind].read_bytes())
    assert made(kind, copy).name == made(kind, files[kind]).name
    assert made(kind, copy).name.startswith(
        f"{kind}:{hashlib.sha256(copy.read_bytes()).hexdigest()}"
    )


def test_name_tells_patterns_apart(files):
    names = {TiktokenTokenizer(files["tiktoken"], pattern).name for pattern in (*PATTERNS, r"\w+")}
    assert len(names) == 4
    for wrong, words in {
        "cl100k": "is none of gpt2, cl100k_base",
        "(": "no regular expression",
    }.items():
        with pytest.raises(DataError, match=f"vocab_pattern '.*' {words}|is {words}"):
            TiktokenTokenizer(files["tiktoken"], wrong)


@pytest.mark.parametrize("kind", ["sentencepiece", "huggingface", "tiktoken"])
def test_file_that_is_not_the_one_meant_is_an_error(kind, files, tmp_path):
    build = {
        "sentencepiece": SentencePieceTokenizer,
        "huggingface": HuggingFaceTokenizer,
        "tiktoken": lambda path, sha256=None: TiktokenTokenizer(path, "gpt2", sha256),
    }[kind]
    with pytest.raises(DataError, match=f"{files[kind]} has SHA-256 .* asks for {'0' * 64}"):
        build(files[kind], "0" * 64)
    with pytest.raises(DataError, match=r"missing\.model cannot be read: No such file"):
        build(tmp_path / "missing.model")
    bad, whole = tmp_path / "bad.model", files[kind].read_bytes()
    # A piece that is no UTF-8, a token of no bytes, a token that is no base64.
    piece, wrong = {
        "sentencepiece": (b"def", b"d\x96f"),
        "huggingface": ('"Ġ"'.encode(), '"\u4e00"'.encode()),
        "tiktoken": (b"IQ==", b"I!=="),
    }[kind]
    assert piece in whole
    damaged = whole.replace(piece, wrong)
    for content in (b"", b"no model", b"\xff\xfe", whole.rstrip()[:-2], damaged):
        bad.write_bytes(content)
        with pytest.raises(DataError, match=r"bad\.model is not a [\w. ]+( \(.*\))?\.$"):
            build(bad)
    for other in files.keys() - {kind}:
        with pytest.raises(
            DataError, match=f"is not a .*looks like .*: set data.tokenizer to '{other}'"
        ):
            build(files[other])


def test_a_vocabulary_without_a_piece_that_begins_documents_is_an_error(files, tmp_path):
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(files["sentencepiece"].read_bytes())
    del model.pieces[:3]
    (tmp_path / "bad.model").write_bytes(model.SerializeToString())
    with pytest.raises(DataError, match="neither <s> nor <pad> nor <unk>"):
        SentencePieceTokenizer(tmp_path / "bad.model")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda lines: lines[1:], "no token for the byte"),
        (lambda lines: [*lines, lines[0]], "a token or a rank occurs twice"),
        (lambda lines: [*lines, b"YWE= 440 b\n"], ""),
        (lambda lines: [*lines, b"YWE 440\n"], "padding"),
        (lambda lines: [*lines[:-1], b"YWE= -1\n"], ""),
    ],
)
def test_damaged_ranks_are_an_error(change, reason, files, tmp_path):
    lines = files["tiktoken"].read_bytes().splitlines(keepends=True)
    (tmp_path / "damaged").write_bytes(b"".join(change(lines)))
    with pytest.raises(DataError, match=f"damaged is not a tiktoken vocabulary.*{reason}"):
        TiktokenTokenizer(tmp_path / "damaged", "gpt2")


def test_text_outside_a_closed_vocabulary_is_an_error(tmp_path):
    tokenizers.Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, "[UNK]")).save(
        str(tmp_path / "unk")
    )
    assert HuggingFaceTokenizer(tmp_path / "unk").encode("b").tolist() == [1]
    tokenizers.Tokenizer(models.WordLevel({"a": 0}, "[UNK]")).save(str(tmp_path / "closed"))
    with pytest.raises(DataError, match=r"closed cannot encode a text: .*\[UNK\]"):
        HuggingFaceTokenizer(tmp_path / "closed").encode("b")
