"""Settings of every test: strict dtypes and ranks, exact products, quick compilation."""

import os
import signal
import subprocess
import sys

import jax
import pytest

# A program in one piece, and XLA's older code generator for CPUs, compile in half the time. Not
# every version has both generators.
_QUICK = ("--xla_cpu_parallel_codegen_split_count=1", "--xla_cpu_use_fusion_emitters=false")


def _compile_quickly() -> None:
    """Here and in every program that a test starts, those of pytest-xdist among them."""
    for flag in _QUICK:
        flags = os.environ.get("XLA_FLAGS", "")
        if flag in flags:
            continue
        flags = f"{flags} {flag}".strip()
        begin = [sys.executable, "-c", "import jax; jax.devices()"]
        trial = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
        if subprocess.run(begin, env=trial, stderr=subprocess.DEVNULL).returncode == 0:
            os.environ["XLA_FLAGS"] = flags


_compile_quickly()
# What a shell starts in the background ignores Ctrl-C, and so would every program of a test.
signal.signal(signal.SIGINT, signal.default_int_handler)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update(
    "jax_default_matmul_precision", "highest"
)  # an accelerator's default is not float32
jax.config.update(
    "jax_disable_most_optimizations", True
)  # the tests compile more than they compute


@pytest.fixture(scope="module", autouse=True)
def compiled_programs_are_dropped():
    """A file's are up to ten thousand pieces of memory; Linux allows a process 65,530."""
    yield
    jax.clear_caches()
