"""Temporaries of a step cause page faults only once, not in every step."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from block_recurrent.system.devices import SWITCH, compiler_options, device_memory

# Allocates and frees blocks of 48 MB, as a step of training does, and counts page faults once warm.
# Each thread that allocates has memory of its own: the first time of one may come late.
PROGRAM = """
import resource
import jax, jax.numpy as jnp
from block_recurrent.system.devices import keep_freed_memory
keep_freed_memory()
x = jnp.ones((3072, 4096))
step = jax.jit(lambda x: jnp.sin(x))
def faults(steps):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(steps):
        jax.block_until_ready(step(x))
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults(5)
print(faults(30))
"""


def faults(**environment):
    inherited = {name: value for name, value in os.environ.items() if name != SWITCH}
    command = [sys.executable, "-c", PROGRAM]
    process = subprocess.run(
        command, env=inherited | environment, capture_output=True, text=True, check=True
    )
    return int(process.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the setting is glibc's")
@pytest.mark.slow
def test_freed_memory_is_kept_unless_switched_off():
    # Thirty results of 12,288 pages each, where pages have 4 KB.
    assert 10 * faults() < faults(**{SWITCH: "off"})


def test_the_memory_of_a_device_is_what_jax_may_use_and_that_of_a_cpu_its_share_of_the_machines():
    def devices(*stats):
        return [SimpleNamespace(memory_stats=lambda found=found: found) for found in stats]

    assert device_memory(devices({"bytes_limit": 3e9}, {"bytes_limit": 2e9})) == 2e9
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert device_memory(devices(None, None)) == machine / 2


@pytest.mark.parametrize("kind", ["TPU v4", "TPU v5 lite", "TPU v5", "TPU v6 lite"])
def test_a_step_has_larger_tiles_on_a_tpu_v5_unless_the_user_says_how_large(monkeypatch, kind):
    monkeypatch.delenv("LIBTPU_INIT_ARGS", raising=False)
    options = compiler_options("tpu", kind)
    assert (options != {}) == ("v5" in kind)
    assert compiler_options("cpu", kind) == {}
    monkeypatch.setenv("LIBTPU_INIT_ARGS", f"--{''.join(options)}=16384")
    assert compiler_options("tpu", kind) == {}
