"""Compares the implementations of attention on this machine, and says which to use.

    block-recurrent selftest

Each implementation computes attention to windows and to states, and its gradients, at the sizes of
the paper's layers, two batch rows of two windows. What it computes is compared with plain
arithmetic ("xla") in float32 with exact products. The error of an array is the root of its mean
square, relative to that of the exact values. Every implementation runs with and without dropout;
the key is the same, and so are the masks. An implementation is right if its largest error is at
most twice that of plain arithmetic in the same dtype. Status 1 means that one is wrong. It takes a
few minutes.
"""

import dataclasses
import functools
import logging
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from block_recurrent.command_line.failures import reported
from block_recurrent.command_line.parser import Parser
from block_recurrent.config import LayerConfig
from block_recurrent.lab.benchmark.timing import time_in_turn
from block_recurrent.lab.tables.layout import TextTable
from block_recurrent.model.attention import (
    Attention,
    AttentionImpossible,
    attention_name,
    choose_attention,
)
from block_recurrent.model.state import KeysValues
from block_recurrent.system.devices import check_device

ROWS, BLOCKS = 2, 2
ROUNDS = 5
MOST_ERROR = 2.0  # relative to that of plain arithmetic in the same dtype
LEAST_ERROR = 1e-5  # below which an error does not count
RATES = (0.0, 0.1)  # of dropout
CLOSE = 1.1  # times of less than this ratio are the same
DTYPES: tuple[Any, ...] = ("float32", "bfloat16")
NAMES = ("xla", "tiled", "cudnn", "pallas")
_log = logging.getLogger(__name__)


class Result(NamedTuple):
    """What was found of one implementation in one dtype.

    Attributes:
      name: as in `model.attention`.
      dtype: of activations.
      rate: of dropout of attention.
      refused: why this machine or the sizes rule it out; then the others mean nothing.
      error: the largest of an array, relative to the exact values.
      right: whether that is small enough.
      milliseconds: of forward and backward pass.
    """

    name: str
    dtype: str
    rate: float = 0.0
    refused: str = ""
    error: float = 0.0
    right: bool = True
    milliseconds: float = 0.0


def compare(config: LayerConfig) -> list[Result]:
    """Compares all implementations for a layer in its dtype; plain arithmetic comes first."""
    found, refused = {}, {}
    for name in NAMES:
        try:
            found[name] = choose_attention(dataclasses.replace(config, attention=name))
        except AttentionImpossible as error:
            refused[name] = str(error.__cause__)
    if jax.default_backend() == "cpu" and found.pop("pallas", None):
        refused["pallas"] = "is interpreted on a CPU, which is for tests"
    arguments, rate = _arguments(config), config.attention_rate
    exact = _exact(found["xla"], rate, arguments)
    runs: dict[str, Callable[[], Any]] = {
        name: functools.partial(_compute, attention, rate, *arguments)
        for name, attention in found.items()
    }
    errors = {name: _error(run(), exact) for name, run in runs.items()}
    most = max(MOST_ERROR * errors["xla"], LEAST_ERROR)
    seconds = time_in_turn(runs, ROUNDS)
    computed = [
        Result(
            name,
            config.dtype,
            rate,
            error=errors[name],
            right=bool(errors[name] <= most),  # an error that is not a number is not
            milliseconds=statistics.median(seconds[name]) * 1e3,
        )
        for name in runs
    ]
    return computed + [Result(name, config.dtype, rate, why) for name, why in refused.items()]


def _arguments(config: LayerConfig) -> tuple[Any, ...]:
    """Random operands in the dtype of a layer; queries and keys have the length 1."""
    heads = config.num_heads, config.head_size
    blocks = ROWS, BLOCKS, config.window, *heads
    shapes = {"queries": blocks, "keys": blocks, "values": blocks}
    shapes |= {"keys_before": (ROWS, config.window, *heads)}
    shapes |= {"values_before": shapes["keys_before"], "bias": (config.num_heads, config.window)}
    shapes |= dict.fromkeys(("own", "its_values"), (ROWS, BLOCKS, config.num_states, *heads))
    draw = np.random.default_rng(0)
    x = {name: draw.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    for name in ("queries", "keys", "keys_before", "own"):
        x[name] /= np.linalg.norm(x[name], axis=-1, keepdims=True)
    bias = jnp.asarray(x.pop("bias"))
    queries, *rest = (jnp.asarray(array, config.dtype) for array in x.values())
    return queries, KeysValues(*rest[:2]), KeysValues(*rest[2:4]), KeysValues(*rest[4:]), bias


@functools.partial(jax.jit, static_argnums=(0, 1))
def _compute(attention: Attention, rate: float, *arguments: Any) -> Any:
    """Attention to windows and to states, and the gradients of all operands."""
    dropout = {"dropout_rate": rate, "dropout_key": jax.random.key(0) if rate else None}

    def attend(queries: Array, *others: Any) -> tuple[Array, Array]:
        current, previous, states, bias = others
        seen = attention.attend_window(queries, current, previous, bias, **dropout)
        return seen, attention.attend(queries, states)

    outputs, pull = jax.vjp(attend, *arguments)
    return outputs, pull(outputs)


def _exact(attention: Attention, rate: float, arguments: Any) -> Any:
    """What an implementation should compute, by plain arithmetic in float32."""
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), arguments)
    with jax.default_matmul_precision("highest"):
        return _compute(attention, rate, *wide)


def _error(found: Any, exact: Any) -> float:
    def relative(x: Array, y: Array) -> float:
        return float(jnp.linalg.norm(x.astype(jnp.float32) - y) / jnp.linalg.norm(y))

    # NumPy's maximum of numbers and "not a number" is that, Python's may be any of them.
    return float(np.max(jax.tree.leaves(jax.tree.map(relative, found, exact))))


def describe(results: Sequence[Result], auto: Mapping[tuple[str, float], str]) -> str:
    """The results as a table, with what to use.

    `auto` has what "auto" chooses for each dtype and rate of dropout.
    """
    cells = []
    for name, dtype, rate, refused, error, right, milliseconds in results:
        found = (
            ["", "", refused]
            if refused
            else [f"{error:.1e}", f"{milliseconds:,.1f}", "right" if right else "WRONG"]
        )
        cells.append([name, dtype, "yes" if rate else "no", *found])
    columns = ("attention", "dtype", "dropout", "error", "ms", "")
    lines = [TextTable(columns, cells, ("attention", "dtype", "dropout", "")).text(), ""]
    for dtype, rate in dict.fromkeys((result.dtype, result.rate) for result in results):
        right = {
            each.name: each.milliseconds
            for each in results
            if (each.dtype, each.rate) == (dtype, rate) and each.right and not each.refused
        }
        best, chosen = min(right, key=right.__getitem__), auto[dtype, rate]
        where = f"{dtype}, {'with' if rate else 'without'} dropout of attention"
        if chosen in right and right[chosen] <= CLOSE * right[best]:
            lines.append(f"{where}: 'auto' chooses {chosen!r}, and none is faster")
        else:
            lines.append(f"{where}: 'auto' chooses {chosen!r}; set model.attention = {best!r}")
    return "\n".join(lines)


@reported
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    Parser(description=__doc__).parse_args(argv)
    check_device()
    _log.info("comparing on %s ...", jax.devices()[0].device_kind)
    layers = [LayerConfig(dtype=dtype, dropout=rate) for dtype in DTYPES for rate in RATES]
    results = [each for layer in layers for each in compare(layer)]
    auto = {(layer.dtype, layer.attention_rate): attention_name(layer) for layer in layers}
    print(describe(results, auto))
    return 0 if all(result.right for result in results) else 1
