"""Laws of scoring: it is one pass over the text, however texts are batched and cut."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import block_recurrent as br
from block_recurrent.config import DataConfig, ExperimentConfig
from block_recurrent.data import ByteTokenizer
from tests.baselines.tiny import CONFIGS, random_baseline
from tests.helpers import MODELS, random_model

SEGMENT = 8
CONTEXT, LONG = "Once upon ", "a time, far longer than a segment of 8 bytes, é."
TEXTS = [(CONTEXT, LONG), CONTEXT + LONG, "a", CONTEXT, (CONTEXT, ""), "a time"]


def trained(config, build) -> br.TrainedModel:
    """A model of bytes with random parameters, as if it had been trained."""
    config = dataclasses.replace(config, vocab_size=256)
    data = DataConfig(batch_size=4, segment_length=SEGMENT)
    experiment = ExperimentConfig(model=config, data=data)
    return br.TrainedModel(build(config), experiment, ByteTokenizer(), step=1)


@pytest.fixture(scope="module", params=["fixed_skip", "transformer"])
def model(request) -> br.TrainedModel:
    """The recurrent model, and one that forgets at the end of a segment."""
    name = request.param
    if name in CONFIGS:
        return trained(CONFIGS[name], random_baseline)
    return trained(MODELS[name], random_model)


def likelihoods(trained: br.TrainedModel, text: str) -> np.ndarray:
    """The log-likelihood of each byte of a text, from one call that reads all of it."""
    tokens = np.array([0, *text.encode()], np.int32)
    padded = np.pad(tokens, (0, -(len(tokens) - 1) % SEGMENT))[None]
    logits, _ = jax.jit(lambda model: model(padded[:, :-1], model.initial_state(1)))(trained.model)
    log_p = jax.nn.log_softmax(logits[0, : len(tokens) - 1])
    return np.asarray(jnp.take_along_axis(log_p, tokens[1:, None], axis=1)[:, 0], np.float64)


def test_a_score_is_the_sum_over_one_pass(model):
    each, split = likelihoods(model, CONTEXT + LONG), len(CONTEXT)
    expected = [each[split:].sum(), each.sum(), None, each[:split].sum(), 0.0, None]
    sizes = [len((pair[1] if isinstance(pair, tuple) else pair).encode()) for pair in TEXTS]
    for size in (None, 1, 3):
        scores = br.score(model, TEXTS, batch_size=size)
        found = [own.log_likelihood for own in scores]
        for value, wanted in zip(found, expected, strict=True):
            assert wanted is None or value == pytest.approx(wanted, rel=1e-5)
        assert found[0] + found[3] == pytest.approx(found[1], rel=1e-5)
        assert [own.tokens for own in scores] == sizes
        assert [own.bytes for own in scores] == sizes
    assert br.score(model, []) == []


def test_greedy_text_is_found_and_other_text_is_not(model):
    prompt = jnp.array([[0, *CONTEXT.encode()]])
    state = model.model.initial_state(1)
    new = br.generate(model.model, state, prompt, max_new_tokens=12, temperature=0)[0]

    class Numbers(ByteTokenizer):
        """Text whose characters are the tokens, whatever bytes they make."""

        def encode(self, text):
            return np.array([ord(character) for character in text], np.int32)

    text = "".join(map(chr, new.tolist()))
    other = text[:-1] + chr((ord(text[-1]) + 1) % 256)
    own = model._replace(tokenizer=Numbers())
    assert [s.greedy for s in br.score(own, [(CONTEXT, text), (CONTEXT, other)])] == [True, False]


def test_a_token_of_context_and_text_counts_for_the_text():
    class Pairs(ByteTokenizer):
        """Two bytes as one token, from the start of the text."""

        def encode(self, text):
            raw = text.encode()
            return np.array([sum(raw[at : at + 2]) % 256 for at in range(0, len(raw), 2)], np.int32)

    model = trained(MODELS["fixed_skip"], random_model)._replace(tokenizer=Pairs())
    whole, merged, apart = br.score(model, ["abcdef", ("abc", "def"), ("ab", "cdef")])
    assert (whole.tokens, merged.tokens, apart.tokens, merged.bytes) == (3, 2, 2, 3)
    assert merged.log_likelihood == pytest.approx(apart.log_likelihood)


@pytest.mark.parametrize("texts", [[3], [("a", "b", "c")], [("a", b"b")]])
def test_other_things_than_texts_are_refused(texts):
    with pytest.raises(TypeError, match="texts must be strings or pairs of context and text, not"):
        br.score(trained(MODELS["fixed_skip"], random_model), texts)
