"""Whose a work directory is: one process's at a time, and one configuration's for ever."""

import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from block_recurrent.config import ConfigError, ExperimentConfig, TransformerXLConfig
from block_recurrent.gin_files import load, to_gin
from block_recurrent.runs.bucket import CONFIG, Bucket
from block_recurrent.runs.errors import WorkdirInUse
from block_recurrent.system.files import PARTIAL, reason, write_whole
from block_recurrent.system.lock import hold

LOCK, CHECKPOINTS = "lock", "checkpoints"
# When a run is continued, its length and rhythm may change, and its files may have moved: what is
# in them is compared with what the run began with.
MAY_CHANGE = ("training.", "mesh.", "data.path", "data.cache_path", "data.vocab_path", "data.name")
MAY_NOT_CHANGE = ("training.seed", "training.clear_states")
# What an evaluation's figures do not depend on: how batches are cut, and where the files lie.
NOT_IN_FIGURES = (
    *("data.batch_size", "data.segment_length", "mesh."),
    *("data.path", "data.cache_path", "data.vocab_path"),
)


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Holds the file `lock` in a work directory, which says meanwhile which process does.

    The system frees it when the process ends, however it does. What had to be made for it is
    removed in the end, as far as nothing else was put there: a refused run leaves no trace.

    Raises:
      ConfigError: there can be no such directory.
      WorkdirInUse: another process holds it.
    """
    places = (workdir / LOCK, workdir, *workdir.parents)
    made = [path for path in places if not os.path.lexists(path)]
    with _hold_lock(workdir) as file:
        try:
            file.truncate(0)
            file.write(str(os.getpid()).encode())
            file.flush()
            yield
        finally:
            _let_go(file, made)


def _hold_lock(workdir: Path) -> BinaryIO:
    lock, owner = workdir / LOCK, "unknown"
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        return hold(lock)
    except BlockingIOError as error:
        with contextlib.suppress(OSError):
            owner = lock.read_text().strip() or owner
        raise WorkdirInUse(
            f"another process ({owner}) is training in {workdir}: wait for it, stop it, or "
            "choose another --workdir"
        ) from error
    except OSError as error:
        problem = "it is a file" if workdir.is_file() else f"it cannot be made ({reason(error)})"
        raise ConfigError(
            f"{workdir} cannot be a work directory, for {problem}; choose another --workdir"
        ) from error


def _let_go(file: BinaryIO, made: Sequence[Path]) -> None:
    """Removes what was made, the inner before the outer, up to the first that is not empty."""
    with contextlib.suppress(OSError):
        file.truncate(0)
        for path in made:
            path.unlink() if path.name == LOCK else path.rmdir()


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
        _check_same(path, config, str(workdir), "--workdir")


def check_bucket(bucket: Bucket, config: ExperimentConfig) -> None:
    """Checks that a bucket is new, or has the checkpoints of a run with this configuration.

    Raises:
      ConfigError: it is of another run; every difference is listed.
      BucketError: it cannot be read.
    """
    content = bucket.read(CONFIG)
    if content is not None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / CONFIG
            path.write_bytes(content)
            _check_same(path, config, bucket.url, "training.bucket")


def _check_same(path: Path, config: ExperimentConfig, where: str, other: str) -> None:
    differences = _differences(_read(path), config, MAY_CHANGE, MAY_NOT_CHANGE)
    if differences:
        listed = "\n  ".join(differences)
        raise ConfigError(
            f"{where} holds a run with another configuration; choose another {other} or "
            f"undo the change:\n  {listed}"
        )


def write_config(workdir: Path, config: ExperimentConfig) -> None:
    """Writes the resolved configuration, once `check_claim` has found nothing against it."""
    write_whole(workdir / CONFIG, to_gin(config))


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
    states, and where tokens see a memory and their segment, the length of segments matters.

    Raises:
      ConfigError: the run's configuration cannot be read.
    """
    run = _with_corpus_name(_read(config_file(workdir)))
    cut = config.training.clear_states or isinstance(config.model, TransformerXLConfig)
    matter = ("data.segment_length",) if cut else ()
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
    """A phrase for each parameter of both that differs; names are given by how they begin.

    Where one has a parameter that the other has not, the architecture differs.
    """
    before, after = _lines(old), _lines(new)
    return [
        f"{name} = {value}, now {after[name]}"
        for name, value in before.items()
        if after.get(name, value) != value
        and (name.startswith(may_not_change) or not name.startswith(may_change))
    ]


def _lines(config: ExperimentConfig) -> dict[str, str]:
    """Values as text, by name."""
    lines = (line.partition(" = ") for line in to_gin(config).splitlines() if line)
    return {name: value for name, _, value in lines}


def _foreign(workdir: Path) -> list[str]:
    if not workdir.is_dir():
        return ["it is a file"]
    ours = {LOCK, CONFIG + PARTIAL}
    return sorted(path.name for path in workdir.iterdir() if path.name not in ours)


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
