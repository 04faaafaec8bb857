"""Kernels for Hopper GPUs: right where a CPU interprets them, and compiled for a GPU elsewhere."""

import functools
import json
import os
import subprocess
import sys
from importlib.util import find_spec

import jax
import pytest

from block_recurrent.model.attention import hopper, reference
from tests.helpers import assert_close
from tests.interpreter import python
from tests.model.attention.arguments import (
    RATE,
    values_and_gradients,
    window_arguments,
)

interpreted = pytest.mark.skipif(
    jax.__version_info__ < (0, 12),
    reason="jax 0.12 (Python 3.12) is the first whose interpreter knows what the kernels use",
)
compiled_for_gpus = pytest.mark.skipif(
    not any(find_spec(f"jax_cuda{version}_plugin") for version in (12, 13)),
    reason="the compiler for NVIDIA's GPUs is not installed; pip install the extra 'cuda'",
)
COMPILE = """
import json, sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from block_recurrent.lab.compile.target import COMPILER_OPTIONS, make_target
from block_recurrent.model.attention import hopper
from block_recurrent.model.state import KeysValues

window, size, rate = json.loads(sys.argv[1])
mesh = Mesh(np.asarray(make_target("h100:1").devices), ("data",))

def array(*shape, dtype="bfloat16"):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec()))

own, before = array(2, 2, window, 4, size), array(2, window, 4, size)
key = jax.eval_shape(lambda: jax.random.key(0)).update(sharding=own.sharding)

@jax.jit
def values_and_gradients(key, *arguments):
    def attend(*arguments):
        return hopper.attend_window(*arguments, dropout_rate=rate, dropout_key=key)
    output, pull = jax.vjp(attend, *arguments)
    return output, pull(output)

arguments = own, KeysValues(own, own), KeysValues(before, before), array(4, window, dtype="float32")
lowered = values_and_gradients.lower(key, *arguments)
lowered.compile(compiler_options=COMPILER_OPTIONS["cuda"])
"""


SHARDED = """
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from block_recurrent.model.attention import hopper
from block_recurrent.model.state import KeysValues

mesh = jax.make_mesh((2, 2), ("data", "tensor"), (jax.sharding.AxisType.Auto,) * 2)

def array(*shape, axes, dtype="bfloat16"):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec(*axes)))

own = array(4, 2, 128, 2, 64, axes=("data", None, None, "tensor"))
before = array(4, 128, 2, 64, axes=("data", None, "tensor"))
bias = array(2, 128, axes=("tensor",), dtype="float32")

def values_and_gradients(*arguments):
    output, pull = jax.vjp(hopper.attend_window, *arguments)
    return output, pull(output)

arguments = own, KeysValues(own, own), KeysValues(before, before), bias
print(jax.jit(values_and_gradients).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text())
"""


# Not compiled as one program, in which two kernels that are interpreted wait for each other.
values_and_gradients_apart = values_and_gradients.__wrapped__


def attend_window(*arguments, **options):
    """The kernels, interpreted, with every access of memory checked for races."""
    from jax.experimental.pallas import mosaic_gpu

    parameters = mosaic_gpu.InterpretGPUParams(detect_races=True)
    return hopper.attend_window(*arguments, **options, interpret=parameters)


@interpreted
@pytest.mark.parametrize(
    "dtype, window, lanes, heads, size",
    [
        ("float32", 128, (2, 2), 2, 64),
        ("bfloat16", 128, (1, 2), 1, 128),
        ("float32", 256, (1, 1), 1, 64),
    ],
)
def test_a_window_is_that_of_the_reference(dtype, window, lanes, heads, size):
    arguments = window_arguments(window, dtype, lanes, heads, size)
    arguments = jax.tree.map(lambda x: (x / 4).astype(x.dtype), arguments)
    actual = values_and_gradients_apart(attend_window, *arguments)
    assert actual[0].dtype == dtype
    expected = values_and_gradients(reference.attend_window, *arguments)
    assert_close(actual, expected, {"float32": 1e-5, "bfloat16": 6e-2}[dtype])


@interpreted
@pytest.mark.parametrize("window, lanes, detached", [(128, 2, False), (256, 1, True)])
def test_dropout_falls_where_it_does_in_the_reference(window, lanes, detached):
    """And no gradient reaches a window before a block that is detached."""
    arguments = window_arguments(window, lanes=(lanes, 2), heads=lanes, size=64)
    options = {"detached": detached, "dropout_rate": RATE, "dropout_key": jax.random.key(3)}
    actual = values_and_gradients_apart(functools.partial(attend_window, **options), *arguments)
    expected = functools.partial(reference.attend_window, **options)
    assert_close(actual, values_and_gradients(expected, *arguments))


@interpreted
@pytest.mark.slow
@pytest.mark.parametrize("window", [512, 2048])
def test_large_windows(window):
    arguments = window_arguments(window, lanes=(1, 1), heads=1, size=64)
    assert_close(attend_window(*arguments), reference.attend_window(*arguments))


@pytest.mark.parametrize(
    "window, size, rate", [(128, 64, RATE), (512, 128, 0.0), (2048, 128, RATE)]
)
def test_kernels_are_made_for_gpus_without_one(window, size, rate):
    """Every kernel becomes code for a GPU on any machine, but for NVIDIA's assembler."""
    arguments = window_arguments(window, "bfloat16", size=size)
    shapes = jax.eval_shape(lambda: arguments)
    options = {"dropout_rate": rate, "dropout_key": jax.random.key(0)}
    attend = functools.partial(hopper.attend_window, **options)
    traced = jax.jit(functools.partial(values_and_gradients, attend)).trace(*shapes)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("custom_call @mosaic_gpu") == 4


def test_devices_take_their_own_rows_and_heads_and_sum_the_gradient_of_the_bias():
    """Each of four devices attends with a kernel, and computes three kinds of gradients."""
    text = python(SHARDED, devices=4)
    kernels = [line for line in text.splitlines() if "mosaic_gpu" in line]
    assert len(kernels) == 4
    assert all("tensor<2x256x1x64xbf16>" in line for line in kernels)
    assert text.count("all_reduce") == 1


@compiled_for_gpus
@pytest.mark.parametrize(
    "window, size, rate", [(512, 128, 0.0), (512, 128, 0.05), (128, 64, 0.05), (2048, 128, 0.05)]
)
def test_registers_suffice(window, size, rate):
    """NVIDIA's assembler spills at most three registers of one kernel, and none without dropout."""
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, json.dumps([window, size, rate])],
        env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "MOSAIC_GPU_DUMP_PTXAS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    said = done.stdout + done.stderr
    assert "serialized" not in said  # products that wait for each other
    lines = [line for line in said.splitlines() if "stack frame" in line]
    stored = [int(line.split("bytes stack frame, ")[1].split()[0]) for line in lines]
    assert len(stored) == 4
    assert sum(stored) <= (12 if rate else 0)
