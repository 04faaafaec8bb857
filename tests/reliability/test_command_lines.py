"""Wrong command lines: status 2 before anything is compiled, and words that help."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from block_recurrent import gin_files
from block_recurrent.config import ConfigError
from block_recurrent.gin_files import GIN_FOLDER, PARAMETERS
from tests.programs import PROGRAMS, main_of
from tests.synthetic_runs import exit_status, small, write_run

COMPILED = "/jax/core/compile/backend_compile_duration"
TINY = "--gin_file=sizes/tiny.gin"

# Program, words, and what the message must say; {folder} is that of the fixture.
TRAIN = {
    "--gin.model.num_layer=4": "--gin.model.num_layer: .* (did you mean 'model.num_layers'?)",
    "--gin.mdoel.window=64": "(did you mean 'model.window'?)",
    "--gin.batch_size=4": "(did you mean 'data.batch_size'?)",
    "--gin.model.num_layers=four": "--gin.model.num_layers: .*must be int, not 'four'",
    "--gin.model.num_layers=4.0": "num_layers must be int, not 4.0",
    "--gin.model.feedback=1": "feedback must be bool, not 1",
    "--gin.optimizer.learning_rate=1e999": "learning_rate must be finite, not inf",
    "--gin.model.gate=lstn": "--gin.model.gate: .*(did you mean 'lstm'?)",
    "--gin.model.gate='lstm": "--gin.model.gate",
    "--gin_bindings --workdir=x": "write --gin_bindings='NAME = VALUE'",
    "--gin.optimizer.schedule=cosine --gin.optimizer.decay_steps=-1": "must be positive, not -1",
    "--gin.model.num_layers": "--gin.model.num_layers: write --gin.NAME=VALUE",
    "--gin.model.window 64": "'64'; a value is joined by =, for example --gin.model.window=128",
    "--gin.WINDOW=64": "--gin.WINDOW: nothing uses the macro 'WINDOW'",
    "--gin.model.window=%WIDTH": "--gin.model.window: macro %WIDTH is not defined",
    "--gin.data.segment_length=100": "tiny.gin:.*segment_length 100 is no multiple of .*window",
    "--gin.model.recurrent_layers=(9,)": "layer 9 is outside the 6 layers (allowed: -6 to 5)",
    "--gin.model.positions=rotary --gin.model.head_size=7": "even head_size, not 7",
    "--gin.model.dropout=1.5": "dropout must be in [0, 1), not 1.5",
    "--gin.model.vocab_size=99": "at least 256, not 99",
    "--gin.data.batch_size=0": "batch_size must be positive, not 0",
    "--gin.data.tokenizer=sentencepiece": "needs a vocab_path",
    "--gin.model.recurrent_layers=() --gin.model.feedback=True": "feedback needs a recurrent layer",
    "--gin.model.recurrent_layers=(1,1)": "(1, 1) names a layer twice",
    "--gin.model.recurrent_layers=(1,) --gin.model.detach_windows=True": "without recurrent layers",
    "--gin.model.memory=5": "model.memory needs model.architecture =",
    "--gin.model.architecture=lstm --gin.training.clear_states=True": "no recurrent states",
    "--gin.model.architecture=transformer_xl --gin.model.memory=0 --gin.model.same_length=True": (
        "needs a memory"
    ),
    "--gin.optimizer.decay_steps=9": "belongs to the cosine schedule",
    "--gin.data.path=books": "takes no path",
    "--gin.data.cache_path=books": "belongs to source",
    "--gin.data.validation_percent=0": "between 1 and 99, not 0",
    "--gin.mesh.fsdp=-1": "only one axis can be -1",
    "--gin.training.non_finite=skp": "(did you mean 'skip'?)",
    "--gin.training.accumulate_steps=5": "--gin.training.accumulate_steps: .*no multiple of",
    "--gin.training.profile_steps=12:10": "profile_steps: .* must be FIRST:LAST, .*not '12:10'",
    "--gin.training.initial_parameters=~/none --workdir=x": "= '/.*/none': /.*/none holds no run",
    "--gin_fille=laptop_slide.gin": "'--gin_fille=laptop_slide.gin' (did you mean '--gin_file'?)",
    "--gin_file=sizes/tinny.gin": "no file 'sizes/tinny.gin' (did you mean 'sizes/tiny.gin'?)",
    "--gin_file={folder}/quotes.gin": "quotes.gin:2: .*'lstm'; a string needs quotes",
    "--gin_file={folder}/open.gin": "open.gin:1",
    "--gin_file={folder}/twice.gin": "twice.gin:3: data.seed is bound twice, first at .*gin:1",
    "--gin_file={folder}/unused.gin": "unused.gin:1: nothing uses the macro 'WIDHT'",
    "--gin_file={folder}/include.gin": "include.gin:1: .*(did you mean 'sizes/paper.gin'?)",
    "--gin_file={folder}/latin.gin": "latin.gin: cannot be read as UTF-8",
    "--model.window=64": "(did you mean '--gin.model.window'?)",
    "-gin.model.window=64": "(did you mean '--gin.model.window'?)",
    "--dry-run": "'--dry-run' (did you mean '--dry_run'?)",
    "--wrokdir=x": "'--wrokdir=x' (did you mean '--workdir'?)",
    "--workdir={folder}/file": "it is a file; choose another --workdir",
    "--workdir={folder}": "holds no run, .*file, .*choose another --workdir",
    "--workdir": "expected one argument",
    "": "required: --workdir",
}
OTHERS = {
    "train --workdir=x": "model.vocab_size is not set: give a --gin_file",
    "evaluate": "required: --workdir",
    "evaluate --workdir={folder}/none": "{folder}/none holds no run",
    "evaluate --workdir={folder}/run --split=tset": "--split: invalid choice: 'tset' .*'test'",
    "evaluate --wrkdir={folder}/run": "(did you mean '--workdir'?)",
    "generate --workdir={folder}/run --top_k=0": "--top_k: must be a whole number of at least 1",
    "generate --workdir={folder}/run --samples=two": "--samples: .*not two",
    "generate --workdir={folder}/run --top_p=2": "top_p must be above 0 and at most 1, not 2",
    "generate --workdir={folder}/run --min_p=0": "min_p must be above 0 and at most 1, not 0",
    "generate --workdir={folder}/run --stop=": "--stop: must not be empty",
    "generate --workdir={folder}/run --temperature=-1": "temperature must be at least 0",
    "generate --workdir={folder}/run --seed=-1": "seed must be between 0",
    "generate --workdir={folder}/run --prompt_file=/no/prompt": "/no/prompt: No such file",
    "generate --workdir={folder}/run --prompt=a --prompt_file=-": "not allowed with argument",
    "generate --workdir={folder}/run --temprature=1": "(did you mean '--temperature'?)",
    "train_table --lnog": "'--lnog' (did you mean '--long'?)",
    "train_table --workdir={folder}/file --gin.model.window=0": "window must be positive, not 0",
    "benchmark --rows=Slid": "Slid",
    f"compile {TINY}": "required: --topology",
    f"compile {TINY} --topology=v5e": "write a chip and how many, such as v5e:2x2",
    f"compile {TINY} --topology=v5x:2x2": "no chip is called 'v5x' (did you mean 'v5",
    f"compile {TINY} --topolgy=v5e:2x2": "(did you mean '--topology'?)",
    f"compile {TINY} --topology=v5e:2x2 --json={{folder}}": "{folder} is a directory",
    "prepare_data": "required: KIND",
    "prepare_data txet x": "'txet'.*text",
    "prepare_data text {folder} --outptu=x": "'--outptu=x' (did you mean '--output'?)",
    "prepare_data text {folder}": "required: --output",
    "prepare_data text {folder} --output=o --limit=many": "--limit: invalid int value: 'many'",
    "prepare_data text {folder} --output=o --test_percent=101": "test_percent = 101 must be",
    "prepare_data text {folder} --output=o --name=A-B": "name = 'A-B' must be of small letters",
    "prepare_data pg19 x --download=y --output=o": "not allowed with argument",
    "train_vocab --corpus=x": "required: --output",
    "train_vocab --corpus=x --output=y --vocab_szie=9": "(did you mean '--vocab_size'?)",
    "train_vocab --corpus=x --output=y --vocab_size=0": "--vocab_size .*must be at least 1",
    "table1": "required: WORKDIR",
    "table1 {folder}/none": "{folder}/none holds no run",
    "table1 {folder}/run {folder}/run": "{folder}/run is given twice",
    "table1 {folder}/run {folder}/same": "hold the same run",
    "table2 {folder}/run --outptu=x": "(did you mean '--output'?)",
    "scaling --output={folder}/out": "required: WORKDIR",
    "curves {folder}/run --against=XL": "--against=XL: no row has this name",
    "curves {folder}/run --agianst=XL": "(did you mean '--against'?)",
}
LINES = {f"train {TINY} {line}".strip(): words for line, words in TRAIN.items()}
LINES |= OTHERS
GIN_FILES = {
    "quotes": "data.seed = 1\nmodel.gate = lstm\n",
    "open": "model.gate = 'lstm\n",
    "twice": "data.seed = 1\n\ndata.seed = 2\n",
    "unused": "WIDHT = 64\n",
    "include": 'include "sizes/papr.gin"\n',
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Gin files with mistakes, a file, and a run twice."""
    folder = tmp_path_factory.mktemp("wrong")
    for name, text in GIN_FILES.items():
        (folder / f"{name}.gin").write_text(text)
    (folder / "latin.gin").write_bytes(b"# caf\xe9\n")
    (folder / "file").write_text("x")
    for name in ("run", "same"):
        write_run(folder / name, small(), [2.0])
    return folder


@pytest.fixture(scope="module")
def compilations() -> list[float]:
    """The durations of all compilations since; nothing compiled before helps."""
    seen: list[float] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: seen.append(seconds) if event == COMPILED else None
    )
    jax.clear_caches()
    jax.jit(lambda x: x + 1)(jnp.float32(1))
    assert seen, "JAX has another name for the event"
    return seen


def pattern(words: str, folder: Path) -> str:
    """`words` as they stand, with .* for anything."""
    parts = words.replace("{folder}", str(folder)).split(".*")
    return ".*".join(map(re.escape, parts))


def test_there_are_enough():
    assert len(LINES) >= 40


@pytest.mark.parametrize("line", LINES)
def test_a_wrong_line_is_status_2_and_a_message_before_anything_is_compiled(
    line, folder, compilations, capsys, monkeypatch
):
    monkeypatch.chdir(folder.parent)
    before, files = len(compilations), sorted(folder.rglob("*"))
    program, *words = line.replace("{folder}", str(folder)).split()
    begin = time.process_time()
    status = exit_status(main_of(program), *words)
    seconds = time.process_time() - begin
    output, message = capsys.readouterr()
    assert status == 2 and output == "", message
    assert re.search(pattern(LINES[line], folder), message.replace("\n", " ")), message
    assert "error: " in message and "Traceback" not in message
    assert len(compilations) == before and seconds < 5
    assert sorted(folder.rglob("*")) == files and not (folder.parent / "o").exists()


PROCESSES = {
    f"train {TINY} --gin.model.windwo=64 --workdir=x": "did you mean 'model.window'",
    "prepare_data text . --outptu=x": "did you mean '--output'",
    "table1 none": "none holds no run",
}


@pytest.mark.parametrize("line", PROCESSES)
def test_a_process_says_so_at_once(line, tmp_path):
    """Within the time that imports take on a busy machine."""
    program, *words = line.split()
    command = [sys.executable, str(PROGRAMS / f"{program}.py"), *words]
    environment = os.environ | {"PYTHONPATH": str(PROGRAMS.parent)}
    ended = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert ended.returncode == 2 and ended.stdout == ""
    assert PROCESSES[line] in ended.stderr and "Traceback" not in ended.stderr
    assert list(tmp_path.iterdir()) == []


def typos(name: str) -> Iterator[str]:
    """`name` with one letter dropped, doubled, or exchanged with the next."""
    for i, letter in enumerate(name):
        if letter.isalpha():
            yield name[:i] + name[i + 1 :]
            yield name[:i] + letter + name[i:]
            if i + 1 < len(name) and name[i + 1].isalpha() and name[i + 1] != letter:
                yield name[:i] + name[i + 1] + letter + name[i + 2 :]


def refusal_of_parameter(name: str) -> str:
    with pytest.raises(ConfigError) as caught:
        gin_files.load([], [f"{name}=1"])
    return str(caught.value)


def test_a_misspelt_parameter_is_answered_with_the_right_one():
    meant = {typo: name for name in PARAMETERS for typo in typos(name) if typo not in PARAMETERS}
    missed = [t for t, name in meant.items() if repr(name) not in refusal_of_parameter(t)]
    share = 1 - len(missed) / len(meant)
    assert len(meant) > 1500
    assert share >= 0.9, f"{share:.1%} of {len(meant)} typos; not {missed[:20]}"


def test_a_misspelt_gin_file_is_answered_with_the_right_one():
    names = [
        "sizes/tiny.gin",
        "laptop_slide.gin",
        "rows/rec_fixed_skip.gin",
        "datasets/arxiv_tokens.gin",
    ]
    assert all((GIN_FOLDER / name).is_file() for name in names)
    meant = {typo: name for name in names for typo in typos(name)}
    missed = []
    for typo, name in meant.items():
        with pytest.raises(ConfigError) as caught:
            gin_files.load([typo])
        missed += [] if repr(name) in str(caught.value) else [typo]
    share = 1 - len(missed) / len(meant)
    assert share >= 0.9, f"{share:.1%} of {len(meant)} typos; not {missed[:20]}"


COMMANDS = (
    *("train", "evaluate", "generate", "export", "train_table", "benchmark", "train_vocab"),
    *("table1", "table2", "scaling", "curves", "prepare_data pg19", "prepare_data latex"),
    *("prepare_data git", "prepare_data text", "compile"),
)


def options_of(command: str, capsys) -> list[str]:
    program, *kind = command.split()
    assert exit_status(main_of(program), *kind, "--help") == 0
    return re.findall(r"^ +(--\w+)(?![.\w])", capsys.readouterr().out, re.MULTILINE)


def test_a_misspelt_option_of_any_program_is_answered_with_the_right_one(capsys):
    count, missed = 0, []
    for command in COMMANDS:
        program, *kind = command.split()
        main, options = main_of(program), options_of(command, capsys)
        assert options
        for typo, meant in [(typo, option) for option in options for typo in typos(option)]:
            assert exit_status(main, *kind, f"{typo}=1") == 2
            count += 1
            right = f"{typo}=1' (did you mean {meant!r}?)" in capsys.readouterr().err
            missed += [] if right else [f"{command} {typo}"]
    share = 1 - len(missed) / count
    assert count > 1000
    assert share >= 0.9, f"{share:.1%} of {count} typos; not {missed[:20]}"


def test_what_the_lines_rely_on(folder):
    """The right line is no error, so that it is the mistake that each is refused for."""
    config = gin_files.load(["sizes/tiny.gin"], ["model.window=64"])
    assert config.model.window == 64
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    assert all(json.loads(line) for line in lines)
