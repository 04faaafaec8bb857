"""Laws of gin files and command lines, and the words of the errors they end in."""

import argparse
import dataclasses
import importlib.util  # noqa: F401  gin's own file reading uses it without importing it
from pathlib import Path

import gin
import pytest

from block_recurrent import gin_files
from block_recurrent.command_line.parser import make_parser, parse
from block_recurrent.config import (
    AdafactorConfig,
    AdamWConfig,
    ConfigError,
    DataConfig,
    ExperimentConfig,
    LSTMConfig,
    ModelConfig,
    TrainingConfig,
    TransformerConfig,
    TransformerXLConfig,
)
from block_recurrent.gin_files import GIN_FOLDER, load, to_gin

TINY = ["sizes/tiny.gin"]
FITTING = ["data.segment_length=512"]  # a whole segment of the vanilla Transformer


def load_text(folder: Path, text: str, *bindings: str) -> ExperimentConfig:
    (folder / "it.gin").write_text(text, encoding="utf-8")
    return load([*TINY, folder / "it.gin"], bindings)


def parser() -> argparse.ArgumentParser:
    parser = make_parser("A program.")
    parser.prog = "program"
    parser.add_argument("--workdir")
    return parser


@pytest.mark.parametrize(
    "experiment",
    [
        ExperimentConfig(model=ModelConfig(vocab_size=256)),
        ExperimentConfig(
            model=ModelConfig(
                vocab_size=300, recurrent_layers=(-3, 1), feedback=True, dropout=1e-7
            ),
            data=DataConfig(source="text", path="C:\\a 'b' \"c\"\n\té 書 \u2028 % @x #", seed=5),
            optimizer=AdamWConfig(weight_decay=0.1, clip_norm=1e30),
            training=TrainingConfig(num_steps=10**15),
        ),
        ExperimentConfig(
            model=TransformerXLConfig(vocab_size=256, memory=0, clamp_length=-1, remat="dots")
        ),
        ExperimentConfig(
            model=TransformerConfig(vocab_size=300, segment=64),
            data=DataConfig(segment_length=64),
        ),
        ExperimentConfig(model=LSTMConfig(vocab_size=300, hidden_size=7, dtype="bfloat16")),
        ExperimentConfig(
            model=ModelConfig(vocab_size=256, recurrent_layers=(0,), dtype="bfloat16"),
            data=DataConfig(source="jsonl", path=""),
            optimizer=AdafactorConfig(schedule="cosine", final_learning_rate=-0.25, clip_norm=2),
        ),
    ],
)
def test_written_configurations_read_back_equal(experiment, tmp_path):
    (tmp_path / "config.gin").write_text(to_gin(experiment), encoding="utf-8")
    assert load([tmp_path / "config.gin"]) == experiment


def test_written_configurations_hold_every_parameter_once():
    written = set()
    for parameter, value in [
        (parameter, value) for parameter, kinds in gin_files.CHOICES.values() for value in kinds
    ]:
        lines = to_gin(load(TINY, [f"{parameter}={value}", *FITTING])).split("\n")
        names = [line.split(" = ")[0] for line in lines if line]
        assert len(set(names)) == len(names)
        written |= set(names)
    assert written == set(gin_files.PARAMETERS)


def test_later_files_win_and_flags_win_over_files(tmp_path):
    assert load_text(tmp_path, "model.num_layers = 3").model.num_layers == 3
    assert load([tmp_path / "it.gin", *TINY]).model.num_layers == 6
    assert load_text(tmp_path, "model.num_layers = 3", "model.num_layers=4").model.num_layers == 4
    text = 'include "rows/rec_fixed_dual.gin"\nmodel.wiring = "single"'
    assert load_text(tmp_path, text).model.wiring == "single"


def test_macros_are_read_late():
    experiment = load([*TINY, "rows/xl_512.gin"], ["WINDOW=64"])
    assert experiment.model.window == experiment.data.segment_length == 64


def test_sections_may_be_indented_blocks(tmp_path):
    text = "LAYER = -1\nmodel:\n  num_layers = 3  # few\n  recurrent_layers = (0, %LAYER)\n"
    assert load_text(tmp_path, text).model.recurrent_indices == (0, 2)


@pytest.mark.parametrize(
    "text, value",
    [
        ("/x/y", "/x/y"),
        ("../shared/data/books", "../shared/data/books"),
        ("books 2/a#b=c", "books 2/a#b=c"),
        ("C:\\x", "C:\\x"),
        ("a\nmodel.window = 3", "a\nmodel.window = 3"),
        ('"/x/y"', "/x/y"),
        ("'7'", "7"),
    ],
)
def test_a_flag_may_be_a_bare_string(text, value):
    assert load(TINY, ["data.source=jsonl", f"data.path={text}"]).data.path == value


def test_flags_are_typed_like_files():
    flags = ["model.recurrent_layers=(-1,)", "optimizer.clip_norm=None", "model.scan_layers=False"]
    experiment = load(TINY, [*flags, "optimizer.learning_rate=1e-2", "data.seed=3"])
    assert experiment.model.recurrent_layers == (-1,) and not experiment.model.scan_layers
    assert experiment.optimizer == AdafactorConfig(learning_rate=0.01)
    assert experiment.data.seed == 3


def test_nothing_leaks_from_one_call_to_the_next():
    before, before_in_gin = load(TINY), gin.config_str()
    load([*TINY, "rows/xl_512.gin"], ["WINDOW=64", "training.seed=9"])
    with pytest.raises(ConfigError):
        load(TINY, ["model.dtype=bfloat16", "model.gate=7"])
    assert load(TINY) == before
    assert gin.config_str() == before_in_gin


def test_files_are_found_from_any_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.gin").write_text('include "sizes/tiny.gin"\nmodel.window = 64')
    assert load(["mine.gin"]).model == dataclasses.replace(load(TINY).model, window=64)
    assert load(["laptop_slide.gin"]) == load([GIN_FOLDER / "laptop_slide.gin"])


WRONG_FILES = {
    "data.source = 'stdlib'\nmodel.num_layer = 4": ["it.gin:2", "'model.num_layer'", "num_layers'"],
    "mdoel.window = 4": ["it.gin:1", "'mdoel.window'", "did you mean 'model.window'"],
    "mdoel:\n  window = 4": ["it.gin:2", "did you mean 'model.window'"],
    "model.batch_size = 4": ["it.gin:1", "did you mean 'data.batch_size'"],
    "ModelConfig.window = 4": ["it.gin:1", "did you mean 'model.window'"],
    "window = 4": [
        "it.gin:1",
        "no parameter or macro 'window' in use",
        "did you mean 'model.window'",
    ],
    "WINDWO = 4": ["it.gin:1", "nothing uses the macro 'WINDWO'"],
    "\n# x\nmodel.num_layers = '4'": ["it.gin:3", "model.num_layers must be int, not '4' (str)"],
    "model.num_layers = 4.0": ["it.gin:1", "model.num_layers must be int"],
    "model.recurrent_layers = (-3)": [
        "it.gin:1",
        "must be tuple[int, ...], not -3 (int); write (-3,)",
    ],
    "model.recurrent_layers = (-9,)": ["it.gin:1", "layer -9", "-6 to 5"],
    "model.recurrent_layers = [1]": ["it.gin:1", "must be tuple"],
    "model.feedback = 1": ["it.gin:1", "model.feedback must be bool"],
    "model.gate = 'lstn'": ["it.gin:1", "model.gate must be one of", "did you mean 'lstm'"],
    "model.gate = lstm": ["it.gin:1", "'lstm'", "quotes"],
    "model.dropout = 1.5": ["it.gin:1", "dropout must be in [0, 1), not 1.5"],
    "model.window = 0": ["it.gin:1", "window must be positive, not 0"],
    "WIDTH = 'w'\nmodel.window = %WIDTH": ["it.gin:2, ", "it.gin:1: ", "must be int"],
    "data.segment_length = 1000": ["it.gin:1", "tiny.gin:8", "no multiple of model.window 128"],
    "model.vocab_size = 99": ["it.gin:1", "at least 256, not 99"],
    "data.source = 'jsonl'": ["it.gin:1", "data: source 'jsonl' needs a path; set data.path"],
    "optimizer.weight_decay = 0.1": [
        "it.gin:1",
        "weight_decay needs optimizer.name = 'adamw'",
    ],
    "model.window = 64\nmodel.window = 64": ["it.gin:2", "model.window is bound twice", "it.gin:1"],
    "model:\n  window = 64\nmodel.window = 8": ["it.gin:3", "bound twice", "it.gin:2"],
    "model.window = %WINDOW": ["it.gin:1", "macro %WINDOW is not defined"],
    "WIDE = 8\nmodel.window = %WIDTH\ndata.seed = %WIDE": ["it.gin:2", "did you mean 'WIDE'"],
    "A = %B\nB = %A\nmodel.window = %A": ["it.gin:1: A refers to itself"],
    'include "sizes/papr.gin"': ["it.gin:1", "did you mean 'sizes/paper.gin'"],
    'data.seed = 1\ninclude "sizes/tiny.gin"': ["it.gin:2", "includes come before bindings"],
    "include sizes": ["it.gin:1", "'sizes'"],
    "a/model.window = 4": ["it.gin:1", "scopes", "write 'model.window'"],
    "\n\nmodel.gate = @lstm": ["it.gin:3", "@lstm"],
    "model.gate = @lstm()": ["it.gin:1", "@lstm"],
    "import os": ["it.gin:1", "imports"],
    "data.seed = 1\nmodel.window 64": ["it.gin:2", "expected ':' or '='"],
    "data.seed = 1\nmodel.window =": ["it.gin:2", "Unable to parse value"],
    "data.seed = 1\nmodel.recurrent_layers = (1,": ["it.gin:", "EOF"],
    "model.gate = 'lstm": ["it.gin:1"],
    "model.window = 64 65": ["it.gin:1", "Expected newline"],
    "model.recurrent_layers = " + 5000 * "(": ["it.gin:1", "nested too deeply"],
    f'include "{5000 * "a"}"': ["it.gin:1", "there is no file"],
    f'include "{5000 * "a"}/b.gin"': ["it.gin:1", "there is no file"],
    f"model.recurrent_layers = ({10**400},)": ["it.gin:1", "recurrent_layers"],
}


@pytest.mark.parametrize("text", WRONG_FILES)
def test_wrong_files_end_in_an_error_that_says_where_and_what(text, tmp_path):
    with pytest.raises(ConfigError) as caught:
        load_text(tmp_path, text)
    message = str(caught.value)
    assert all(words in message for words in WRONG_FILES[text]), message
    assert len(message.splitlines()) == 1


WRONG_FLAGS = {
    "--gin.model.num_layer=4": ["--gin.model.num_layer", "did you mean 'model.num_layers'"],
    "--gin.model.num_layers=four": ["--gin.model.num_layers", "must be int, not 'four' (str)"],
    "--gin.model.num_layers": ["--gin.model.num_layers: write --gin.NAME=VALUE"],
    "--gin.model.num_layers=": ["write --gin.NAME=VALUE"],
    "--gin.a/model.num_layers=4": ["write --gin.NAME=VALUE"],
    "--gin.model.recurrent_layers=(1,": ["--gin.model.recurrent_layers: "],
    "--gin.model.window=%W": ["--gin.model.window", "macro %W is not defined"],
    "--gin.batch_size=8": [
        "--gin.batch_size: there is no parameter or macro 'batch_size' in use",
        "(did you mean 'data.batch_size'?)",
    ],
    "--gin.seed=8": ["did you mean 'data.seed' or 'training.seed'?"],
    "--gin.WINDOW=64": ["--gin.WINDOW: nothing uses the macro 'WINDOW'"],
    "--gin.model.window=100": ["--gin.model.window", "tiny.gin:11", "no multiple"],
    "--gin.optimizer.name=adam": ["--gin.optimizer.name", "did you mean 'adamw'"],
    "--gin_file=laptop_slid.gin": ["--gin_file=laptop_slid.gin", "did you mean 'laptop_slide.gin'"],
    "--gin_file=sizes": ["there is no file 'sizes'"],
    "--gin_fil3=laptop_slide.gin": ["--gin_fil3", "did you mean '--gin_file'"],
    "--model.window=64": ["--model.window", "did you mean '--gin.model.window'"],
    "--gin.model.window --workdir=x 64": ["'64'", "joined by ="],
    "--workdri=x": ["--workdri", "did you mean '--workdir'"],
}


@pytest.mark.parametrize("line", WRONG_FLAGS)
def test_wrong_command_lines_exit_with_status_2_and_one_message(line, capsys):
    with pytest.raises(SystemExit) as caught:
        words = line.split(" ")
        parse(parser(), ["--gin_file=sizes/tiny.gin", *words])
    message = capsys.readouterr().err
    assert caught.value.code == 2
    assert all(words in message for words in WRONG_FLAGS[line]), message
    assert "Traceback" not in message


def test_nearly_every_typo_is_answered_with_the_right_name():
    typos = {n[:i] + n[i + 1 :]: n for n in gin_files.PARAMETERS for i in range(len(n))}
    answered = 0
    for typo, name in typos.items():
        with pytest.raises(ConfigError) as caught:
            load(TINY, [f"{typo}=1"])
        answered += repr(name) in str(caught.value)
    assert answered >= 0.9 * len(typos)


def test_a_missing_required_value_is_named():
    with pytest.raises(ConfigError, match="model.vocab_size is not set"):
        load([])


@pytest.mark.parametrize("content", [b"\xff\xfe", b"model.window = 4\x00", b"  x\n y\n", b"\x0c$?"])
def test_files_that_are_no_gin_text_are_errors(content, tmp_path):
    (tmp_path / "it.gin").write_bytes(content)
    with pytest.raises(ConfigError, match="it.gin"):
        load([*TINY, tmp_path / "it.gin"])


def test_a_file_cut_anywhere_loads_or_is_a_config_error(tmp_path):
    text = (GIN_FOLDER / "laptop_rec_fixed_skip.gin").read_text() + "\nmodel.mlp_size = (-8)\n"
    for end in range(0, len(text), 3):
        try:
            load_text(tmp_path, text[:end])
        except ConfigError:
            continue


def test_files_that_include_each_other_are_an_error(tmp_path):
    first, second = tmp_path / "first.gin", tmp_path / "second.gin"
    first.write_text(f"include {str(second)!r}")
    second.write_text(f"include {str(first)!r}")
    with pytest.raises(ConfigError, match="second.gin:1: .*first.gin' includes itself"):
        load([first])


def test_paths_that_nothing_binds_are_to_be_given_where_no_data_is_needed():
    files = ["sizes/paper.gin", "datasets/arxiv_tokens.gin"]
    with pytest.raises(ConfigError, match="needs a path"):
        load(files)
    data = load(files, ["data.vocab_path=mine"], needs_data=False).data
    assert (data.path, data.vocab_path) == (gin_files.TO_BE_GIVEN, "mine")
    assert load(TINY, needs_data=False) == load(TINY)
    words = ["--gin_file=sizes/tiny.gin", "--gin.data.source=text"]
    _, experiment = parse(parser(), words, needs_data=lambda given: given.workdir is not None)
    assert experiment.data.path == gin_files.TO_BE_GIVEN


def test_a_program_reads_its_own_arguments_and_base_files(tmp_path):
    (tmp_path / "config.gin").write_text(to_gin(load(TINY)))
    argv = ["--gin.data.seed=3", "--workdir", str(tmp_path), "--gin_file=rows/slide_13l.gin"]
    arguments, experiment = parse(parser(), argv, lambda given: [f"{given.workdir}/config.gin"])
    assert arguments.workdir == str(tmp_path)
    assert (experiment.data.seed, experiment.model.num_layers) == (3, 13)


def test_no_package_hides_gin():
    assert not (GIN_FOLDER / "__init__.py").exists()


# Architectures.


def test_what_an_architecture_has_not_is_left_out_of_files_and_refused_on_the_command_line(
    tmp_path,
):
    lstm = load(TINY, ["model.architecture=lstm", "model.hidden_size=5"])
    assert lstm.model == LSTMConfig(vocab_size=256, num_layers=6, model_size=128, hidden_size=5)
    for flag in ("model.window=4", "model.memory=4"):
        with pytest.raises(ConfigError) as caught:
            load_text(tmp_path, "model.architecture = 'lstm'", flag)
        name = flag.partition("=")[0]
        assert f"--gin.{name}: with model.architecture = 'lstm', set at " in str(caught.value)
        assert f"it.gin:1, there is no {name}" in str(caught.value)
    words = "it.gin:1: model.memory needs model.architecture = 'transformer_xl'"
    with pytest.raises(ConfigError, match=words):
        load_text(tmp_path, "model.memory = 4")
    text = "optimizer.name = 'adafactor'\noptimizer.b1 = 0.8"
    with pytest.raises(ConfigError, match=r"it.gin:2: with optimizer.name = .*there is no opt"):
        load_text(tmp_path, text)
    other = load(["laptop_slide.gin"], ["optimizer.name=adafactor", "optimizer.momentum=None"])
    assert other.optimizer == AdafactorConfig(
        schedule="cosine",
        learning_rate=5e-3,
        final_learning_rate=5e-4,
        warmup_steps=100,
        clip_norm=1.0,
        momentum=None,
    )


def test_a_wrong_architecture_is_answered_with_the_right_ones(tmp_path):
    with pytest.raises(ConfigError, match="it.gin:1: model.architecture must be one of .* 'lstm'"):
        load_text(tmp_path, "model.architecture = ['lstm']")
    with pytest.raises(ConfigError, match="not 'lstn' .did you mean 'lstm'"):
        load(TINY, ["model.architecture=lstn"])
    with pytest.raises(ConfigError, match="model.vocab_size is not set"):
        load([], ["model.architecture=transformer"])


def test_errors_of_an_architecture_say_where(tmp_path):
    text = "model.architecture = 'transformer'\nmodel.segment = 7"
    with pytest.raises(ConfigError, match="it.gin:2: data.segment_length 1024 is no multiple"):
        load_text(tmp_path, text)
    for name, value in (("clear_states", True), ("state_passing", 0.5)):
        with pytest.raises(ConfigError, match=f"--gin.training.{name}: .*'lstm' has no recurrent"):
            load(TINY, ["model.architecture=lstm", f"training.{name}={value}"])


def test_a_configuration_without_the_architecture_is_the_block_recurrent_one(tmp_path):
    lines = to_gin(load(TINY)).splitlines()
    old = [line for line in lines if not line.startswith("model.architecture")]
    assert len(old) == len(lines) - 1
    (tmp_path / "config.gin").write_text("\n".join(old), encoding="utf-8")
    assert load([tmp_path / "config.gin"]) == load(TINY)
