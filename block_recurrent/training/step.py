"""One step of training: truncated back-propagation through one segment of every batch row."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec

from block_recurrent.data import Batch
from block_recurrent.model.attention import device_kind, target_platform
from block_recurrent.model.parameters import named_parameters, replace_parameters
from block_recurrent.model.protocol import CarriedState, Model
from block_recurrent.model.state import clear_recurrent, reset
from block_recurrent.parallel.axes import AnyMesh
from block_recurrent.parallel.mesh import carried_sharding
from block_recurrent.parallel.parameters import optimizer_sharding, parameter_shardings
from block_recurrent.system.devices import compiler_options
from block_recurrent.training.accumulation import accumulated_gradient
from block_recurrent.training.loss import model_cross_entropy


class TrainState(NamedTuple):
    """All that changes in training.

    Attributes:
      model: its parameters.
      optimizer: the optimizer's state, by parameter path.
      carried: what batch rows carry from segment to segment.
      step: int32 scalar, steps taken.
    """

    model: Model
    optimizer: optax.OptState
    carried: CarriedState
    step: Array


class StepMetrics(NamedTuple):
    """Scalars of one step: float32 arrays, or numbers once they have been fetched.

    Attributes:
      nats: summed loss of the step's targets.
      targets: the number of targets.
      gradient_norm: global norm of the gradient of the mean loss, before clipping.
      votes: the number of devices whose process had been asked to stop when the step began.
    """

    nats: Any
    targets: Any
    gradient_norm: Any
    votes: Any = 0.0

    @property
    def finite(self) -> bool:
        """Whether loss and gradient are numbers, once they have been fetched."""
        return math.isfinite(self.nats) and math.isfinite(self.gradient_norm)


TrainStep = Callable[..., tuple[TrainState, StepMetrics]]


def model_sharding(mesh: AnyMesh, model: Model) -> Model:
    """The sharding of every parameter of a model, or of its shapes, in the model's structure.

    Raises: what `parameter_shardings` raises.
    """
    shardings = parameter_shardings(mesh, named_parameters(model))
    return replace_parameters(model, cast(Any, shardings))


def train_state_sharding(mesh: AnyMesh, state: TrainState) -> TrainState:
    """The sharding of every array of a state, or of its shapes. Raises: as `model_sharding`."""
    return TrainState(
        model_sharding(mesh, state.model),
        optimizer_sharding(mesh, state.optimizer, named_parameters(state.model)),
        carried_sharding(mesh, state.carried),
        cast(Array, NamedSharding(mesh, PartitionSpec())),
    )


def segment_loss(
    model: Model,
    carried: CarriedState,
    batch: Batch,
    *,
    dropout_key: Array | None = None,
    clear_states: bool = False,
    targets_of_mean: Array | None = None,
) -> tuple[Array, tuple[Array, Array, CarriedState]]:
    """The mean loss over a batch's targets, and its parts.

    Args:
      model: the language model.
      carried: the rows' state from the segment before.
      batch: a segment of every row.
      dropout_key: dropout is on when given.
      clear_states: begin the segment with the model's initial recurrent states.
      targets_of_mean: number of targets that the sum is divided by, float32; the batch's unless
        given.

    Returns:
      The mean; and summed nats, the number of targets (both float32), and the next state.
    """
    if clear_states:
        carried = clear_recurrent(carried, model.initial_state(carried.batch_size))
    features, carried = model.features(
        batch.inputs,
        carried,
        start_of_document=batch.start_of_document,
        dropout_key=dropout_key,
    )
    nats, targets = model_cross_entropy(model, features, batch.targets, batch.mask)
    targets = targets.astype(jnp.float32)
    divisor = targets if targets_of_mean is None else targets_of_mean
    return nats / jnp.maximum(divisor, 1.0), (nats, targets, carried)


def pass_states(
    state: TrainState, batch: Batch, share: float, dropout_key: Array
) -> tuple[CarriedState, Batch]:
    """Lets a share of the documents that begin do so with the recurrent states of their rows.

    Returns:
      The state and the batch to read: in those rows nothing of the document before is left but its
      recurrent states.
    """
    key = jax.random.fold_in(jax.random.split(dropout_key)[1], state.step)
    start = batch.start_of_document
    passed = start & jax.random.bernoulli(key, share, start.shape)
    begun = clear_recurrent(state.model.initial_state(len(start)), state.carried)
    carried = reset(state.carried, begun, passed, batch_axis=1)
    return carried, batch._replace(start_of_document=cast(Any, start & ~passed))


def make_train_step(
    optimizer: optax.GradientTransformation,
    dropout_key: Array,
    *,
    clear_states: bool = False,
    state_passing: float = 0.0,
    skip_non_finite: bool = False,
    accumulate_steps: int = 1,
    shardings: TrainState | None = None,
) -> TrainStep:
    """The compiled step: (state, batch, votes) -> (next state, metrics). It donates the state.

    It minimises the mean loss over the batch's targets. No gradient flows into the carried state.

    Args:
      optimizer: on parameters by path.
      dropout_key: the dropout of a step depends on this and on the step's number only.
      clear_states: as in `TrainingConfig`.
      state_passing: as in `TrainingConfig`.
      skip_non_finite: if loss or gradient are not finite, only the step's number changes; rows that
        begin a document in that step begin it in the next.
      accumulate_steps: number of microbatches, as in `TrainingConfig`.
      shardings: of the next state, from `train_state_sharding`.

    Returns:
      A function whose `votes`, [devices] float32, are given only by several processes.
    """

    def step(
        state: TrainState, batch: Batch, votes: Array | None = None
    ) -> tuple[TrainState, StepMetrics]:
        uses_dropout = state.model.config.uses_dropout
        key = jax.random.fold_in(dropout_key, state.step) if uses_dropout else None
        loss = partial(segment_loss, clear_states=clear_states)
        if accumulate_steps == 1:
            gradient_of = partial(jax.grad(loss, has_aux=True), dropout_key=key)
        else:
            sharding = None if shardings is None else shardings.model
            gradient_of = partial(
                accumulated_gradient, loss, accumulate_steps, dropout_key=key, sharding=sharding
            )
        read = state.carried, batch
        if state_passing:
            read = pass_states(state, batch, state_passing, dropout_key)
        gradient, (nats, targets, carried) = gradient_of(state.model, *read)
        named, gradients = named_parameters(state.model), named_parameters(gradient)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, named)
        named = cast(dict[str, Array], optax.apply_updates(named, updates))
        model = replace_parameters(state.model, named)
        metrics = StepMetrics(nats, targets, optax.tree.norm(gradients))
        if votes is not None:
            metrics = metrics._replace(votes=jnp.sum(votes))
        taken = TrainState(model, optimizer_state, carried, state.step + 1)
        if skip_non_finite:
            initial = state.model.initial_state(state.carried.batch_size)
            begun = reset(state.carried, initial, batch.start_of_document, batch_axis=1)
            skipped = state._replace(carried=begun, step=taken.step)
            finite = jnp.isfinite(metrics.nats) & jnp.isfinite(metrics.gradient_norm)
            taken = jax.tree.map(lambda new, old: jnp.where(finite, new, old), taken, skipped)
        return taken, metrics

    out: Any = {} if shardings is None else {"out_shardings": (shardings, None)}
    options = compiler_options(target_platform(), device_kind(unknown=""))
    return jax.jit(step, donate_argnums=0, compiler_options=options, **out)


@jax.jit
def _finite_leaves(leaves: list[Array]) -> Array:
    return jnp.all(jnp.array([jnp.all(jnp.isfinite(leaf)) for leaf in leaves]))


def all_finite(state: TrainState) -> bool:
    """Whether all numbers of parameters, optimizer and carried state are finite."""
    leaves = jax.tree.leaves((state.model, state.optimizer, state.carried))
    return bool(_finite_leaves([leaf for leaf in leaves if leaf.size]))
