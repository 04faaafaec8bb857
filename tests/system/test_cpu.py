"""Programs use every core, and keep their memory, unless told otherwise."""

import os
import subprocess
import sys

import pytest

from block_recurrent.system.cpu import SWITCH, number_of_cores

# Allocates and frees as a step of training does, and counts the page faults of the last time.
PROGRAM = """
import resource, sys
import jax, jax.numpy as jnp
from block_recurrent.system.cpu import prepare_cpu
prepare_cpu()
x = jnp.ones((1024, 1024))
step = jax.jit(lambda x: jnp.sort(x @ x, axis=0) @ x)
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    jax.block_until_ready([step(x) for _ in range(20)])
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(jax.device_count(), faults())
"""


def run(**environment):
    inherited = {name: value for name, value in os.environ.items() if name != SWITCH}
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=inherited | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    devices, faults = map(int, process.stdout.split())
    return devices, faults


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt is glibc's")
def test_cores_are_devices_and_memory_is_kept():
    devices, faults = run()
    assert devices == min(number_of_cores(), 16)
    without_devices, without_faults = run(**{SWITCH: "off"})
    assert without_devices == 1
    assert faults < 1000 < without_faults


@pytest.mark.parametrize(
    "name, value",
    [("JAX_NUM_CPU_DEVICES", "3"), ("XLA_FLAGS", "--xla_force_host_platform_device_count=3")],
)
def test_what_the_user_has_set_stays(name, value):
    assert run(**{name: value})[0] == 3
