"""What the programs know of a work directory: its configuration, launches and parameters."""

import dataclasses
import importlib.metadata
import json
import platform
import shlex
import subprocess
import sys
import time
from pathlib import Path

import jax

from block_recurrent import LanguageModel
from block_recurrent.config import ExperimentConfig
from block_recurrent.gin_files import ConfigError, load, to_gin
from block_recurrent.runs.checkpoints import CheckpointError, Checkpoints
from block_recurrent.system.files import PARTIAL, write_whole
from block_recurrent.training.build import abstract_model

CONFIG = "config.gin"
LAUNCHES = "launches.jsonl"
NEWEST, BEST = "newest", "best"  # checkpoints
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "block_recurrent")
# When a run is continued, its length and rhythm may change, and its files may have moved: what is
# in them is compared with what the run began with.
MAY_CHANGE = ("training.", "data.path", "data.cache_path", "data.vocab_path", "data.name")
MAY_NOT_CHANGE = ("training.seed", "training.clear_states")
# What an evaluation's figures do not depend on: how batches are cut, and where the files lie.
NOT_IN_FIGURES = (
    *("data.batch_size", "data.segment_length"),
    *("data.path", "data.cache_path", "data.vocab_path"),
)


def claim(workdir: Path, config: ExperimentConfig) -> None:
    """Writes the resolved configuration; errors as of `check_claim`."""
    check_claim(workdir, config)
    workdir.mkdir(parents=True, exist_ok=True)
    write_whole(workdir / CONFIG, to_gin(config))


def check_claim(workdir: Path, config: ExperimentConfig) -> None:
    """Checks that a directory is new, or that of a run with this configuration.

    Raises:
      ConfigError: the directory belongs to another configuration, every difference is listed; or
        it holds something else.
    """
    path = workdir / CONFIG
    if workdir.exists() and not path.exists() and (found := _foreign(workdir)):
        raise ConfigError(
            f"{workdir} holds no run, for there is no {CONFIG} in it, but {', '.join(found[:4])}; "
            "choose another --workdir"
        )
    if path.exists():
        differences = _differences(_read(path), config, MAY_CHANGE, MAY_NOT_CHANGE)
        if differences:
            listed = "\n  ".join(differences)
            raise ConfigError(
                f"{workdir} holds a run with another configuration; choose another --workdir or "
                f"undo the change:\n  {listed}"
            )


def _read(path: Path) -> ExperimentConfig:
    try:
        return load([path])
    except ConfigError as error:
        raise ConfigError(
            f"{path} is damaged, and with it what the run there began with: write it anew as it "
            f"was, or choose another --workdir ({error})"
        ) from error


def other_settings(workdir: Path, config: ExperimentConfig) -> list[str]:
    """Where settings differ from those of the run, in what an evaluation's figures may depend on.

    Files may have moved, as long as the corpus keeps its name. Where segments begin with cleared
    states, their length matters.

    Raises:
      ConfigError: the run's configuration cannot be read.
    """
    run = _with_corpus_name(_read(config_file(workdir)))
    matter = ("data.segment_length",) if config.training.clear_states else ()
    return _differences(run, _with_corpus_name(config), NOT_IN_FIGURES, matter)


def _with_corpus_name(config: ExperimentConfig) -> ExperimentConfig:
    data = dataclasses.replace(config.data, name=config.data.corpus_name)
    return dataclasses.replace(config, data=data)


def _differences(
    old: ExperimentConfig,
    new: ExperimentConfig,
    may_change: tuple[str, ...],
    may_not_change: tuple[str, ...] = (),
) -> list[str]:
    """A phrase for each parameter that differs; names are given by how they begin."""
    pairs = zip(to_gin(old).splitlines(), to_gin(new).splitlines(), strict=True)
    return [
        f"{before}, now {after.partition(' = ')[2]}"
        for before, after in pairs
        if before != after
        and (before.startswith(may_not_change) or not before.startswith(may_change))
    ]


def _foreign(workdir: Path) -> list[str]:
    if not workdir.is_dir():
        return ["it is a file"]
    ours = {"lock", CONFIG + PARTIAL}
    return sorted(path.name for path in workdir.iterdir() if path.name not in ours)


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


def holds_run(workdir: Path) -> bool:
    """Whether a run began there."""
    return (workdir / CONFIG).is_file()


def config_file(workdir: str | Path) -> Path:
    """The configuration of a run.

    Raises:
      ConfigError: `workdir` holds no run.
    """
    if not holds_run(Path(workdir)):
        raise ConfigError(f"{workdir} holds no run: there is no {CONFIG} in it")
    return Path(workdir) / CONFIG


def restore_model(
    workdir: str | Path, config: ExperimentConfig, which: str | int = NEWEST
) -> tuple[int, LanguageModel]:
    """A checkpoint's step, and the model with its parameters.

    Args:
      workdir: of the run.
      config: of the run.
      which: `NEWEST`, the newest whole one, `BEST`, or a step.

    Raises:
      CheckpointError: there is no such checkpoint, or it does not fit the configuration.
    """
    checkpoints = Checkpoints(Path(workdir) / "checkpoints", warn=_warn)
    step = checkpoints.best_step() if which == BEST else which
    if step is None:
        raise CheckpointError(f"there is no best checkpoint in {workdir} yet, or it is not known")
    return checkpoints.restore_parameters(
        abstract_model(config.model), None if step == NEWEST else int(step)
    )


def _warn(sentence: str) -> None:
    print(f"WARNING: {sentence}", file=sys.stderr)
