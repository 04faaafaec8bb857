"""Advice in messages works: whoever follows it has no error any more."""

import itertools
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from block_recurrent.command_line import evaluate as evaluate_program
from block_recurrent.command_line import generate as generate_program
from block_recurrent.command_line import train as train_program
from block_recurrent.data import ByteTokenizer, Corpus, DataError, Document, tokenize
from block_recurrent.data.lanes import LaneReader
from block_recurrent.runs import loop
from block_recurrent.runs.loop import TrainingLoop
from block_recurrent.training.evaluation import Evaluation
from tests import quick_runs
from tests.programs import main_of
from tests.quick_runs import STEPS, TEXT, Steps, make_inputs
from tests.reliability.test_command_lines import LINES
from tests.reliability.test_command_lines import folder as folder
from tests.synthetic_runs import exit_status

VALUE = r"'[^']*'|\([^)]*\)|-?\w[\w.]*"
BINDING = rf"(set|needs|or|and) (?:to )?([a-z_][\w.]*) = ({VALUE})((?: or (?:{VALUE})(?!\w* =))*)"
MEANT = r"'([^'=]+)[^']*'[^'(]*\(did you mean ('[^?]+)\?\)"
SECTION = re.compile(r": (model|data|optimizer|training|mesh): ")
# A limit, and the values at its ends, of the parameter or option that is named before it.
LIMITS: dict[str, Callable[..., list[str]]] = {
    r"([\w.]+)(?: must be| of) (?:a whole number of )?at least (\d+)": lambda least: [least],
    r"([\w.]+) must be positive": lambda: ["1"],
    r"([\w.]+) must be above 0 and at most (\d+)": lambda most: [most],
    r"([\w.]+) must be in \[(\d), \d\)": lambda least: [least],
    r"([\w.]+) must be between (\d+) and (\d+)": lambda *ends: [*ends],
    r"([\w.]+) must be one of ((?:'\w+'(?:, )?)+)": lambda listed: listed.strip(", ").split(", "),
    r"(recurrent_layers) .*allowed: (-?\d+) to (-?\d+)": lambda *ends: [f"({i},)" for i in ends],
}


def advised_bindings(message: str) -> Iterator[list[tuple[str, str]]]:
    """The alternatives that a message offers, each of them bindings to be set together."""
    alternatives: list[list[tuple[str, list[str]]]] = []
    for word, name, value, others in re.findall(BINDING, message):
        values = [value, *re.findall(rf" or ({VALUE})", others)]
        if word != "and" or not alternatives:
            alternatives.append([])
        alternatives[-1].append((name, values))
    for bindings in alternatives:
        names = [name for name, _ in bindings]
        for values in itertools.product(*(values for _, values in bindings)):
            yield list(zip(names, values, strict=True))
    for pattern, ends in LIMITS.items():
        for limit in re.finditer(pattern, message):
            name, *found = limit.groups()
            yield from ([(name, value)] for value in ends(*found))
    for name, before in re.findall(r"([\w.]+) = (.+), now ", message):
        yield [(name, before)]


def followed(words: list[str], message: str) -> Iterator[list[str]]:
    """The command lines that a message advises in place of `words`."""
    for wrong, listed in re.findall(MEANT, message):
        for meant in re.findall("'([^']+)'", listed):
            yield [word.replace(wrong, meant, 1) for word in words]
    section = SECTION.search(message)
    for bindings in advised_bindings(message):
        named = [(f"{section[1]}.{n}" if section and "." not in n else n, v) for n, v in bindings]
        yield [*words, *(f"--{'gin.' * ('.' in name)}{name}={value}" for name, value in named)]
    for option, listed in re.findall(
        r"argument (--\w+): invalid choice: .*choose from (.*)\)", message
    ):
        yield from ([*words, f"{option}={choice.strip(chr(39))}"] for choice in listed.split(", "))


def failures(run: Callable[[list[str]], tuple[int, str]], words: list[str]) -> list[str]:
    """The lines that still fail after advice, which may take several steps, was followed."""

    def follow(words: list[str], message: str, depth: int) -> Iterator[str]:
        for advised in followed(words, message):
            status, said = run(advised)
            further = said != message and depth > 1 and any(followed(advised, said))
            if status and further:
                yield from follow(advised, said, depth - 1)
            elif status:
                yield f"{message}\n  followed by {advised}:\n  {said}"

    status, message = run(words)
    assert status, f"{words} is no wrong line"
    assert any(followed(words, message)), f"no advice: {message}"
    return list(follow(words, message, depth=3))


# Lines without advice that a program could follow: files are wrong, or nothing is near.
SILENT = re.compile(
    "num_layers=four|num_layers=4.0|feedback=1|1e999|'lstm$|--workdir|WINDOW|WIDTH|sentencepiece|"
    "gin_file=.folder|num_layers$|window 64$|vocab_size=99|^train( --gin_file=sizes.tiny.gin)?$|"
    "prompt|none$|two$|evaluate$"
)
CONFIGURED = [line for line in LINES if line.split()[0] in ("train", "evaluate", "generate")]


@pytest.mark.parametrize("line", [line for line in CONFIGURED if not SILENT.search(line)])
def test_advice_of_wrong_command_lines_works(line, folder, capsys, monkeypatch):
    monkeypatch.setattr(train_program, "describe", lambda config: "")
    monkeypatch.setattr(evaluate_program, "_score", lambda *_: ({}, []))
    monkeypatch.setattr(evaluate_program, "_write", lambda *_: None)
    monkeypatch.setattr(generate_program, "_continue_text", lambda *_: None)
    program, *words = line.replace("{folder}", str(folder)).split()

    def run(words: list[str]) -> tuple[int, str]:
        dry = ["--dry_run"] if program == "train" else []
        status = exit_status(main_of(program), *words, *dry)
        return int(status or 0), capsys.readouterr().err.replace("\n", " ")

    assert failures(run, words) == []


def rewrite(inputs: Path, *, name: str = "text", **files: int) -> None:
    """Makes the corpus anew: so many documents in each file, their text in the column `name`."""
    for path in (inputs / "books").iterdir():
        path.unlink()
    for file, count in files.items():
        lines = [json.dumps({"id": f"{file}{n}", name: TEXT}) + "\n" for n in range(count)]
        (inputs / "books" / f"{file}.jsonl").write_text("".join(lines))


def nothing(inputs: Path) -> None:
    """The corpus stays as it is."""


# What is wrong with a run: its corpus or its command line; the last two continue a finished run.
RUNS: dict[str, tuple[Callable[[Path], None], str]] = {
    "attention": (nothing, "model.attention=cudnn"),
    "too few devices": (nothing, "mesh.fsdp=2"),
    "batch rows": (nothing, "mesh.data=3"),
    "names of files": (lambda inputs: rewrite(inputs, train=3, other=6), "data.seed=1"),
    "column": (lambda inputs: rewrite(inputs, name="body", train=2, valid=1), "data.seed=1"),
    "no validation": (lambda inputs: rewrite(inputs, books=3), "data.validation_percent=1"),
    "no training": (lambda inputs: rewrite(inputs, books=3), "data.validation_percent=99"),
    "fewer steps": (nothing, f"training.num_steps={STEPS - 1}"),
    "another model": (nothing, "model.mlp_size=4"),
}
CONTINUED = ("fewer steps", "another model")


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The inputs of a run, and the work directory `run` of the run, which has ended."""
    inputs = make_inputs(tmp_path_factory.mktemp("finished"))
    with pytest.MonkeyPatch.context() as patch:
        Steps(patch)
        patch.setattr(loop, "evaluate", lambda *_: Evaluation(1.0, 1, 1, 1))
        assert quick_runs.run(inputs, inputs / "run") == 0
    return inputs


@pytest.mark.parametrize("case", RUNS)
def test_advice_of_runs_works(case, finished, tmp_path, capsys, monkeypatch):
    prepare, binding = RUNS[case]
    inputs, numbers = finished if case in CONTINUED else make_inputs(tmp_path), itertools.count()
    prepare(inputs)
    monkeypatch.setattr(TrainingLoop, "finish", lambda loop: None)

    def run(words: list[str]) -> tuple[int, str]:
        workdir = inputs / ("run" if case in CONTINUED else f"run{next(numbers)}")
        capsys.readouterr()
        return quick_runs.run(inputs, workdir, *words), capsys.readouterr().err

    assert failures(run, [f"--gin.{binding}"]) == []


def test_a_vocabulary_of_the_advised_size_is_large_enough():
    corpus = tokenize(Corpus((Document("a", "", TEXT),), "train"), ByteTokenizer())
    with pytest.raises(DataError) as caught:
        LaneReader(corpus, 1, 4, vocab_size=99)
    ((_, size),) = next(advised_bindings(str(caught.value)))
    assert LaneReader(corpus, 1, 4, vocab_size=int(size)).vocab_size == 256
