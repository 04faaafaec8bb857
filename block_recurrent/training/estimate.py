"""The dry run: parameters and memory of a run, without data or computation."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh

from block_recurrent.config import ExperimentConfig, MeshConfig, ModelConfig
from block_recurrent.data import Batch
from block_recurrent.model.parameters import count_parameters, named_parameters
from block_recurrent.model.protocol import Model
from block_recurrent.model.stack import part_ranges
from block_recurrent.parallel.mesh import batch_shards, check_batch_size, with_shardings
from block_recurrent.parallel.parameters import describe_sharding
from block_recurrent.training.build import abstract_model, abstract_train_state
from block_recurrent.training.step import TrainState, segment_loss, train_state_sharding

Shape: Any = jax.ShapeDtypeStruct


class Memory(NamedTuple):
    """Bytes of a training step on one device.

    Activations, logits and what is computed again are the arrays that JAX keeps for the backward
    pass. They do not all exist at the same time, and XLA may need fewer. XLA's temporary arrays are
    not included.

    Attributes:
      parameters: the model's parameters.
      optimizer_state: the optimizer's moments and counts.
      gradients: the gradients of the parameters; with `training.accumulate_steps` their sum, and
        those of one microbatch.
      carried_state: keys, values and recurrent states of every batch row.
      activations: kept arrays, except those of the size of the logits.
      logits: kept arrays of the size of the logits; with `logits_by_window` those of one window and
        their gradient.
      computed_again: with `model.remat` the activations of one layer, which are computed again.
    """

    parameters: int
    optimizer_state: int
    gradients: int
    carried_state: int
    activations: int
    logits: int
    computed_again: int


def count_components(model: Model) -> dict[str, int]:
    """Parameters by component, bottom up; layers are counted from 1."""
    sizes = {name: array.size for name, array in named_parameters(model).items()}
    if isinstance(model.config, ModelConfig):
        return _components_of_parts(sizes, model.config)
    layers = sum(size for name, size in sizes.items() if name.startswith("layers."))
    embedding = sizes["embedding"]
    rest = sum(sizes.values()) - embedding - layers
    all_layers = _layers(range(model.config.num_layers))
    return {"embedding": embedding, all_layers: layers, "beside them": rest}


def _components_of_parts(sizes: Mapping[str, int], config: ModelConfig) -> dict[str, int]:
    counts, feedback = {"embedding": sizes["embedding"]}, 0
    for index, layers in enumerate(part_ranges(config)):
        prefix = f"stack.parts.{index}."

        def count(start: str, prefix: str = prefix) -> int:
            return sum(size for name, size in sizes.items() if name.startswith(prefix + start))

        total = count("")
        if layers.start in config.recurrent_indices:
            tokens = count("layer.cell.token_layer.")
            counts[f"{_layers(layers)}, recurrent: tokens"] = tokens
            counts[f"{_layers(layers)}, recurrent: states"] = total - tokens
        else:
            # Feedback adds queries to the states, their scale, and half of the output projection.
            extra = count("layers.state_") + sizes[f"{prefix}layers.output.kernel"] // 2
            extra = extra if config.feedback else 0
            counts[_layers(layers)] = total - extra
            feedback += extra
    return counts | {"feedback": feedback, "final norm": sizes["norm.scale"]}


def _layers(layers: range) -> str:
    first, last = layers.start + 1, layers.stop
    return f"layer {first}" if first == last else f"layers {first}-{last}"


def estimate_memory(config: ExperimentConfig, state: TrainState) -> Memory:
    """The memory of a training step on each device of the run's mesh.

    Args:
      config: of the run. If `mesh` leaves an axis open, its size is taken as 1.
      state: what `abstract_train_state` returns.

    Raises:
      ConfigError: the mesh does not divide the batch or some parameters.
    """
    model, sizes = config.model, mesh_sizes(config.mesh)
    rows, length = config.microbatch_size, config.data.segment_length
    check_batch_size(rows, list(sizes.values()))
    mesh = AbstractMesh(tuple(sizes.values()), tuple(sizes))
    shards = batch_shards(mesh)
    kept = _kept_for_backward(config, state.model)
    size = rows * length * model.vocab_size
    logits = [x for x in kept if x.size == size and x.shape[-1] == model.vocab_size]
    if isinstance(model, ModelConfig) and model.logits_by_window:
        window = Shape((rows, model.window, model.vocab_size), jnp.float32)
        logits = [window, window]
        # The forward pass already computes the gradient of the embedding, which is counted below.
        kept = [x for x in kept if x.shape != (model.vocab_size, model.model_size)]
    sharded = with_shardings(state, train_state_sharding(mesh, state))
    parameters = device_bytes(sharded.model)
    return Memory(
        parameters=parameters,
        optimizer_state=device_bytes(sharded.optimizer),
        gradients=parameters * (2 if config.training.accumulate_steps > 1 else 1),
        carried_state=device_bytes(sharded.carried),
        activations=array_bytes([x for x in kept if x not in logits]) // shards,
        logits=array_bytes(logits) // shards,
        computed_again=array_bytes(_kept_by_one_layer(config)) // shards,
    )


def array_bytes(tree: Any) -> int:
    """The bytes of all arrays of a tree, except random keys."""
    return sum(
        leaf.size * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
        if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    )


def device_bytes(tree: Any) -> int:
    """`array_bytes` on each of the devices that the arrays are sharded over."""

    def shard(array: Any) -> Any:
        return Shape(array.sharding.shard_shape(array.shape), array.dtype)

    return array_bytes(jax.tree.map(shard, tree))


def mesh_sizes(mesh: MeshConfig) -> dict[str, int]:
    """The number of devices along each mesh axis; 1 for the axis of all that are left."""
    return {axis: max(size, 1) for axis, size in dataclasses.asdict(mesh).items()}


def _kept_for_backward(config: ExperimentConfig, model: Model) -> list[Any]:
    shape = (config.microbatch_size, config.data.segment_length)
    carried = jax.eval_shape(lambda model: model.initial_state(shape[0]), model)
    tokens, mask = Shape(shape, jnp.int32), Shape(shape, jnp.bool_)
    batch = Batch(tokens, tokens, mask, Shape(shape[:1], jnp.bool_))
    clear = config.training.clear_states

    def loss(model, rest, key):
        carried, batch = rest
        return segment_loss(model, carried, batch, dropout_key=key, clear_states=clear)[0]

    return _residuals(config, loss, model, (carried, batch))


def _kept_by_one_layer(config: ExperimentConfig) -> list[Any]:
    """Shapes of the arrays that `model.remat` computes again at a time: those that a layer keeps.

    It is a recurrent layer if there is any.
    """
    if config.model.remat == "none":
        return []
    shape = (config.microbatch_size, config.data.segment_length)
    has_stack = isinstance(config.model, ModelConfig)
    changes: dict[str, Any] = {"num_layers": 1, "remat": "none"}
    inputs = Shape(shape, jnp.int32)
    if has_stack:
        recurrent = (0,) if config.model.recurrent_layers else ()
        changes |= {"recurrent_layers": recurrent, "feedback": False}
        inputs = Shape((*shape, config.model.model_size), jnp.dtype(config.model.dtype))
    model = abstract_model(dataclasses.replace(config.model, **changes))
    state = jax.eval_shape(lambda model: model.initial_state(shape[0]), model)

    def run(model_and_inputs, state, key):
        model, inputs = model_and_inputs
        layer = model.stack if has_stack else model.features
        return layer(inputs, state, dropout_key=key)[0]

    return _residuals(config, run, (model, inputs), state)


def _residuals(config: ExperimentConfig, function: Callable, first: Any, rest: Any) -> list[Any]:
    """Shapes that the gradient of `function(first, rest, dropout_key)` for `first` keeps.

    The arguments themselves are left out.
    """
    key = jax.eval_shape(lambda: jax.random.key(0)) if config.model.uses_dropout else None

    def keep(first, rest, key):
        _, backward = jax.vjp(lambda first: function(first, rest, key), first)
        given = {id(leaf) for leaf in jax.tree.leaves((first, rest, key))}
        kept = {id(leaf): leaf for leaf in jax.tree.leaves(backward)}
        return [leaf for name, leaf in kept.items() if name not in given]

    return jax.eval_shape(keep, first, rest, key)


def describe(config: ExperimentConfig) -> str:
    """Parameters, memory and tokens of a run, as text for a screen.

    Raises:
      ConfigError: the mesh does not divide the batch or some parameters.
    """
    state = abstract_train_state(config)
    counts = {name: count for name, count in count_components(state.model).items() if count}
    counts["total"] = count_parameters(state.model)
    counts["total without embedding"] = count_parameters(state.model, embedding=False)
    memory = estimate_memory(config, state)
    gigabytes = memory._asdict() | {"total": sum(memory)}
    step = config.data.batch_size * config.data.segment_length
    tokens = {"a step": step, "the whole run": step * config.training.num_steps}
    axes = " x ".join(f"{axis} {size}" for axis, size in vars(config.mesh).items() if size > 1)
    device = f"a device of {axes}" if axes else "one device"
    texts = [
        _table("parameters", {name: f"{count:,}" for name, count in counts.items()}),
        _table(
            f"memory on {device}, estimated, in GB",
            {name.replace("_", " "): f"{size / 1e9:,.3f}" for name, size in gigabytes.items()},
        ),
        _table("tokens", {name: f"{count:,}" for name, count in tokens.items()}),
    ]
    sharded = describe_sharding(mesh_sizes(config.mesh), named_parameters(state.model))
    if sharded:
        texts.insert(1, _table("parameters along the axes of the mesh", sharded, align="<"))
    return "\n".join(texts)


def _table(title: str, rows: Mapping[str, str], align: str = ">") -> str:
    names, values = (max(map(len, column)) for column in (rows, rows.values()))
    texts = (f"  {name:{names}}  {value:{align}{values}}" for name, value in rows.items())
    return "\n".join([title, *(text.rstrip() for text in texts), ""])
