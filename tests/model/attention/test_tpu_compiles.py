"""The kernels compile for TPUs that are not there, by the TPU's own compiler."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

pytestmark = pytest.mark.skipif(
    find_spec("libtpu") is None,
    reason="the TPU's compiler is not installed; pip install the extra 'tpu'",
)
# Without these the runtime looks for its own machine, and lets one process at a time have it.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "",  # the tests' own are for a CPU; the TPU's compiler does not know them
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
}
COMPILE = """
import functools, json, sys
import jax, jax.numpy as jnp, numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from block_recurrent.model.attention.tpu import heads, kernels
from block_recurrent.model.state import KeysValues

topology, devices, function, window, states, size, dtype, rate = json.loads(sys.argv[1])
devices = topologies.get_topology_desc(topology, "tpu").devices[:devices]
mesh = Mesh(np.asarray(devices), ("lanes",))
lanes, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (["lanes"], []))

def array(*shape):
    return jax.ShapeDtypeStruct((len(devices), *shape, 8, size), dtype, sharding=lanes)

current, previous = (KeysValues(x, x) for x in (array(4, window), array(window)))
bias = jax.ShapeDtypeStruct((8, window), "float32", sharding=whole)
key = jax.eval_shape(lambda: jax.random.key(0)).update(sharding=whole)
if function == "window":
    attend, arguments = kernels.attend_window, (array(4, window), current, previous, bias)
elif function == "heads":
    projected = jax.ShapeDtypeStruct((len(devices), window, 24 * size), dtype, sharding=lanes)
    scale = jax.ShapeDtypeStruct((8,), "float32", sharding=whole)
    arguments = (projected, scale)

    def attend(projected, scale, **dropout):
        return heads.split_heads(projected, [1.0, None, scale], 8)
else:
    arguments = (array(4, states), current)

    def attend(queries, context, **dropout):
        return kernels.attend(queries, context)

@jax.jit
def values_and_gradients(key, *arguments):
    function = functools.partial(attend, dropout_rate=rate, dropout_key=key)
    output, pull = jax.vjp(function, *arguments)
    return output, pull(output)

text = values_and_gradients.lower(key, *arguments).compile().as_text()
names = ("attention_forward", "attention_backward", "heads_forward", "heads_backward")
names += ("all-reduce(", "all-gather(")
print(json.dumps({name: sum(name in line for line in text.splitlines() if " = " in line)
                  for name in names}))
"""


def compiled(topology, *, devices=1, function="window", window=512, states=512, size=128, **more):
    """How many instructions of each kind the program has."""
    fields = [topology, devices, function, window, states, size]
    fields += [more.get("dtype", "bfloat16"), more.get("rate", 0.0)]
    command = [sys.executable, "-c", COMPILE, json.dumps(fields)]
    done = subprocess.run(command, env=os.environ | ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    "topology, settings",
    [
        ("v5e:2x2", {}),
        ("v5p:2x2x1", {}),
        ("v5e:2x2", {"rate": 0.1}),
        ("v5e:2x2", {"window": 2048}),
        ("v5p:2x2x1", {"window": 2048}),
        ("v5e:2x2", {"function": "states"}),
        ("v5p:2x2x1", {"function": "states", "window": 4096}),
        ("v5e:2x2", {"window": 128, "size": 64, "dtype": "float32", "rate": 0.1}),
        ("v5e:2x2", {"window": 256, "size": 32}),
        # These have 16 MB on the chip; the sizes are the largest that `SMALL_CHIPS` has.
        ("v4:2x2x1", {"dtype": "float32", "rate": 0.1}),
        ("v4:2x2x1", {"window": 1024, "rate": 0.1}),
        ("v4:2x2x1", {"window": 256, "dtype": "float32", "rate": 0.1}),
        ("v4:2x2x1", {"function": "states", "dtype": "float32"}),
        ("v4:2x2x1", {"function": "states", "window": 1024, "states": 1024}),
        ("v3:2x2", {"dtype": "float32", "rate": 0.1}),
        ("v2:2x2", {"function": "states", "dtype": "float32"}),
    ],
)
def test_forward_and_backward_compile(topology, settings):
    found = compiled(topology, **settings)
    assert found["attention_forward"] > 0
    assert found["attention_backward"] > 0


@pytest.mark.parametrize(
    "topology, settings",
    [("v5e:2x2", {}), ("v5p:2x2x1", {"window": 4096}), ("v5e:2x2", {"dtype": "float32"})],
)
def test_heads_compile(topology, settings):
    found = compiled(topology, function="heads", **settings)
    assert found["heads_forward"] > 0
    assert found["heads_backward"] > 0


def test_devices_exchange_gradients_of_parameters_and_nothing_else():
    for function in ("window", "heads"):
        found = compiled("v5e:2x2", devices=4, function=function)
        assert (found["all-reduce("], found["all-gather("]) == (1, 0)
