"""Cuts the power at any moment of a run, and checks that the run goes on from what is left.

    python -m tests.soak.power --cuts=200

A run is recorded by `strace`: all that it writes, renames, removes and flushes. What a cut leaves
on the disk is made anew from the record. POSIX promises only what was flushed: the content of a
file by its fsync, a name in a folder by the fsync of that folder. Half of the cuts leave only that;
the others leave of each file and folder what it was at some moment since. The laws:

- The same command goes on, and ends with the figures and the progress of a run that was not cut.
- It goes on from the newest checkpoint that was there for good before the cut, or a newer one.
"""

import io
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import pytest

from block_recurrent.command_line.parser import Parser
from block_recurrent.runs import loop
from block_recurrent.runs.checkpoints import Checkpoints
from block_recurrent.runs.metrics import read_metrics
from block_recurrent.system.progress import ProgressLine
from block_recurrent.training.evaluation import Evaluation
from tests.interpreter import settings
from tests.quick_runs import STEPS, Steps, checkpoint, run, tree_of, write_corpus, write_gin

# Made in the recorded run when a checkpoint is there for good, before older ones are removed.
ANNOUNCEMENT = "announced-"
RECORD = "calls.txt"
# Calls with an open file, and calls with paths; the last of each are not expected.
ON_FILES = {"close", "write", "pwrite64", "lseek", "ftruncate", "fsync", "fdatasync"}
ON_FILES |= {"writev", "pwritev", "copy_file_range", "sendfile"}
ON_PATHS = {"openat", "mkdir", "mkdirat", "unlink", "unlinkat", "rmdir", "rename", "renameat"}
ON_PATHS |= {"renameat2", "link", "linkat", "symlink", "truncate"}
LINE = re.compile(r"(?P<process>\d+) +(?P<name>\w+)\((?P<words>.*)\) += (?P<result>\d+)(<.*)?")
UNFINISHED = re.compile(r"(?P<begin>(?P<process>\d+) +.*) <unfinished \.\.\.>")
RESUMED = re.compile(r"(?P<process>\d+) +<\.\.\. \w+ resumed>(?P<end>.*)")
HEX = r"((?:\\x[0-9a-f]{2})*)"
TEXT = re.compile(f'"{HEX}"')
PATH = re.compile(rf'(?:\w+<{HEX}>, )?"{HEX}"')  # relative to a folder that is open, or not


class Call(NamedTuple):
    """A system call that succeeded: its arguments as strace prints them, and what it returned."""

    name: str
    words: str
    result: int

    @property
    def descriptor(self) -> int:
        return int(self.words.partition("<")[0])

    @property
    def number(self) -> int:
        """The last argument."""
        return int(self.words.rpartition(",")[2])

    @property
    def paths(self) -> list[Path]:
        return [
            Path(_decoded(folder).decode(), _decoded(name).decode())
            for folder, name in PATH.findall(self.words)
        ]

    @property
    def content(self) -> bytes:
        """What was written."""
        return b"".join(map(_decoded, TEXT.findall(self.words)))[: self.result]


def _decoded(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))


def calls_of(record: str) -> Iterator[Call]:
    """The calls of a program, not of those that it started, in the order in which they ended."""
    begun: dict[str, str] = {}
    others: set[str] | None = None
    for line in record.splitlines():
        if found := UNFINISHED.fullmatch(line):
            begun[found["process"]] = found["begin"]
            continue
        if found := RESUMED.fullmatch(line):
            line = begun.pop(found["process"]) + found["end"]
        found = LINE.fullmatch(line)
        if found is None:  # it failed, or is no call
            continue
        if found["name"] == "execve":
            others = set() if others is None else others | {found["process"]}
        elif others is not None and found["process"] not in others:
            yield Call(found["name"], found["words"], int(found["result"]))


class File:
    """A file, and what the disk is known to have of it."""

    def __init__(self):
        self.content = self.flushed = b""

    def flush(self) -> None:
        self.flushed = self.content

    def write(self, content: bytes, place: int) -> None:
        before = self.content[:place].ljust(place, b"\0")
        self.content = before + content + self.content[place + len(content) :]

    def leave(self, path: Path, rng: random.Random | None) -> None:
        left = self.flushed
        if rng and self.content != self.flushed:
            part = self.content[: rng.randint(0, len(self.content))]
            left = rng.choice([self.flushed, self.content, part])
        path.write_bytes(left)


class Folder:
    """A folder, and the entries that it has had since it was flushed, the newest ones last."""

    def __init__(self):
        self.since_flush: list[dict[str, File | Folder]] = [{}]

    @property
    def entries(self) -> "dict[str, File | Folder]":
        return self.since_flush[-1]

    def flush(self) -> None:
        self.since_flush = [self.entries]

    def change(self, without: str | None, added: "dict[str, File | Folder]") -> None:
        rest = {name: entry for name, entry in self.entries.items() if name != without}
        self.since_flush.append(rest | added)

    def leave(self, path: Path, rng: random.Random | None) -> None:
        path.mkdir()
        for name, entry in (rng.choice(self.since_flush) if rng else self.since_flush[0]).items():
            entry.leave(path / name, rng)


class Disk:
    """What the calls of a program make of an empty folder `root`."""

    def __init__(self, root: Path):
        self.root, self.folder = root, Folder()
        self.opened: dict[int, tuple[File | Folder, int, bool]] = {}  # place, and whether to append

    def _find(self, path: Path) -> "File | Folder":
        found: File | Folder = self.folder
        for name in path.relative_to(self.root).parts:
            assert isinstance(found, Folder)
            found = found.entries[name]
        return found

    def _parent(self, path: Path) -> Folder:
        found = self._find(path.parent)
        assert isinstance(found, Folder)
        return found

    def apply(self, call: Call) -> bool:
        """Does what a call did; returns whether something on the disk may be another now."""
        if call.name in ON_FILES:
            return call.descriptor in self.opened and self._apply_to_opened(call)
        paths = [path for path in call.paths if path.is_relative_to(self.root)]
        if call.name == "openat":
            self.opened.pop(call.result, None)
        if not paths:
            return False
        old, new = paths[0], paths[-1]
        if call.name == "openat":
            return self._open(old, call)
        if call.name in ("mkdir", "mkdirat"):
            self._parent(old).change(None, {old.name: Folder()})
        elif call.name in ("unlink", "unlinkat", "rmdir"):
            self._parent(old).change(old.name, {})
        elif call.name in ("rename", "renameat", "renameat2") and old.parent == new.parent:
            self._parent(old).change(old.name, {new.name: self._find(old)})
        else:
            raise NotImplementedError(call.name)
        return True

    def _open(self, path: Path, call: Call) -> bool:
        new = path != self.root and path.name not in self._parent(path).entries
        if new:
            self._parent(path).change(None, {path.name: File()})
        entry = self._find(path)
        emptied = isinstance(entry, File) and "O_TRUNC" in call.words
        if emptied:
            entry.content = b""
        self.opened[call.result] = (entry, 0, "O_APPEND" in call.words)
        return new or emptied

    def _apply_to_opened(self, call: Call) -> bool:
        entry, place, appends = self.opened[call.descriptor]
        if call.name == "close":
            del self.opened[call.descriptor]
        elif call.name == "lseek":
            self.opened[call.descriptor] = (entry, call.result, appends)
        elif call.name in ("fsync", "fdatasync"):
            entry.flush()
            return True
        elif isinstance(entry, File) and call.name in ("ftruncate", "pwrite64", "write", "writev"):
            if call.name == "ftruncate":
                entry.content = entry.content[: call.number].ljust(call.number, b"\0")
            elif call.name == "pwrite64":
                entry.write(call.content, call.number)
            else:
                place = len(entry.content) if appends else place
                entry.write(call.content, place)
                self.opened[call.descriptor] = (entry, place + call.result, appends)
            return True
        else:
            raise NotImplementedError(call.name)
        return False


@contextmanager
def without_computation() -> Iterator[Steps]:
    """Runs take steps and are evaluated without computing anything; what they write is real."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "evaluate", lambda *_: Evaluation(1.0, 1, 1, 1))
        yield Steps(patch)


def record(folder: Path) -> list[Call]:
    """The calls of a run in `folder`/disk/run, whose inputs are in `folder`."""
    (folder / "disk").mkdir()
    kept, names = folder / RECORD, ",".join({"execve"} | ON_FILES | ON_PATHS)
    tracing = ["strace", "-f", "-qq", "-y", "-xx", "-s", str(2**24), "-e", "signal=none"]
    command = [sys.executable, "-m", "tests.soak.power", f"--record={folder}"]
    subprocess.run(
        [*tracing, "-e", f"trace={names}", "-o", kept, *command], env=settings(), check=True
    )
    return list(calls_of(kept.read_text()))


def recorded(folder: Path) -> None:
    """The run that is recorded: it says on the disk when a checkpoint is there for good."""
    retain = Checkpoints._retain

    def announce(self: Checkpoints, new: int | None = None) -> None:
        (folder / "disk" / f"{ANNOUNCEMENT}{self.latest_step()}").touch()
        retain(self, new)

    with without_computation(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "_retain", announce)
        assert run(folder, folder / "disk" / "run") == 0


def cut(folder: Path, cuts: int, seed: int = 0) -> Iterator[tuple[int, int]]:
    """Records a run and cuts it.

    Args:
      folder: for all files; new, or of an earlier call.
      cuts: number of moments, evenly spread over all calls that change something.
      seed: of what is left.

    Yields:
      For each cut the newest checkpoint that was announced, and the one that the run went on from;
      0 if there was none.

    Raises:
      AssertionError: a law was broken; `folder` is left.
    """
    if (folder / RECORD).exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    values = {"data.path": str(write_corpus(folder / "books")), "training.evaluate_every": 4}
    write_gin(folder / "tiny.gin", values)
    calls = record(folder)
    whole = Disk(folder / "disk")
    changes = sum(whole.apply(call) for call in calls)
    expected = outcome_of(folder / "disk" / "run")
    moments = {changes * number // cuts for number in range(cuts)}
    disk, place = Disk(folder / "disk"), 0
    for call in calls:
        if not disk.apply(call):
            continue
        if place in moments:
            rng = random.Random(seed + place) if place % 2 else None
            yield _go_on(disk, folder, rng, expected)
        place += 1


def _go_on(
    disk: Disk, folder: Path, rng: random.Random | None, expected: object
) -> tuple[int, int]:
    announced = [name for name in disk.folder.entries if name.startswith(ANNOUNCEMENT)]
    newest = max((int(name.removeprefix(ANNOUNCEMENT)) for name in announced), default=0)
    left = folder / "left"
    shutil.rmtree(left, ignore_errors=True)
    disk.folder.leave(left, rng)
    found = sorted(tree_of(left))
    said = io.StringIO()
    with without_computation() as steps, redirect_stdout(said), redirect_stderr(said):
        status = run(folder, left / "run")
    assert status == 0, f"status {status} with {found}:\n{said.getvalue()}"
    begun = min(steps.batches, default=STEPS + 1) - 1
    assert begun >= newest, f"went on from {begun}, announced was {newest}: {found}"
    assert outcome_of(left / "run") == expected
    return newest, begun


def outcome_of(workdir: Path) -> object:
    """The lines of metrics but for speed, and the progress of the newest checkpoint."""
    lines = read_metrics(workdir / "metrics.jsonl")
    figures = [{name: line[name] for name in line if "second" not in name} for line in lines]
    return figures, (checkpoint(workdir, STEPS) / "progress" / "data.json").read_text()


def main() -> None:
    """Runs the program."""
    parser = Parser(description=__doc__)
    parser.add_argument("--cuts", type=int, default=200, help="how many (200)")
    parser.add_argument("--seed", type=int, default=0, help="of what is left (0)")
    parser.add_argument("--workdir", type=Path, default=Path("runs/power"), help="runs/power")
    parser.add_argument("--record", type=Path, help="only the run that is recorded")
    options = parser.parse_args()
    if options.record:
        recorded(options.record)
        return
    line = ProgressLine()
    for number, (newest, begun) in enumerate(
        cut(options.workdir.absolute(), options.cuts, options.seed)
    ):
        line.show(f"cut {number + 1} of {options.cuts}: announced {newest}, went on from {begun}")
    line.end()
    print(f"{options.cuts} cuts, and each run went on")


if __name__ == "__main__":
    main()
