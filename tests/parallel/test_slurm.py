"""The start script of SLURM, on a SLURM of its own."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.interpreter import ROOT
from tests.quick_runs import STEPS, write_corpus, write_gin
from tests.soak.processes import free_port

DAEMONS = ("slurmctld", "slurmd")
NEEDED = (*DAEMONS, "sbatch", "sinfo")
MISSING = [name for name in NEEDED if not shutil.which(name)]
pytestmark = [
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
    pytest.mark.skipif(os.getuid() != 0, reason="slurmd is for root"),
]
SETTINGS = """\
ClusterName=one
SlurmctldHost=localhost(127.0.0.1)
AuthType=auth/none
CryptoType=crypto/none
SlurmUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmdParameters=config_overrides
ProctrackType=proctrack/pgid
TaskPlugin=task/none
MpiDefault=none
NodeName=localhost NodeAddr=127.0.0.1 CPUs=4
PartitionName=all Nodes=ALL Default=YES
"""


@pytest.fixture
def slurm(tmp_path) -> Iterator[dict[str, str]]:
    """The environment of a cluster of one node."""
    folder = tmp_path / "slurm"
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    settings = folder / "slurm.conf"
    settings.write_text(SETTINGS.format(folder=folder, ports=(free_port(), free_port())))
    environment = os.environ | {"SLURM_CONF": str(settings), "JAX_PLATFORMS": "cpu"}
    try:
        subprocess.run(["slurmctld", "-c"], env=environment, check=True)
        subprocess.run(["slurmd", "-N", "localhost"], env=environment, check=True)
        wait_for_node(environment)
        yield environment
    finally:
        for name in reversed(DAEMONS):
            stop(folder / f"{name}.pid")


def wait_for_node(environment: dict[str, str]) -> None:
    end = time.monotonic() + 300
    while time.monotonic() < end:
        found = subprocess.run(["sinfo", "-h", "-o", "%T"], env=environment, capture_output=True)
        if found.stdout.strip() == b"idle":
            return
        time.sleep(0.2)
    raise TimeoutError("the node of the cluster is not idle")


def stop(pid: Path) -> None:
    if pid.exists():
        subprocess.run(["kill", pid.read_text().strip()], check=False)


def test_the_script_trains_with_two_processes(slurm, tmp_path):
    corpus = write_corpus(tmp_path / "corpus")
    gin = write_gin(tmp_path / "run.gin", {"data.path": str(corpus), "data.batch_size": 4})
    output, workdir = tmp_path / "output.txt", tmp_path / "run"
    options = ["--nodes=1", "--ntasks-per-node=2", "--gpus-per-node=0", "--cpus-per-task=1"]
    script = [ROOT / "experiments/launch/slurm.sh", f"--gin_file={gin}", f"--workdir={workdir}"]
    command = ["sbatch", "--wait", f"--output={output}", *options, *map(str, script)]
    python = {"PYTHON": sys.executable}
    ended = subprocess.run(command, env=slurm | python, cwd=ROOT, capture_output=True, timeout=600)
    said = output.read_text()
    assert ended.returncode == 0, said
    assert f"step {STEPS}: validation" in said and said.count("parameters: ") == 1
    assert (workdir / "checkpoints" / str(STEPS)).is_dir()
