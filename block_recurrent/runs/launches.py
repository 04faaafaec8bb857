"""What was running when a run was begun or continued."""

import importlib.metadata
import json
import platform
import shlex
import subprocess
import sys
import time
from pathlib import Path

import jax

LAUNCHES = "launches.jsonl"  # in the work directory
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "block_recurrent")


def record_launch(workdir: Path) -> None:
    """Appends to `launches.jsonl` what is running: command, versions, commit and devices."""
    launch = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": shlex.join(sys.argv),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "commit": _commit(),
        "devices": [device.device_kind for device in jax.devices()],
        "host": {"system": platform.platform(), "name": platform.node()},
    }
    with (workdir / LAUNCHES).open("a") as file:
        file.write(json.dumps(launch) + "\n")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the program's own repository, marked where files differ from it."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    command += ["--abbrev=40", "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None
