"""Laws of the language model as a whole."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import block_recurrent as br
from block_recurrent.interop.meliad import to_parameters
from block_recurrent.model import language_model, transformer_layer
from block_recurrent.model.attention import built_for
from block_recurrent.model.attention import reference as reference_attention
from block_recurrent.model.stack import scans_layers
from tests import reference
from tests.helpers import (
    MODELS,
    SIZES,
    VARIED,
    VOCABULARY,
    assert_close,
    assert_equal,
    model_config,
    random_like,
    random_model,
    random_tokens,
    read,
    read_with_gradients,
    reference_config,
    row,
    slow,
)
from tests.test_golden import GOLDEN

BATCH, LENGTH = 2, 12
WINDOW = SIZES["window"]

# Models of which there are golden numbers need no other ones in every run of the tests.
GOLDEN_NAMES = MODELS.keys() & {path.stem for path in GOLDEN}
NAMES = [*slow(*sorted(GOLDEN_NAMES)), *sorted(MODELS.keys() - GOLDEN_NAMES)]
every_model = pytest.mark.parametrize("name", MODELS)
varied_models = pytest.mark.parametrize("name", VARIED)


def prepare(name: str):
    """The model and a state in mid-document."""
    model = random_model(MODELS[name])
    return model, random_like(model.initial_state(BATCH))


def test_the_table_of_models_holds_every_gate_wiring_and_feedback():
    rows = {(c.gate, c.wiring, c.feedback) for c in MODELS.values() if c.recurrent_layers}
    assert rows == set(itertools.product(("fixed", "lstm"), ("skip", "single", "dual"), (0, 1)))


@pytest.mark.parametrize("name", NAMES)
def test_model_is_the_transcription_of_the_equations(name):
    config, model = reference_config(MODELS[name]), random_model(MODELS[name])
    parameters = {key: np.asarray(value) for key, value in to_parameters(model).items()}
    state = model.initial_state(BATCH)
    slow_state = reference.initial_state(parameters, config, BATCH)
    for segment, start in enumerate([(True, True), (False, True), (False, False)]):
        tokens, start = random_tokens(BATCH, LENGTH, segment), jnp.array(start)
        logits, state = read(model, tokens, state, start)
        slow, slow_state = reference.forward(parameters, config, tokens, slow_state, start)
        recurrent = [layer.recurrent for layer in slow_state if layer.recurrent is not None]
        assert_close(logits, slow)
        assert_close(state.cache.keys, np.stack([layer.keys for layer in slow_state]))
        assert_close(state.cache.values, np.stack([layer.values for layer in slow_state]))
        assert_close(list(state.recurrent), recurrent)


@varied_models
def test_any_split_into_calls_gives_the_same(name):
    model, start = prepare(name)
    tokens = random_tokens(BATCH, LENGTH)
    expected = read(model, tokens, start)
    # Calls of one block everywhere; of one and two blocks, each compiled anew, where it is cheap.
    for edges in ([4, 8], [4], [8]) if name in ("slide", "feedback_fixed_skip") else ([4, 8],):
        parts, state = [], start
        for part in jnp.split(tokens, edges, axis=1):
            logits, state = read(model, part, state)
            parts.append(logits)
        assert_close((jnp.concatenate(parts, axis=1), state), expected)


@every_model
def test_no_logit_depends_on_later_tokens(name):
    model, state = prepare(name)
    tokens = random_tokens(BATCH, LENGTH)
    expected, _ = read(model, tokens, state)
    for position in range(LENGTH):
        changed = tokens.at[:, position].set((tokens[:, position] + 1) % VOCABULARY)
        logits, _ = read(model, changed, state)
        assert_equal(logits[:, :position], expected[:, :position])
        assert np.all(np.any(logits[:, position] != expected[:, position], axis=-1))


@every_model
def test_only_a_recurrent_model_remembers_beyond_a_window_per_layer(name):
    model, state = prepare(name)
    reach = MODELS[name].num_layers * WINDOW

    def logits_after(first_token):
        tokens = random_tokens(BATCH, 2 * LENGTH).at[:, 0].set(first_token)
        first, middle = read(model, tokens[:, :LENGTH], state)
        second, _ = read(model, tokens[:, LENGTH:], middle)
        return jnp.concatenate([first, second], axis=1)

    differs = np.any(logits_after(1) != logits_after(2), axis=(0, 2))
    assert differs[reach]
    assert np.any(differs[reach + 1 :]) == bool(MODELS[name].recurrent_layers)


@every_model
def test_lanes_do_not_see_each_other(name):
    model, state = prepare(name)
    tokens = random_tokens(BATCH, LENGTH)
    logits, after = read(model, tokens, state)
    other = jax.tree.map(lambda x, y: jnp.concatenate([x[:, :1], y[:, 1:]], 1), state, after)
    other_logits, other_after = read(model, tokens.at[1].add(1) % VOCABULARY, other)
    assert_equal(other_logits[0], logits[0])
    assert_equal(row(other_after, 0), row(after, 0))
    assert np.any(other_logits[1] != logits[1])


def test_a_batch_of_eight_is_eight_batches_of_one():
    model = random_model(MODELS["fixed_single"])
    tokens, state = random_tokens(8, WINDOW), random_like(model.initial_state(8))
    logits, after = read(model, tokens, state)
    for lane in range(8):
        alone, alone_after = read(model, tokens[lane : lane + 1], row(state, lane))
        assert_close((alone[0], alone_after), (logits[lane], row(after, lane)))


@every_model
def test_a_document_start_forgets_exactly_the_rows_it_marks(name):
    model, state = prepare(name)
    tokens = random_tokens(BATCH, LENGTH)
    neither = read(model, tokens, state)
    fresh = read(model, tokens, model.initial_state(BATCH))
    logits, after = read(model, tokens, state, jnp.array([True, False]))
    assert_equal((logits[0], row(after, 0)), (fresh[0][0], row(fresh[1], 0)))
    assert_equal((logits[1], row(after, 1)), (neither[0][1], row(neither[1], 1)))
    assert np.any(fresh[0] != neither[0])


def test_without_start_of_document_nothing_is_forgotten():
    model, state = prepare("fixed_single")
    tokens = random_tokens(BATCH, LENGTH)
    assert_close(jax.jit(model)(tokens, state), read(model, tokens, state))


@pytest.mark.parametrize("name", ["fixed_single", "feedback_fixed_single"])
def test_gradients_reach_every_parameter_and_the_carried_state(name):
    model, state = prepare(name)
    start = jnp.array([False, True])
    _, _, (gradients, carried) = read_with_gradients(
        model, random_tokens(BATCH, LENGTH), state, start
    )
    for parameter, gradient in to_parameters(gradients).items():
        assert gradient.dtype == jnp.float32
        assert np.all(np.isfinite(gradient)), parameter
        assert np.any(gradient != 0), parameter
    for gradient in jax.tree.leaves(carried):
        assert np.all(np.isfinite(gradient))
        assert np.all(np.any(gradient[:, 0] != 0, axis=(1, 2)))
        assert np.all(gradient[:, 1] == 0)


def test_transformer_xl_is_the_model_with_segments_of_one_window():
    model, state = prepare("slide")
    assert state.recurrent.shape[0] == 0
    assert not any("recurrent" in name for name in to_parameters(model))


# Loops or none, several blocks at a time, and what the backward pass computes again.
WAYS = {
    "fixed_single": {"scan_layers": False, "remat": "dots"},
    "feedback_fixed_single": {"remat": "layer"},
}


@pytest.mark.parametrize("name", WAYS)
def test_loops_and_rematerialisation_change_no_number(name):
    def run(**way):
        model = random_model(dataclasses.replace(MODELS[name], **way))
        state = random_like(model.initial_state(BATCH))
        results = read_with_gradients(model, random_tokens(BATCH, LENGTH), state)
        return jax.tree.leaves(results)

    assert_close(run(**WAYS[name]), run())


def test_few_layers_are_unrolled_where_that_is_faster():
    def scans(platform, **changes):
        with built_for(platform):
            return scans_layers(dataclasses.replace(MODELS["slide"], **changes))

    assert not scans("cpu") and scans("cpu", num_layers=24)
    for platform in ("gpu", "tpu"):
        assert scans(platform, remat="layer")
        for remat in ("none", "dots"):
            assert not scans(platform, remat=remat) and scans(platform, remat=remat, num_layers=24)
            assert scans(platform, remat=remat, scan_layers=True)


@pytest.mark.parametrize("remat", ["none", "layer", "dots"])
def test_rematerialisation_computes_attention_as_often_as_its_own_gradient_does(remat):
    model = random_model(dataclasses.replace(MODELS["slide"], remat=remat))
    state, tokens = model.initial_state(BATCH), random_tokens(BATCH, LENGTH)
    gradient = jax.jit(jax.grad(lambda model: model(tokens, state)[0].sum()))
    # One loop over layers computes a softmax forward, another computes it again for its gradient.
    assert gradient.lower(model).as_text().count("stablehlo.exponential") == 2


def parameters_without_embedding(config: br.ModelConfig) -> int:
    model = jax.eval_shape(lambda: br.LanguageModel(config, rngs=nnx.Rngs(0)))
    sizes = [leaf.size for leaf in jax.tree.leaves(model)]
    return sum(sizes) - config.vocab_size * config.model_size


def closed_form(config: br.ModelConfig) -> int:
    """Parameters without embedding, added up from the equations."""
    size, heads = config.model_size, config.num_heads * config.head_size
    hidden = config.mlp_size
    table = 32 * config.num_heads if config.positions == "t5" else 0
    plain = 3 * size * heads + heads * size + 2 * size * hidden + 2 * size + config.num_heads
    plain += table
    attends = 2 * size * heads + config.num_heads  # second queries, wider output, scale

    def gate(inputs):
        kernels = 1 if config.gate == "fixed" else 3
        return kernels * inputs * size + max(1, kernels - 1) * size

    wiring = {
        "skip": gate(2 * heads),
        "single": 2 * heads * hidden + gate(hidden),
        "dual": gate(2 * heads) + size + size * hidden + gate(hidden),
    }[config.wiring]
    states = 2 * config.num_states * size + size + 4 * size * heads + 2 * config.num_heads
    recurrent = len(config.recurrent_layers)
    reading = config.num_layers if config.feedback else recurrent
    return config.num_layers * plain + reading * attends + recurrent * (states + wiring) + size


@every_model
def test_parameter_count_in_closed_form(name):
    assert parameters_without_embedding(MODELS[name]) == closed_form(MODELS[name])


@pytest.mark.parametrize(
    "fields, millions",
    [
        ({}, 151.0),
        ({"num_layers": 13}, 163.6),
        ({"recurrent_layers": (9,)}, 160.5),
        ({"recurrent_layers": (9,), "gate": "lstm", "wiring": "dual"}, 181.4),
        ({"recurrent_layers": (9,), "feedback": True}, 183.5),
    ],
)
def test_parameter_count_at_the_papers_size(fields, millions):
    config = br.ModelConfig(vocab_size=32_000, **fields)
    count = parameters_without_embedding(config)
    assert count == closed_form(config)
    assert round(count / 1e6, 1) == millions


def test_initial_values_are_those_of_the_authors():
    config = model_config(
        1, num_layers=2, model_size=64, mlp_size=96, num_states=50, gate="lstm", wiring="skip"
    )
    model = jax.jit(lambda: br.LanguageModel(config, rngs=nnx.Rngs(0)))()
    for name, value in to_parameters(model).items():
        expected = 1 / np.sqrt(value.shape[0])
        if "scale" in name:
            assert_equal(value, np.ones(value.shape))
            continue
        if name.endswith("_gate/kernel"):
            expected = np.sqrt(0.1 / value.shape[0])
        elif "_gate/bias" in name or "initial_state" in name:
            expected = 0.1
        elif "rel_embedding" in name:
            expected = 1 / np.sqrt(32)
        elif "embed" in name:
            expected = 1.0
        assert abs(np.std(value) / expected - 1) < 5 / np.sqrt(2 * value.size), name
        assert abs(np.mean(value)) < 5 * expected / np.sqrt(value.size), name
    assert_equal(model.initial_state(3).recurrent[0], [model.stack.cells[0].initial[...]] * 3)


WRONG_TOKENS = {
    "float": (lambda t: t.astype(jnp.float32), TypeError, "tokens must hold integer values"),
    "bool": (lambda t: t > 3, TypeError, "tokens must hold integer values"),
    "list": (lambda t: t.tolist(), TypeError, "tokens must be an array"),
    "one row": (lambda t: t[0], ValueError, r"tokens has shape \(8,\)"),
    "rank 3": (lambda t: t[..., None], ValueError, r"tokens has shape \(2, 8, 1\)"),
    "no multiple": (lambda t: t[:, :7], ValueError, "7 tokens is no multiple of the window 4"),
    "empty": (lambda t: t[:, :0], ValueError, "the length of a segment must be"),
}


@pytest.mark.parametrize("wrong, error, words", WRONG_TOKENS.values(), ids=WRONG_TOKENS)
def test_wrong_tokens_are_refused(wrong, error, words):
    model = random_model(MODELS["fixed_skip"])
    with pytest.raises(error, match=words):
        model(wrong(random_tokens(2, 8)), model.initial_state(2))


def test_a_state_with_any_axis_of_another_size_is_refused():
    model = random_model(MODELS["fixed_skip"])
    tokens, state = random_tokens(2, 8), model.initial_state(2)
    leaves, structure = jax.tree.flatten(state)
    names = ("state.cache.keys", "state.cache.values", "state.recurrent")
    for number, (name, leaf) in enumerate(zip(names, leaves, strict=True)):
        for axis in range(leaf.ndim):
            other = jnp.repeat(leaf, 2, axis)
            wrong = structure.unflatten([*leaves[:number], other, *leaves[number + 1 :]])
            with pytest.raises(ValueError, match=f"{name} has shape"):
                model(tokens, wrong)


@pytest.mark.parametrize(
    "start, error",
    [
        (jnp.zeros(3, bool), ValueError),
        (jnp.zeros((2, 8), bool), ValueError),
        (jnp.zeros(2, jnp.int32), TypeError),
        ([True, False], TypeError),
        (True, TypeError),
    ],
)
def test_wrong_document_starts_are_refused(start, error):
    model = random_model(MODELS["fixed_skip"])
    with pytest.raises(error, match="start_of_document"):
        model(random_tokens(2, 8), model.initial_state(2), start_of_document=start)


@pytest.mark.parametrize("name", ["fixed_dual", "feedback_fixed_skip"])
def test_rows_end_after_their_lengths_as_if_read_alone(name):
    model, lengths = random_model(MODELS[name]), np.array([0, 1, 3, 2]) * WINDOW
    tokens, state = random_tokens(4, 3 * WINDOW), random_like(model.initial_state(4))
    logits, after = jax.jit(lambda model, lengths: model(tokens, state, lengths=lengths))(
        model, lengths
    )
    for i, length in enumerate(lengths):
        alone = row(state, i)
        for begin in range(0, length, WINDOW):
            block = slice(begin, begin + WINDOW)
            expected, alone = read(model, tokens[i : i + 1, block], alone)
            assert_close(logits[i : i + 1, block], expected)
        assert_close(row(after, i), alone)


def dropped(monkeypatch, **changes):
    """The shape and rate of every array that a segment of two blocks drops entries of, in order."""
    found = []

    def record(x, rate, key, leading_axes=0):
        if key is not None and rate > 0:
            found.append((x.shape, rate))
        return x

    for module in (transformer_layer, language_model, reference_attention):
        monkeypatch.setattr(module, "dropout", record)
    rates = {"dropout": 0.1, "attention_dropout": 0.2}
    config = model_config(1, num_layers=2, scan_layers=False, attention="xla", **rates | changes)
    tokens = random_tokens(2, 2 * config.window)

    def build_and_read():
        model = br.LanguageModel(config, rngs=nnx.Rngs(0))
        return model(tokens, model.initial_state(2), dropout_key=jax.random.key(0))

    jax.eval_shape(build_and_read)
    return found


PER_LAYER = [((2, 8, 12), 0.1), ((2, 2, 2, 4, 8), 0.2), ((2, 8, 12), 0.1)]


def test_dropout_falls_where_the_authors_release_has_it_and_nowhere_else(monkeypatch):
    """On the input of attention, on the probabilities of self-attention, on the MLP's output.

    At the end on the input of the logits; never on the attention to states, nor in their update.
    """
    last = [((2, 8, 12), 0.1)]
    assert dropped(monkeypatch) == PER_LAYER * 2 + last
    assert dropped(monkeypatch, attention_dropout=None) == [
        (shape, 0.1) for shape, _ in PER_LAYER * 2 + last
    ]
    assert dropped(monkeypatch, dropout=0.0) == PER_LAYER[1:2] * 2
    assert dropped(monkeypatch, attention_dropout=0.0) == (PER_LAYER[::2] * 2 + last)
