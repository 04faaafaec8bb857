"""Files made to hurt, through every public reader.

    make hostile                                          10,000 of each kind, hours
    python -m tests.soak.hostile --count=200 --kind=csv   200 of one

Of each kind, intact files are written. Then one of them is changed at random, again and again, and
each time everything is read in another process. The laws:

- The interpreter does not crash, and no file takes longer than `SECONDS`.
- Memory stays within `MEMORY`, whatever a file says of its size.
- What cannot be used is refused by one of `REFUSALS`, which names the file or a path to it.
- What is read from the intact files beside it is what it was.
- Nothing is written.
"""

import argparse
import hashlib
import itertools
import json
import os
import random
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import IO, NamedTuple

from tests.soak.hostile_kinds import CHANGED, KINDS, REFUSALS, valid_contents

SECONDS = 10.0  # of the processor; three times as many of the clock, on a busy machine
START_SECONDS = 600.0  # of the clock, until intact files are made
MEMORY = 2**30  # bytes, beyond what the process had before
COUNT = 10_000
OUTCOMES = ("read", "refused", "found")
LIES = [2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1, 0]
WORDS = [b"-1", b"1e999", b"NaN", b"9" * 30, b"9" * 5000, b"null", b'"', b"\\ud800"]
FIGURES = re.compile(rb"-?\d+")
PIECES = [
    *WORDS,
    b"\0",
    b"\xff\xfe",
    "\u202e".encode(),
    b"../../../../tmp/outside",
    b"/dev/zero",
    b"[" * 100_000,
    b'{"a":' * 50_000,
    b"a" * 4097,
]


def change(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """The content of a file, changed in one of many ways, or in two of them."""
    for _ in range(rng.choice((1, 1, 1, 2))):
        data = rng.choice(CHANGES)(rng, data, others)
    return data


def _flip(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.randint(1, 8) if data else 0):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def _cut(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    begin, end = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    return rng.choice((data[:begin], data[begin:], data[:begin] + data[end:]))


def _splice(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    other = rng.choice(others)
    return data[: rng.randrange(len(data) + 1)] + other[rng.randrange(len(other) + 1) :]


def _replace(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    return rng.choice((b"", rng.choice(others), rng.randbytes(rng.choice((1, 100, 10_000)))))


def _lie(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Another number, in bytes or in figures."""
    found = FIGURES.search(data, rng.randrange(len(data) + 1))
    if found and rng.random() < 0.5:
        return data[: found.start()] + rng.choice(WORDS) + data[found.end() :]
    size = rng.choice((4, 8))
    number = (rng.choice(LIES) % 2 ** (8 * size)).to_bytes(size, rng.choice(("little", "big")))
    place = rng.randrange(len(data) + 1)
    return data[:place] + number + data[place + size :]


def _insert(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    place = rng.randrange(len(data) + 1)
    return data[:place] + rng.choice(PIECES) + data[place:]


def _repeat(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    begin, end = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    part = data[begin:end]
    return data[:end] + part * rng.choice((1, 2, min(1000, 1 + 2**20 // (len(part) + 1))))


CHANGES = (_flip, _flip, _cut, _splice, _replace, _lie, _lie, _insert, _repeat)


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    """The size and the time of every file below a folder."""
    return {
        str(path): (path.lstat().st_size, path.lstat().st_mtime_ns) for path in folder.rglob("*")
    }


def peak() -> int:
    """The most memory, in bytes, that this process has had since `forget_peak`."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s*(\d+)", status)[1]) << 10  # pyright: ignore


def forget_peak() -> int:
    """Begins to measure `peak` anew; returns the present size."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak()


def digest(items: Iterable[tuple[str, object]]) -> dict[str, str]:
    """A digest of each thing that was read, by its name."""
    return {name: hashlib.sha256(repr(item).encode()).hexdigest() for name, item in items}


class Files:
    """The intact files of a kind, in a folder, and what is read from those never changed."""

    def __init__(self, name: str, folder: Path):
        self.name, self.kind, self.folder = name, KINDS[name], folder
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        self.kind.make(folder)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        self.changed = [p for p in files if str(p.relative_to(folder)).startswith(CHANGED)]
        self.contents = {path: path.read_bytes() for path in self.changed}
        self.expected = self.unchanged(digest(self.kind.read(folder).items()))

    def unchanged(self, found: dict[str, str]) -> dict[str, str]:
        """Of what was read, that of the files beside the changed ones."""
        return {name: found[name] for name in found if not name.startswith(CHANGED)}

    def trial(self, number: int, seed: int, others: Sequence[bytes]) -> tuple[str, str]:
        """Changes a file and reads all: "read", "refused" or "found", and what was found."""
        rng = random.Random(f"{seed} {self.name} {number}")
        path = rng.choice(self.changed)
        content = self.contents[path]
        path.write_bytes(change(rng, content, [*others, *self.contents.values()]))
        try:
            return self._read(path)
        finally:
            path.write_bytes(content)

    def _read(self, path: Path) -> tuple[str, str]:
        before, size, begin = tree(self.folder), forget_peak(), time.process_time()
        outcome, what = "read", ""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = self.unchanged(digest(self.kind.read(self.folder).items()))
            if found != self.expected:
                what = f"other files are read otherwise, after {path.name}"
        except REFUSALS as error:
            outcome = "refused"
            # No file is to blame for a parameter that none of them sets.
            names = (path.name, str(self.folder), " is not set: ")
            if not any(name in str(error) for name in names):
                what = f"no file in the message: {error!r:.300}"
        except BaseException:
            what = traceback.format_exc(limit=-6)
        if not what and (seconds := time.process_time() - begin) > SECONDS:
            what = f"{seconds:.0f} s of the processor"
        if not what and (more := peak() - size) > MEMORY:
            what = f"{more >> 20:,} MiB of memory"
        if not what and (after := tree(self.folder)) != before:
            what = f"files have changed: {sorted(before.items() ^ after.items())}"
        return ("found" if what else outcome), what


class Trial(NamedTuple):
    """What became of a changed file.

    Attributes:
      kind: of the file.
      number: makes the same file again, with the kind and the seed.
      outcome: "read", "refused", or "found" if a law was broken.
      what: how it was broken.
    """

    kind: str
    number: int
    outcome: str
    what: str


def try_kinds(kinds: Sequence[str], count: int, seed: int = 0) -> Iterator[Trial]:
    """Yields what became of `count` changed files of each kind.

    Raises:
      RuntimeError: intact files cannot be read.
    """
    order = [(kind, number) for kind in kinds for number in range(count)]
    first = 0
    with tempfile.TemporaryDirectory(prefix="hostile-") as folder:
        while first < len(order):
            words = json.dumps([folder, kinds, count, seed, first])
            for index, outcome, what in _watch(words):
                if index is None:
                    raise RuntimeError(what)
                yield Trial(*order[index], outcome, what)
                first = index + 1


def work(folder: str, kinds: Sequence[str], count: int, seed: int, first: int) -> None:
    """In a process of its own: reads changed files, from the `first` on; prints lines about each.

    Each line is JSON: the index of a file that is tried next, or None while intact ones are made,
    or an index and what became of that file.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    output, sys.stdout = sys.stdout, sys.stderr
    order = [(kind, number) for kind in kinds for number in range(count)]
    others, files = valid_contents(), None
    for index, (kind, number) in enumerate(order[first:], first):
        if files is None or files.name != kind:
            print(json.dumps([None]), file=output, flush=True)
            files = Files(kind, Path(folder) / kind)
        print(json.dumps([index]), file=output, flush=True)
        print(json.dumps([index, *files.trial(number, seed, others)]), file=output, flush=True)


def _watch(words: str) -> Iterator[tuple[int | None, str, str]]:
    """Yields the index and the outcome of each file until the process ends, in whatever way."""
    code = (
        "import json, sys; from tests.soak import hostile; hostile.work(*json.loads(sys.argv[1]))"
    )
    with tempfile.TemporaryFile() as errors:
        child = subprocess.Popen(
            [sys.executable, "-c", code, words],
            stdout=subprocess.PIPE,
            stderr=errors,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
            text=True,
        )
        assert child.stdout is not None
        lines: SimpleQueue[str] = SimpleQueue()
        reading = Thread(target=_pass_on, args=(child.stdout, lines), daemon=True)
        reading.start()
        trying = None
        try:
            while line := lines.get(timeout=START_SECONDS if trying is None else 3 * SECONDS):
                trying, *outcome = json.loads(line)
                if outcome:
                    yield trying, *outcome
                    trying = None
            status = child.wait()
            errors.seek(0)
            if status:
                yield trying, "found", f"status {status}: {errors.read()[-1000:].decode()}"
        except Empty:
            yield trying, "found", "it hangs"
        finally:
            child.kill()
            child.wait()
            reading.join()


def _pass_on(stream: IO[str], lines: "SimpleQueue[str]") -> None:
    with stream:
        for line in itertools.chain(stream, [""]):
            lines.put(line)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns 1 if a law was broken."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=COUNT, help="files of each kind (10,000)")
    parser.add_argument("--kind", choices=KINDS, action="append", help="only this; may be repeated")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    found, counts, begin = 0, Counter(), time.monotonic()
    for trial in try_kinds(arguments.kind or list(KINDS), arguments.count, arguments.seed):
        counts[trial.outcome] += 1
        if trial.outcome == "found":
            found += 1
            print(f"  {trial.kind} {trial.number}: {trial.what}", flush=True)
        if trial.number == arguments.count - 1:
            said = ", ".join(f"{counts[outcome]:,} {outcome}" for outcome in OUTCOMES)
            print(f"{trial.kind}: {said}; {time.monotonic() - begin:.0f} s", flush=True)
            counts, begin = Counter(), time.monotonic()
    return int(found > 0)


if __name__ == "__main__":
    sys.exit(main())
