"""A model in training: its steps and the checks that they are finite. It uses no files."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from block_recurrent.config import ExperimentConfig
from block_recurrent.data import Batch, TokenizedCorpus
from block_recurrent.model.protocol import Model
from block_recurrent.parallel import processes
from block_recurrent.parallel.axes import FSDP, TENSOR
from block_recurrent.parallel.mesh import (
    batch_sharding,
    make_mesh,
    put,
    put_batch,
    rows_of_process,
    vote_array,
    with_shardings,
)
from block_recurrent.system.progress import Stopwatch
from block_recurrent.training.build import abstract_train_state, make_lanes, make_train_state
from block_recurrent.training.evaluation import initial_carried
from block_recurrent.training.meter import Meter
from block_recurrent.training.optimizer import make_optimizer, make_schedule
from block_recurrent.training.step import (
    TrainState,
    TrainStep,
    all_finite,
    make_train_step,
    train_state_sharding,
)

MOST_SKIPPED = 10


def make_run_step(config: ExperimentConfig, state: TrainState) -> TrainStep:
    """The step of a run. Its result is sharded as `state`, arrays or shapes."""
    training = config.training
    return make_train_step(
        make_optimizer(config),
        jax.random.fold_in(jax.random.key(training.seed), 1),
        clear_states=training.clear_states,
        state_passing=training.state_passing,
        skip_non_finite=training.non_finite == "skip",
        accumulate_steps=training.accumulate_steps,
        shardings=jax.tree.map(lambda array: array.sharding, state),
    )


def abstract_run_state(config: ExperimentConfig, mesh: Mesh) -> TrainState:
    """Shapes, dtypes and shardings of a run's arrays on a mesh; nothing is computed.

    Raises: what `train_state_sharding` raises.
    """
    state = abstract_train_state(config)
    return with_shardings(state, train_state_sharding(mesh, state))


def lower_step(config: ExperimentConfig, mesh: Mesh) -> jax.stages.Lowered:
    """The step of a run on a mesh, of shapes alone.

    Raises:
      ConfigError: the mesh does not divide the batch or some parameters.
    """
    lanes, length = config.data.batch_size, config.data.segment_length
    array: Any = partial(jax.ShapeDtypeStruct, sharding=batch_sharding(mesh))
    tokens, mask = array((lanes, length), jnp.int32), array((lanes, length), jnp.bool_)
    batch = Batch(tokens, tokens, mask, array((lanes,), jnp.bool_))
    state = abstract_run_state(config, mesh)
    step: Any = make_run_step(config, state)
    return step.lower(state, batch)


class Trainer:
    """Takes steps, and checks that they are finite.

    Args:
      config: of the run.
      corpus: the documents to train on.
      clock: measures the time of steps, of their compilation and of reading data.
      advice: returns the end of the message of a FloatingPointError.
      evaluation_steps: as of `Meter`.

    Attributes:
      state: all that changes with a step; set by `begin` or `restore`.
      step: the number of steps taken.
      lanes: the batches to come, of this process's rows.
      meter: the metrics since the last log.
      mesh: the devices.
      stop_agreed: a process was asked to stop, and all have taken the same steps since.
    """

    state: TrainState
    step: int

    def __init__(
        self,
        config: ExperimentConfig,
        corpus: TokenizedCorpus,
        clock: Stopwatch,
        advice: Callable[[], str] = str,
        evaluation_steps: float = 0.0,
    ):
        self._config, self._clock, self._advice = config, clock, advice
        self.mesh = make_mesh(config.mesh, config.microbatch_size, exact=processes.several())
        rows = rows_of_process(self.mesh, config.data.batch_size)
        self.lanes = make_lanes(config, corpus, rows)
        places = config.data.batch_size * config.data.segment_length
        self.meter = Meter(config.training, places, evaluation_steps)
        self.stop_agreed = False
        self._schedule = make_schedule(config.optimizer, config.training.num_steps)
        self._skipped_in_a_row = 0
        self._compiled = False

    def begin(self, model: Model | None = None) -> None:
        """Makes the state before the first step. Raises: as `train_state_sharding`.

        If parameters are sharded, no device ever has all of them.

        Args:
          model: with the initial parameters, sharded over the mesh; random ones unless given.
        """
        if self.mesh.shape[FSDP] * self.mesh.shape[TENSOR] == 1:
            state = make_train_state(self._config)
            state = put(state, train_state_sharding(self.mesh, state))
        else:
            make = partial(make_train_state, self._config)
            shardings = train_state_sharding(self.mesh, jax.eval_shape(make))
            state = jax.jit(make, out_shardings=shardings)()
        if model is not None:
            carried = initial_carried(model, self._config.data.batch_size, self.mesh)
            state = state._replace(model=model, carried=carried)
        self._take(state)

    def _take(self, state: TrainState) -> None:
        self.state, self.step = state, int(state.step)
        self._train_step = make_run_step(self._config, state)

    def abstract_state(self) -> TrainState:
        """Shapes, dtypes and shardings of a state's arrays; nothing is computed."""
        return abstract_run_state(self._config, self.mesh)

    def position(self) -> dict[str, Any]:
        """The JSON values that, with the state, let a run continue from here."""
        return {
            "lanes": self.lanes.position,
            "unlogged": self.meter.unlogged,
            "skipped_in_a_row": self._skipped_in_a_row,
        }

    def restore(self, state: TrainState, position: Mapping[str, Any]) -> None:
        """Continues from a state and a position.

        Raises:
          DataError: the corpus has no such position.
        """
        self.lanes.restore(position["lanes"])
        self.meter.restore(position["unlogged"])
        self._skipped_in_a_row = position["skipped_in_a_row"]
        self._take(state)

    def take_step(self, *, vote: bool = False) -> None:
        """Takes one step, and checks that the one before it was finite.

        Args:
          vote: whether this process, one of several, has been asked to stop.

        Raises:
          FloatingPointError: it was not, and may not be skipped.
        """
        size = self._config.data.batch_size
        with self._clock.part("data"), processes.turn(self.step):
            batch = put_batch(next(self.lanes), self.mesh, size)
            votes = (vote_array(self.mesh, vote),) if processes.several() else ()
        with self._clock.part("step" if self._compiled else "compilation"):
            self.state, metrics = self._train_step(self.state, batch, *votes)
            self.step += 1
            self.meter.add(metrics)
            self.check_finite(but=1)
        self._compiled = True

    def metrics(self) -> dict[str, float]:
        """The metrics since the last call, and the learning rate. Raises: as `check_finite`."""
        with self._clock.part("step"):
            self.check_finite()
        rate = float(jnp.asarray(self._schedule(self.step - 1)))
        return self.meter.collect() | {"learning_rate": rate}

    def check_finite(self, *, but: int = 0) -> None:
        """Checks the steps taken, except the newest `but` of them, which may still be running.

        Raises:
          FloatingPointError: the loss or gradient of one is not finite and may not be skipped.
        """
        allowed = MOST_SKIPPED - 1 if self._config.training.non_finite == "skip" else 0
        for metrics in self.meter.settle(but=but):
            self.stop_agreed |= metrics.votes > 0
            self._skipped_in_a_row = 0 if metrics.finite else self._skipped_in_a_row + 1
            count = self._skipped_in_a_row
            if count > allowed:
                times = f" for {count} steps in a row" if count > 1 else ""
                raise FloatingPointError(
                    f"loss ({metrics.nats} nats) or gradient (norm {metrics.gradient_norm}) is not "
                    f"finite{times} by step {self.step:,}: lower optimizer.learning_rate or set "
                    f"optimizer.clip_norm; {self._advice()}"
                )

    def check_state(self) -> None:
        """Checks all steps taken, and the state after them.

        Raises:
          FloatingPointError: a step or the state is not finite.
        """
        self.check_finite()
        if not all_finite(self.state):
            raise FloatingPointError(
                "parameters, optimizer or carried state are not finite at step "
                f"{self.step:,}: lower optimizer.learning_rate; {self._advice()}"
            )
