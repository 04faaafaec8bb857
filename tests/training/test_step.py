"""Laws of one step of training: truncated back-propagation, and nothing else."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from block_recurrent import LanguageModel, ModelConfig
from block_recurrent.data import Batch
from block_recurrent.model.attention import built_for
from block_recurrent.model.parameters import named_parameters, replace_parameters
from block_recurrent.model.state import reset
from block_recurrent.training import TrainState, make_train_step
from block_recurrent.training.loss import cross_entropy
from block_recurrent.training.step import all_finite, segment_loss
from tests.baselines import tiny as baselines
from tests.helpers import (
    SIZES,
    VOCABULARY,
    assert_close,
    assert_equal,
    model_config,
    random_like,
    random_model,
    random_tokens,
    slow,
)

BATCH, LENGTH = 2, 2 * SIZES["window"]
CONFIG = model_config(0, num_layers=1)
DROPOUT = model_config(num_layers=1, dropout=0.3)
INITIAL = "stack.parts.0.layer.cell.initial"
RATE = 0.25
PLAIN = optax.sgd(RATE)
SMALL = optax.sgd(RATE / 10)


@functools.cache
def train_step(seed: int = 0, **options):
    return make_train_step(PLAIN, jax.random.key(seed), **options)


def initial(model: LanguageModel, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step, with an optimizer that no configuration has."""
    optimizer_state = optimizer.init(named_parameters(model))
    return TrainState(model, optimizer_state, model.initial_state(BATCH), jnp.int32(0))


def prepare(step: int = 0, config: ModelConfig = CONFIG) -> TrainState:
    """A state in mid-document, whose memory a step may take over."""
    model = jax.tree.map(jnp.copy, random_model(config))
    state = initial(model, PLAIN)
    return state._replace(carried=random_like(state.carried), step=jnp.int32(step))


def batch(seed: int = 0, start=(False, False), mask=None) -> Batch:
    tokens = np.asarray(random_tokens(BATCH, LENGTH + 1, seed))
    mask = np.ones((BATCH, LENGTH), bool) if mask is None else mask
    return Batch(tokens[:, :-1], tokens[:, 1:], mask, np.array(start))


def loss(model, carried, batch: Batch):
    """The mean loss by a plain call of the model on a state that is only numbers."""
    start = batch.start_of_document
    logits, after = model(batch.inputs, carried, start_of_document=start)
    nats, targets = cross_entropy(logits, batch.targets, batch.mask)
    return nats / targets.astype(jnp.float32), (nats, after)


plain_gradient = jax.jit(jax.grad(loss, has_aux=True))


def test_two_steps_are_two_plain_calls_that_pass_the_state_on():
    state, carried = prepare(), prepare().carried
    for number, start in enumerate([(False, True), (True, False)]):
        one = batch(number, start)
        _, (nats, carried) = plain_gradient(state.model, carried, one)
        state, metrics = train_step()(state, one)
        assert_close((state.carried, metrics.nats), (carried, nats))
        assert metrics.targets == BATCH * LENGTH and state.step == number + 1


def test_parameters_move_by_the_gradient_of_the_mean_with_the_carried_state_constant():
    first, second = batch(0), batch(1, mask=np.arange(LENGTH) < np.array([[5], [LENGTH]]))
    state, _ = train_step()(prepare(), first)
    before, carried = jax.tree.map(jnp.copy, (state.model, state.carried))
    after, metrics = train_step()(state, second)
    gradient, _ = plain_gradient(before, carried, second)
    moved = jax.tree.map(lambda x, y: (x - y) / RATE, before, after.model)
    assert_close(moved, gradient)
    norm = np.sqrt(sum(np.sum(np.square(x)) for x in jax.tree.leaves(gradient)))
    np.testing.assert_allclose(metrics.gradient_norm, norm, rtol=1e-5)


@pytest.mark.parametrize("start", [(False, False), (True, False)])
def test_the_learned_initial_state_learns_at_document_starts_only(start):
    before = np.asarray(named_parameters(prepare().model)[INITIAL])
    after, _ = train_step()(prepare(), batch(start=start))
    assert np.any(named_parameters(after.model)[INITIAL] != before) == any(start)


def test_a_document_start_forgets_the_carried_state():
    fresh = prepare()
    fresh = fresh._replace(carried=fresh.model.initial_state(BATCH))
    expected, expected_metrics = train_step()(fresh, batch())
    state, metrics = train_step()(prepare(), batch(start=(True, True)))
    assert_equal((state.carried, metrics.nats), (expected.carried, expected_metrics.nats))
    assert train_step()(prepare(), batch())[1].nats != expected_metrics.nats


def test_cleared_states_are_initial_ones_in_every_segment_while_the_cache_is_kept():
    state, expected = prepare(), prepare()
    for number in range(2):
        one = batch(number, start=(False, number == 1))
        initial = expected.model.initial_state(BATCH).recurrent
        expected = expected._replace(carried=expected.carried._replace(recurrent=initial))
        _, (nats, carried) = plain_gradient(expected.model, expected.carried, one)
        state, metrics = train_step(clear_states=True)(state, one)
        assert_close((state.carried, metrics.nats), (carried, nats))
        expected = expected._replace(model=jax.tree.map(jnp.copy, state.model), carried=carried)


def test_the_learned_initial_state_learns_in_every_segment_where_states_are_cleared():
    before = np.asarray(named_parameters(prepare().model)[INITIAL])
    after, _ = train_step(clear_states=True)(prepare(), batch())
    assert np.any(named_parameters(after.model)[INITIAL] != before)


def test_passed_states_are_all_that_is_left_of_the_document_before():
    one, before = batch(start=(True, False)), prepare().carried
    fresh = prepare().model.initial_state(BATCH)
    first = jnp.array([True, False])
    expected = reset(before, fresh._replace(recurrent=before.recurrent), first, batch_axis=1)
    _, (nats, carried) = plain_gradient(prepare().model, expected, batch())
    state, metrics = train_step(state_passing=1.0)(prepare(), one)
    assert_close((state.carried, metrics.nats), (carried, nats))
    assert metrics.nats != train_step()(prepare(), one)[1].nats


def test_states_are_passed_on_to_the_share_of_documents_that_is_asked_for():
    def initial_learns(step):  # if a document begins with the initial states
        before = prepare(step)
        values = np.asarray(named_parameters(before.model)[INITIAL])
        after, _ = train_step(state_passing=0.75)(before, batch(start=(True, False)))
        return bool(np.any(named_parameters(after.model)[INITIAL] != values))

    learned = [initial_learns(step) for step in range(60)]
    assert 4 <= sum(learned) <= 28  # 15 expected, four standard deviations
    assert learned == [initial_learns(step) for step in range(60)]


@pytest.mark.parametrize("clear_states", [False, True])
def test_only_cleared_states_do_not_depend_on_the_segment_before(clear_states):
    def nats(recurrent):
        state = prepare()
        state = state._replace(carried=state.carried._replace(recurrent=recurrent))
        return train_step(clear_states=clear_states)(state, batch())[1].nats

    shape = prepare().carried.recurrent.shape
    assert (nats(jnp.zeros(shape)) == nats(jnp.ones(shape))) == clear_states


def test_detached_windows_are_segments_of_transformer_xl():
    model = random_model(model_config(detach_windows=True))
    before = carried = random_like(model.initial_state(BATCH))
    gradient = jax.jit(jax.grad(segment_loss, has_aux=True))
    whole, (*_, after) = gradient(model, before, batch())
    segments = []
    for columns in np.split(np.arange(LENGTH), 2):
        part = jax.tree.map(lambda x, columns=columns: x[:, columns], batch()[:3])
        one, (*_, carried) = gradient(model, carried, Batch(*part, batch().start_of_document))
        segments.append(one)
    assert_close((whole, after), (jax.tree.map(lambda a, b: (a + b) / 2, *segments), carried))
    attached, (*_, after_attached) = gradient(random_model(model_config()), before, batch())
    assert_close(after_attached, after)
    difference = optax.tree.sub(named_parameters(attached), named_parameters(whole))
    assert optax.tree.norm(difference) > 1e-2


def test_padding_changes_nothing_but_the_state_behind_it():
    mask = np.arange(LENGTH) < np.array([[LENGTH - 3], [0]])
    one = batch(mask=mask)
    inputs = np.where(mask, one.inputs, (one.inputs + 1) % VOCABULARY)
    other = one._replace(inputs=inputs, targets=np.where(mask, one.targets, 0))
    expected, metrics = train_step()(prepare(), one)
    state, other_metrics = train_step()(prepare(), other)
    assert metrics.targets == LENGTH - 3
    assert_equal((state.model, other_metrics), (expected.model, metrics))


def test_a_batch_of_padding_changes_no_parameter():
    before = named_parameters(prepare().model)
    state, metrics = train_step()(prepare(), batch(mask=np.zeros((BATCH, LENGTH), bool)))
    assert_equal(named_parameters(state.model), before)
    assert metrics == (0, 0, 0, 0)


FOUR = 4  # rows
ARCHITECTURES = {
    "recurrent": model_config(0, num_layers=1, gate="lstm", wiring="dual"),
    "feedback": model_config(0, num_layers=2, feedback=True, logits_by_window=True),
    **{name: baselines.CONFIGS[name] for name in ("transformer_xl", "lstm")},
}


def ragged(seed: int) -> Batch:
    """A segment of four rows, some of which begin a document; their documents end anywhere."""
    rng = np.random.default_rng(seed)
    tokens = np.asarray(random_tokens(FOUR, LENGTH + 1, seed))
    mask = np.arange(LENGTH) < rng.permutation([0, 3, LENGTH - 1, LENGTH])[:, None]
    return Batch(tokens[:, :-1], tokens[:, 1:], mask, rng.random(FOUR) < 0.4)


@pytest.mark.parametrize("name", ["recurrent", *slow("feedback", "transformer_xl", "lstm")])
def test_microbatches_take_the_step_of_the_whole_batch(name):
    config = ARCHITECTURES[name]
    is_ours = isinstance(config, ModelConfig)
    model = random_model(config) if is_ours else baselines.random_baseline(config)
    carried = random_like(model.initial_state(FOUR)) if is_ours else model.initial_state(FOUR)

    def run(accumulate_steps):
        step = make_train_step(SMALL, jax.random.key(0), accumulate_steps=accumulate_steps)
        state = TrainState(model, SMALL.init(named_parameters(model)), carried, jnp.int32(0))
        state, found = jax.tree.map(jnp.copy, state), []
        for seed in range(3):
            state, metrics = step(state, ragged(seed))
            found.append(metrics)
        return state, found

    (state, metrics), (expected, expected_metrics) = run(FOUR), run(1)
    assert_close(state, expected, 1e-6)
    for one, other in zip(metrics, expected_metrics, strict=True):
        assert one.targets == other.targets == 2 * LENGTH + 2
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_each_microbatch_has_dropout_of_its_own():
    same = jax.tree.map(lambda x: np.stack([x[0]] * BATCH), batch())
    state = prepare(config=DROPOUT)
    alike = jax.tree.map(lambda x: jnp.stack([x[:, 0]] * BATCH, axis=1), state.carried)
    after, _ = train_step(accumulate_steps=BATCH)(state._replace(carried=alike), same)
    first, second = (after.carried.cache.keys[:, row] for row in range(BATCH))
    assert np.any(first != second)


def test_dropout_follows_from_the_seed_and_the_step():
    def run(seed, step, config=DROPOUT):
        state, metrics = train_step(seed)(prepare(step, config), batch())
        return state._replace(step=0), metrics

    expected = run(0, step=3)
    assert_equal(run(0, step=3), expected)
    for other in (run(0, step=4), run(1, step=3)):
        assert other[1].nats != expected[1].nats
        assert np.any(other[0].carried.cache.keys != expected[0].carried.cache.keys)
    assert_equal(run(0, step=3, config=CONFIG), run(0, step=4, config=CONFIG))


def test_the_memory_of_the_state_is_taken_over():
    state = prepare()
    train_step()(state, batch())
    assert all(array.is_deleted() for array in jax.tree.leaves(state))


def test_a_step_is_compiled_with_the_options_of_the_device_it_is_built_for():
    with built_for("tpu", "TPU v5"):
        lowered = make_train_step(PLAIN, jax.random.key(0)).lower(prepare(), batch())
    with pytest.raises(jax.errors.JaxRuntimeError, match="xla_tpu_scoped_vmem"):
        lowered.compile()  # for a CPU, whose compiler has no such option


def test_loss_goes_down_on_a_text_that_repeats():
    text = np.tile(np.arange(5, dtype=np.int32), (BATCH, 300))
    state, mask, losses = prepare(), np.ones((BATCH, LENGTH), bool), []
    for offset in range(0, 100 * LENGTH, LENGTH):
        inputs, targets = text[:, offset:][:, :LENGTH], text[:, offset + 1 :][:, :LENGTH]
        state, metrics = train_step()(state, Batch(inputs, targets, mask, np.full(BATCH, False)))
        losses.append(float(metrics.nats / metrics.targets))
    assert losses[0] > 2 and losses[-1] < 0.2


RARE = 7  # a token whose target overflows the gradient of `overflowing`, and no other does


def overflowing() -> TrainState:
    """A finite state in which RARE as a target has a gradient whose norm is infinite.

    All embeddings have the same large first number, that of RARE a huge one of the other sign: its
    probability is 0 everywhere, and its logit carries a huge gradient back.
    """
    state = prepare()
    table = state.model.embedding[...].at[:, 0].set(30.0).at[RARE, 0].set(-1e30)
    named = named_parameters(state.model) | {"embedding": table, "norm.scale": jnp.ones(12)}
    return state._replace(model=replace_parameters(state.model, named))


def without_rare(seed: int = 0) -> Batch:
    one = batch(seed)
    return one._replace(
        inputs=np.where(one.inputs == RARE, 1, one.inputs),
        targets=np.where(one.targets == RARE, 1, one.targets),
    )


def with_rare() -> Batch:
    one = without_rare()
    one.targets[1, -1] = RARE
    return one


@pytest.mark.parametrize("accumulate_steps", [1, BATCH])
def test_a_gradient_that_overflows_is_skipped_and_leaves_all_but_the_step_as_it_was(
    accumulate_steps,
):
    step = train_step(skip_non_finite=True, accumulate_steps=accumulate_steps)
    before = jax.tree.map(np.asarray, overflowing())
    after, metrics = step(overflowing(), with_rare())
    assert np.isfinite(metrics.nats) and np.isinf(metrics.gradient_norm) and not metrics.finite
    assert_equal(after, before._replace(step=1))
    begins = with_rare()._replace(start_of_document=np.arange(BATCH) == 1)
    after, _ = step(overflowing(), begins)
    initial = before.model.initial_state(BATCH)
    expected = reset(before.carried, initial, begins.start_of_document, batch_axis=1)
    assert_equal(after, before._replace(carried=expected, step=1))
    after, metrics = train_step()(overflowing(), with_rare())
    assert not metrics.finite
    assert np.any(named_parameters(after.model)["embedding"] != before.model.embedding)


@pytest.mark.parametrize("make", [prepare, overflowing])
def test_where_all_is_finite_a_step_that_might_be_skipped_is_the_step(make):
    one = without_rare()
    expected, expected_metrics = train_step()(make(), one)
    after, metrics = train_step(skip_non_finite=True)(make(), one)
    assert metrics.finite and np.any(after.carried.recurrent != make().carried.recurrent)
    assert_equal((after, metrics), (expected, expected_metrics))


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("where", ["model", "optimizer", "carried"])
def test_anything_that_is_not_finite_is_found_anywhere_in_the_state(where, value):
    state = initial(random_model(CONFIG), optax.adam(RATE))
    assert all_finite(state)
    leaves, structure = jax.tree.flatten(getattr(state, where))
    index = max(i for i, leaf in enumerate(leaves) if leaf.dtype == jnp.float32 and leaf.size)
    leaves[index] = leaves[index].at[(-1,) * leaves[index].ndim].set(value)
    assert not all_finite(state._replace(**{where: structure.unflatten(leaves)}))
