"""What the tests of analyses share: a corpus of bytes and models that read it."""

import block_recurrent as br
from block_recurrent.data import ByteTokenizer, Corpus, Document, TokenizedCorpus, tokenize
from tests.helpers import model_config, random_model

TEXTS = (
    "the quick brown fox jumps over the lazy dog",
    "a dog sleeps well",
    "Fox_1, fox: the fox und der schläfrige Hund",
)


def corpus_of(*texts: str) -> TokenizedCorpus:
    documents = tuple(Document(f"d{number}", "", text) for number, text in enumerate(texts))
    return tokenize(Corpus(documents), ByteTokenizer())


def model_of(*recurrent_layers: int, **changes) -> br.LanguageModel:
    """A model of bytes with random parameters and a window of 4."""
    return random_model(model_config(*recurrent_layers, vocab_size=256, **changes))
