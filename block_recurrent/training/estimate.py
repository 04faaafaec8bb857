"""What a run would be: its parameters and memory, without data or computation."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import AbstractMesh

from block_recurrent.config import (
    AnyModelConfig,
    ExperimentConfig,
    MeshConfig,
    ModelConfig,
)
from block_recurrent.data import Batch
from block_recurrent.model.parameters import count_parameters, named_parameters
from block_recurrent.model.protocol import Model
from block_recurrent.model.stack import Stack, part_ranges
from block_recurrent.parallel.mesh import batch_shards, check_batch_size, with_shardings
from block_recurrent.parallel.parameters import describe_sharding
from block_recurrent.training import TrainState
from block_recurrent.training.build import abstract_model, abstract_train_state, build_model
from block_recurrent.training.step import segment_loss, train_state_sharding

Shape: Any = jax.ShapeDtypeStruct


class Memory(NamedTuple):
    """Bytes of a training step on one device.

    Activations, logits and what is computed again are what JAX keeps for the backward pass; not all
    of it is alive at once, and XLA may do with less. Its own temporaries come on top.

    Attributes:
      parameters: the model's parameters.
      optimizer_state: what the optimizer keeps beside the parameters.
      gradients: the gradients of the parameters.
      carried_state: keys, values and recurrent states of every lane.
      activations: what the forward pass keeps, without arrays of the size of the logits.
      logits: kept arrays of the size of the logits; where logits are computed a window at a time,
        those of one window and their gradient.
      computed_again: activations of one layer, where `model.remat` has them computed again.
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
    if isinstance(model.config, ModelConfig):
        return _components_of_parts(model, model.config)
    named = named_parameters(model)
    sizes = {name: array.size for name, array in named.items()}
    layers = sum(size for name, size in sizes.items() if name.startswith("layers."))
    embedding = sizes["embedding"]
    rest = sum(sizes.values()) - embedding - layers
    all_layers = _layers(range(model.config.num_layers))
    return {"embedding": embedding, all_layers: layers, "beside them": rest}


def _components_of_parts(model: Model, config: ModelConfig) -> dict[str, int]:
    named = named_parameters(model)
    counts = {"embedding": named["embedding"].size}
    feedback = 0
    for index, layers in enumerate(part_ranges(config)):
        prefix = f"stack.parts.{index}."
        sizes = {
            name.removeprefix(prefix): array.size
            for name, array in named.items()
            if name.startswith(prefix)
        }
        if layers.start in config.recurrent_indices:
            tokens = sum(
                sizes[name] for name in sizes if name.startswith("layer.cell.token_layer.")
            )
            counts[f"{_layers(layers)}, recurrent: tokens"] = tokens
            counts[f"{_layers(layers)}, recurrent: states"] = sum(sizes.values()) - tokens
        else:
            extra = _attention_to_states(sizes) if config.feedback else 0
            counts[_layers(layers)] = sum(sizes.values()) - extra
            feedback += extra
    return counts | {"feedback": feedback, "final norm": named["norm.scale"].size}


def _layers(layers: range) -> str:
    first, last = layers.start + 1, layers.stop
    return f"layer {first}" if first == last else f"layers {first}-{last}"


def _attention_to_states(sizes: Mapping[str, int]) -> int:
    """Parameters that feedback adds to plain layers, from the sizes of a layer's parameters.

    They are the queries to the states, their scale, and half of the output projection.
    """
    queries = sum(size for name, size in sizes.items() if name.startswith("layers.state_"))
    return queries + sizes["layers.output.kernel"] // 2


def estimate_memory(config: ExperimentConfig, state: TrainState) -> Memory:
    """The memory of a training step from `state`, which `abstract_train_state` returns."""
    data, model = config.data, config.model
    kept = kept_for_backward(config, state)
    size = data.batch_size * data.segment_length * model.vocab_size
    logits = [x for x in kept if x.size == size and x.shape[-1] == model.vocab_size]
    if isinstance(model, ModelConfig) and model.logits_by_window:
        window = Shape((data.batch_size, model.window, model.vocab_size), jnp.float32)
        logits = [window, window]
        # The gradient of the embedding is there from the forward pass on; it is counted as such.
        kept = [x for x in kept if x.shape != (model.vocab_size, model.model_size)]
    return Memory(
        parameters=array_bytes(state.model),
        optimizer_state=array_bytes(state.optimizer),
        gradients=array_bytes(state.model),
        carried_state=array_bytes(state.carried),
        activations=array_bytes([x for x in kept if x not in logits]),
        logits=array_bytes(logits),
        computed_again=array_bytes(kept_again(config)),
    )


def on_a_device(config: ExperimentConfig, state: TrainState, memory: Memory) -> Memory:
    """The memory of a device of the run's mesh, from that of one device alone.

    What is left of the devices counts as one.

    Raises:
      ConfigError: the mesh does not divide the batch or some parameters.
    """
    sizes = mesh_sizes(config.mesh)
    check_batch_size(config.data.batch_size, list(sizes.values()))
    mesh = AbstractMesh(tuple(sizes.values()), tuple(sizes))
    shards = batch_shards(mesh)
    sharded = with_shardings(state, train_state_sharding(mesh, state))
    parameters = device_bytes(sharded.model)
    return Memory(
        parameters=parameters,
        optimizer_state=device_bytes(sharded.optimizer),
        gradients=parameters,
        carried_state=device_bytes(sharded.carried),
        activations=memory.activations // shards,
        logits=memory.logits // shards,
        computed_again=memory.computed_again // shards,
    )


def array_bytes(tree: Any) -> int:
    """How many bytes the arrays of a tree have, random keys not counted."""
    return sum(
        leaf.size * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
        if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    )


def mesh_sizes(mesh: MeshConfig) -> dict[str, int]:
    """How many devices there are along each axis; what is left of the devices counts as one."""
    return {axis: max(size, 1) for axis, size in dataclasses.asdict(mesh).items()}


def device_bytes(tree: Any) -> int:
    """`array_bytes` on each of the devices that the arrays are sharded over."""

    def part(array: Any) -> Any:
        return Shape(array.sharding.shard_shape(array.shape), array.dtype)

    return array_bytes(jax.tree.map(part, tree))


def kept_for_backward(config: ExperimentConfig, state: TrainState) -> list[Any]:
    """Shapes of what the forward pass of a step keeps for the backward pass."""
    shape = (config.data.batch_size, config.data.segment_length)
    tokens, mask = Shape(shape, jnp.int32), Shape(shape, jnp.bool_)
    batch = Batch(tokens, tokens, mask, Shape(shape[:1], jnp.bool_))
    clear = config.training.clear_states

    def loss(model, carried, batch, key):
        return segment_loss(model, carried, batch, dropout_key=key, clear_states=clear)[0]

    return _residuals(loss, state.model, state.carried, batch, _dropout_key(config.model))


def kept_again(config: ExperimentConfig) -> list[Any]:
    """Shapes of what `model.remat` has computed again at a time, what one layer keeps."""
    model, data = config.model, config.data
    if model.remat == "none":
        return []
    if isinstance(model, ModelConfig):
        return kept_in_a_layer(model, data.batch_size, data.segment_length)
    return kept_in_a_baseline_layer(model, data.batch_size, data.segment_length)


def kept_in_a_baseline_layer(config: AnyModelConfig, batch_size: int, length: int) -> list[Any]:
    """Shapes of what a baseline of one layer keeps, without `remat`."""
    config = dataclasses.replace(config, num_layers=1, remat="none")
    model = abstract_model(config)
    state = jax.eval_shape(lambda: build_model(config, nnx.Rngs(0)).initial_state(batch_size))
    tokens = Shape((batch_size, length), jnp.int32)

    def run(model, tokens, state, key):
        return model.features(tokens, state, dropout_key=key)[0]

    return _residuals(run, model, tokens, state, _dropout_key(config))


def kept_in_a_layer(config: ModelConfig, batch_size: int, length: int) -> list[Any]:
    """Shapes of what one layer keeps, a recurrent one if there is any, without `remat`."""
    recurrent = (0,) if config.recurrent_layers else ()
    config = dataclasses.replace(
        config, num_layers=1, recurrent_layers=recurrent, feedback=False, remat="none"
    )

    def build():
        stack = Stack(config, rngs=nnx.Rngs(0))
        return stack, stack.initial_state(batch_size)

    stack, state = jax.eval_shape(build)
    x = Shape((batch_size, length, config.model_size), jnp.dtype(config.dtype))

    def run(stack_and_x, state, key):
        stack, x = stack_and_x
        return stack(x, state, dropout_key=key)[0]

    return _residuals(run, (stack, x), state, _dropout_key(config))


def _dropout_key(config: AnyModelConfig) -> Any:
    return jax.eval_shape(lambda: jax.random.key(0)) if config.dropout > 0 else None


def _residuals(function: Callable, first: Any, *rest: Any) -> list[Any]:
    """Shapes that the gradient of `function` for its first argument keeps, arguments left out."""

    def keep(first, *rest):
        _, backward = jax.vjp(lambda first: function(first, *rest), first)
        given = {id(leaf) for leaf in jax.tree.leaves((first, rest))}
        kept = {id(leaf): leaf for leaf in jax.tree.leaves(backward)}
        return [leaf for name, leaf in kept.items() if name not in given]

    return jax.eval_shape(keep, first, *rest)


def describe(config: ExperimentConfig) -> str:
    """Parameters, memory and tokens of a run, as text for a screen."""
    state = abstract_train_state(config)
    counts = count_components(state.model)
    sizes = {name: f"{count:,}" for name, count in counts.items() if count}
    for name, embedding in (("total", True), ("total without embedding", False)):
        sizes[name] = f"{count_parameters(state.model, embedding=embedding):,}"
    memory = on_a_device(config, state, estimate_memory(config, state))
    gigabytes = {
        name.replace("_", " "): f"{size / 1e9:,.3f}" for name, size in memory._asdict().items()
    }
    gigabytes["total"] = f"{sum(memory) / 1e9:,.3f}"
    step = config.data.batch_size * config.data.segment_length
    tokens = {
        "a step": f"{step:,}",
        "the whole run": f"{step * config.training.num_steps:,}",
    }
    shared = describe_sharding(mesh_sizes(config.mesh), named_parameters(state.model))
    tables = {
        "parameters": sizes,
        f"memory on {_device(config.mesh)}, estimated, in GB": gigabytes,
        "tokens": tokens,
    }
    texts = [_table(title, rows) for title, rows in tables.items()]
    if shared:
        texts.insert(1, _table("parameters along the axes of the mesh", shared, align="<"))
    return "\n".join(texts)


def _device(mesh: MeshConfig) -> str:
    sizes = [f"{axis} {size}" for axis, size in vars(mesh).items() if size > 1]
    return f"a device of {' x '.join(sizes)}" if sizes else "one device"


def _table(title: str, rows: Mapping[str, str], align: str = ">") -> str:
    names, values = (max(map(len, column)) for column in (rows, rows.values()))
    texts = (f"  {name:{names}}  {value:{align}{values}}" for name, value in rows.items())
    lines = (f"{text.rstrip()}\n" for text in texts)
    return f"{title}\n{''.join(lines)}"
