"""Laws of the programs train, evaluate and generate, on one trained run."""

import io
import json
import os
import pkgutil
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import block_recurrent
from block_recurrent import gin_files
from block_recurrent.command_line.generate import (
    Stream,
    encode_prompt,
    read_prompt,
    text_after,
)
from block_recurrent.data import ByteTokenizer
from block_recurrent.model.parameters import count_parameters
from block_recurrent.runs import identity
from block_recurrent.runs.checkpoints import Checkpoints
from block_recurrent.runs.metrics import read_metrics
from block_recurrent.runs.trained import load
from experiments import evaluate, generate, train
from tests.helpers import slow
from tests.programs import PROGRAMS
from tests.soak import processes

TEXT = "the quick brown fox jumps over the lazy dog, und dann schläft er wieder ein. "
STEPS = 300
TINY = processes.BINDINGS | {
    "training.num_steps": STEPS,
    "training.evaluate_every": STEPS // 2,
    "training.checkpoint_every": STEPS,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A corpus `books`, a configuration `tiny.gin`, and a cache of compiled programs."""
    folder = tmp_path_factory.mktemp("programs")
    (folder / "books").mkdir()
    for split, count in {"train": 5, "validation": 2}.items():
        records = [{"id": f"{split}{n}", "text": TEXT[n:] * (n + 1)} for n in range(count)]
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (folder / "books" / f"{split}.jsonl").write_text(lines, encoding="utf-8")
    values = TINY | {"data.path": str(folder / "books")}
    gin = "".join(f"{name} = {value!r}\n" for name, value in values.items())
    (folder / "tiny.gin").write_text(gin, encoding="utf-8")
    return folder


def train_arguments(folder: Path, name: str) -> list[str]:
    return [f"--gin_file={folder / 'tiny.gin'}", f"--workdir={folder / name}"]


def figures_of(workdir: Path) -> list[dict]:
    """The lines of metrics, without what the clock says."""
    lines = read_metrics(workdir / "metrics.jsonl")
    return [{name: line[name] for name in line if name != "tokens_per_second"} for line in lines]


@pytest.fixture(scope="module")
def trained(folder) -> Path:
    """The work directory of a run without interruption."""
    assert train.main(train_arguments(folder, "trained")) == 0
    return folder / "trained"


@pytest.fixture(scope="module")
def ending(folder) -> Path:
    """The work directory of a run whose documents are one sentence and its end."""
    for split in ("train", "validation"):
        (folder / "sentences" / split).mkdir(parents=True)
        for number in range(3):
            text = folder / "sentences" / split / f"{number}.txt"
            text.write_text("the quick brown fox jumps over.")
    corpus = ["--gin.data.source=text", f"--gin.data.path={folder / 'sentences'}"]
    options = [*corpus, "--gin.data.end_of_document=True"]
    assert train.main([*train_arguments(folder, "ending"), *options]) == 0
    return folder / "ending"


def test_training_learns(trained):
    bits = [line["bits_per_token"] for line in figures_of(trained) if "bits_per_token" in line]
    assert len(bits) == STEPS
    assert bits[0] > 7.5 and max(bits[-10:]) < 4.5


def test_the_configuration_in_the_work_directory_is_that_of_the_run(folder, trained):
    assert gin_files.load([trained / "config.gin"]) == gin_files.load([folder / "tiny.gin"])


def test_evaluation_finds_the_figures_of_training(trained, capsys):
    assert evaluate.main([f"--workdir={trained}"]) == 0
    output = capsys.readouterr().out
    figures = json.loads((trained / "evaluation_validation.json").read_text())
    expected = figures_of(trained)[-1]
    for name, value in expected.items():
        assert figures[name.removeprefix("validation/")] == value
    assert (figures["split"], figures["corpus"], figures["documents"]) == ("validation", "books", 2)
    assert figures["origin"].startswith("jsonl validation (")
    for name in ("bits_per_token", "bits_per_byte"):
        assert f"{name} {figures[name]:.6g}" in output
    assert f"tokens {figures['tokens']}" in output


def test_only_parameters_are_kept_of_a_checkpoint_that_is_scored(trained):
    before = jax.live_arrays()
    model = load(trained).model
    known = set(map(id, before))
    added = [array for array in jax.live_arrays() if id(array) not in known]
    assert sum(array.size for array in added) == count_parameters(model)


def test_documents_can_be_read_one_after_the_other(trained, tmp_path):
    figures = []
    for number, options in enumerate(([], ["--batch_size=1"])):
        path = tmp_path / f"{number}.json"
        assert evaluate.main([f"--workdir={trained}", f"--output={path}", *options]) == 0
        figures.append(json.loads(path.read_text()))
    assert figures[1]["nats"] == pytest.approx(figures[0]["nats"], rel=1e-6)
    assert figures[1]["tokens"] == figures[0]["tokens"]


@pytest.fixture
def scored(trained) -> Path:
    """The run's own evaluation, written as if by an earlier call."""
    path = trained / "evaluation_validation.json"
    path.write_text("the run's own\n")
    return path


OTHER_SETTINGS = {
    "states": (["training.clear_states=True"], "training.clear_states = False, now True"),
    "two": (
        ["data.seed=1", "optimizer.warmup_steps=7"],
        "data.seed = 0, now 1; optimizer.warmup_steps = 50, now 7",
    ),
    "corpus": (["data.path={folder}/tales"], "data.name = 'books', now 'tales'"),
}


@pytest.mark.parametrize("split", ["test", *slow("validation")])
def test_figures_of_other_documents_do_not_replace_the_runs(split, folder, tmp_path, capsys):
    """Wherever the corpus lies and whatever it is called: its text decides."""
    workdir = tmp_path / "named"
    name, steps = "--gin.data.name=mine", "--gin.training.num_steps=2"
    assert train.main([*train_arguments(folder, "named"), f"--workdir={workdir}", name, steps]) == 0
    places = {where: tmp_path / where for where in ("moved", "other", "alone")}
    for where, place in places.items():
        shutil.copytree(folder / "books", place)
        (place / "test.jsonl").write_text('{"id": "t", "text": "held out"}\n')
        if where == "other":
            (place / "validation.jsonl").write_text('{"id": "v", "text": "other text"}\n')
    (places["alone"] / "validation.jsonl").unlink()
    written = workdir / f"evaluation_{split}.json"
    for where, place in places.items():
        if (where, split) == ("alone", "validation"):
            continue  # a share of the training documents
        capsys.readouterr()
        call = [f"--workdir={workdir}", f"--split={split}", f"--gin.data.path={place}"]
        assert evaluate.main(call) == 0
        assert written.exists() == (where == "moved")
        if where != "moved":
            assert f"in: documents: those of {place}; --output" in capsys.readouterr().out
        written.unlink(missing_ok=True)


@pytest.mark.parametrize("bindings, words", OTHER_SETTINGS.values(), ids=OTHER_SETTINGS)
def test_figures_of_other_settings_do_not_replace_the_runs(
    bindings, words, folder, trained, scored, tmp_path, capsys
):
    shutil.copytree(folder / "books", folder / "tales", dirs_exist_ok=True)
    options = [f"--gin.{binding}".format(folder=folder) for binding in bindings]
    call = [f"--workdir={trained}", *options]
    assert evaluate.main(call) == 0
    output = capsys.readouterr().out
    said = f"not written, for it differs from the run in: {words}; --output=FILE writes it\n"
    assert "bits_per_token" in output and output.endswith(said)
    assert scored.read_text() == "the run's own\n"
    path = tmp_path / "new" / "other.json"
    assert evaluate.main([*call, f"--output={path}"]) == 0
    output = capsys.readouterr().out
    assert f"written to {path}" in output and "not written" not in output
    assert f"bits_per_token {json.loads(path.read_text())['bits_per_token']:.6g}" in output
    assert scored.read_text() == "the run's own\n"


def test_another_checkpoint_does_not_replace_the_newest_ones_figures(trained, scored, capsys):
    assert evaluate.main([f"--workdir={trained}", "--checkpoint=best"]) == 0
    assert (
        "not written, for it differs from the run in: checkpoint: best;" in capsys.readouterr().out
    )
    assert scored.read_text() == "the run's own\n"


def test_the_segment_length_matters_where_states_are_cleared(folder, tmp_path):
    for clear in (False, True):
        bindings = [f"training.clear_states={clear}"]
        config = gin_files.load([folder / "tiny.gin"], bindings)
        (tmp_path / "config.gin").write_text(gin_files.to_gin(config))
        longer = gin_files.load([folder / "tiny.gin"], [*bindings, "data.segment_length=32"])
        assert bool(identity.other_settings(tmp_path, longer)) == clear


def test_how_batches_are_cut_and_where_files_lie_is_no_other_setting(
    folder, trained, scored, tmp_path, capsys
):
    shutil.copytree(folder / "books", tmp_path / "books")
    sizes = ["--gin.data.batch_size=1", "--gin.data.segment_length=8"]
    options = [f"--workdir={trained}", *sizes, f"--gin.data.path={tmp_path / 'books'}"]
    assert evaluate.main(options) == 0
    assert f"written to {scored}" in capsys.readouterr().out
    assert json.loads(scored.read_text())["corpus"] == "books"


def test_an_evaluation_that_could_not_be_written_is_refused_first(trained, tmp_path, capsys):
    message = refusal(evaluate.main, capsys, f"--workdir={trained}", f"--output={tmp_path}")
    assert f"--output: {tmp_path} is a directory; name a file in it" in message


def test_a_checkpoint_is_chosen(trained, tmp_path, capsys):
    store, output = Checkpoints(trained / "checkpoints"), tmp_path / "scored.json"
    oldest = store.steps()[0]
    assert oldest != store.latest_step()
    chosen = {"newest": store.latest_step(), "best": store.best_step(), str(oldest): oldest}
    for which, step in chosen.items():
        options = [f"--workdir={trained}", f"--checkpoint={which}", f"--output={output}"]
        assert evaluate.main(options) == 0
        assert json.loads(output.read_text())["step"] == step
    assert evaluate.main([f"--workdir={trained}", "--checkpoint=7"]) == 4
    assert f"no checkpoint 7 in {store.directory}: found {oldest}, " in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        evaluate.main([f"--workdir={trained}", "--checkpoint=bset"])
    assert "must be newest, best or a step, not 'bset'" in capsys.readouterr().err


def test_the_best_checkpoint_is_there_after_an_evaluation_only(trained, tmp_path, capsys):
    workdir = shutil.copytree(trained, tmp_path / "run")
    for path in workdir.glob("checkpoints/*/loss.json"):
        path.unlink()
    assert evaluate.main([f"--workdir={workdir}", "--checkpoint=best"]) == 4
    assert f"no checkpoint in {workdir} has a validation loss" in capsys.readouterr().err


def test_the_prompt_begins_a_document(tmp_path):
    (tmp_path / "prompt").write_bytes("é\n".encode() + b"\xff")
    prompt = encode_prompt(read_prompt(tmp_path / "prompt"), ByteTokenizer())
    assert prompt.tolist() == [0, *"é\n\ufffd".encode()]
    assert encode_prompt("a\udcffb", ByteTokenizer()).tolist() == [0, *"a\ufffdb".encode()]


@pytest.mark.parametrize(
    "text", ["aé書\U0001f600z".encode(), b"a\xffb", b"\xff\xff\xff\xe2\x82\xac"]
)
def test_text_is_written_as_it_comes_and_never_a_part_of_a_character(text):
    file = io.StringIO()
    stream = Stream(ByteTokenizer(), np.zeros(1, np.int32), file)
    for end, byte in enumerate(text, start=1):
        assert not stream(np.array([byte], np.int32))
        assert text[:end].decode(errors="replace").startswith(file.getvalue())
    assert file.getvalue() == text.decode(errors="replace")


@pytest.mark.parametrize(
    "stops, written",
    [
        (["aab"], "aé a"),
        (["é aaab", "c"], "a"),
        (["bc", "b", "zz"], "aé aaa"),
        (["cd", "bcc"], "aé aaabc"),
        (["é"], "a"),
    ],
)
@pytest.mark.parametrize("piece", [1, 2, 100])
def test_a_text_ends_before_the_first_stop_wherever_tokens_end(stops, written, piece):
    tokens, file, ended = ByteTokenizer().encode("aé aaabc"), io.StringIO(), False
    stream = Stream(ByteTokenizer(), tokens[:0], file, stops)
    for begin in range(0, len(tokens), piece):
        assert written.startswith(file.getvalue())
        ended = stream(tokens[begin : begin + piece])
    assert ended == (written != "aé aaabc")
    stream.finish()
    assert file.getvalue() == written


def test_the_space_between_words_is_written_whatever_a_tokenizer_does_with_the_first():
    class Words(ByteTokenizer):
        words = ("in", "the", "state")

        def decode(self, tokens):
            return " ".join(self.words[token] for token in tokens)

    prompt, rest = np.array([0, 1], np.int32), np.array([2, 0, 2], np.int32)
    assert text_after(Words(), prompt, rest) == " state in state"
    assert text_after(Words(), prompt[:0], rest) == "state in state"


def test_generation_continues_the_prompt(trained, tmp_path, capsys):
    (tmp_path / "prompt").write_text("the quick ")
    options = [f"--prompt_file={tmp_path / 'prompt'}", "--max_new_tokens=40"]
    assert generate.main([f"--workdir={trained}", *options]) == 0
    assert capsys.readouterr().out.startswith("brown fox")


def test_samples_differ_and_follow_from_prompt_and_seed(trained, tmp_path, capsys, monkeypatch):
    (tmp_path / "prompt").write_text("the quick ")

    def samples(prompt: str, seed: int) -> str:
        options = ["--samples=2", "--temperature=2", "--max_new_tokens=40"]
        assert generate.main([f"--workdir={trained}", prompt, f"--seed={seed}", *options]) == 0
        return capsys.readouterr().out

    output = samples(f"--prompt_file={tmp_path / 'prompt'}", seed=3)
    first, second = output.removeprefix("--- 1 ---\n").split("--- 2 ---\n")
    assert first != second and min(len(first), len(second)) > 20
    with (tmp_path / "prompt").open() as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        assert samples("--prompt_file=-", seed=3) == output
    assert samples(f"--prompt_file={tmp_path / 'prompt'}", seed=4) != output


@pytest.mark.parametrize("samples", [1, 2])
def test_samples_end_before_a_stop(samples, trained, capsys):
    options = ["--prompt=the quick ", "--temperature=0", "--stop=zzz", "--stop=x jum"]
    options += [f"--samples={samples}", "--max_new_tokens=40", "--min_p=0.1"]
    assert generate.main([f"--workdir={trained}", *options]) == 0
    output = capsys.readouterr().out
    assert output == "".join(
        f"--- {number} ---\nbrown fo\n" if samples > 1 else "brown fo\n"
        for number in range(1, samples + 1)
    )


@pytest.mark.parametrize("piece", [1, 2, 100])
@pytest.mark.parametrize("end, written", [(0, "aé aaabc"), (ord("b"), "aé aaa"), (0xC3, "a")])
def test_a_text_ends_before_a_stop_token(end, written, piece):
    tokens, file = ByteTokenizer().encode("aé aaabc\0zc"), io.StringIO()
    stream = Stream(ByteTokenizer(), tokens[:0], file, ["zc", "c\0"], [end])
    ended = [stream(tokens[begin : begin + piece]) for begin in range(0, len(tokens), piece)]
    assert ended == sorted(ended) and ended[-1]
    stream.finish()
    assert file.getvalue() == written


@pytest.mark.parametrize("samples", [1, 2])
def test_a_model_that_learned_where_documents_end_ends_there(samples, ending, capsys):
    options = ["--prompt=the quick ", "--temperature=0", "--max_new_tokens=200"]
    assert generate.main([f"--workdir={ending}", f"--samples={samples}", *options]) == 0
    text = "brown fox jumps over.\n"
    assert capsys.readouterr().out == (
        text if samples == 1 else f"--- 1 ---\n{text}--- 2 ---\n{text}"
    )


# `tests/reliability/test_command_lines.py` has more wrong calls.
WRONG_CALL, WRONG_DATA, WRONG_CHECKPOINT = 2, 3, 4


def refusal(main, capsys, *arguments: str, status: int = WRONG_CALL) -> str:
    """The message of a call that ends in this status."""
    try:
        ended = main(list(map(str, arguments)))
    except SystemExit as caught:
        ended = caught.code
    output, errors = capsys.readouterr()
    assert ended == status
    assert "Traceback" not in errors and output == ""
    return errors.partition(": error: ")[2]


@pytest.mark.parametrize("main", [train.main, evaluate.main])
def test_a_corpus_that_is_not_there_is_refused(main, folder, trained, tmp_path, capsys):
    run = [f"--workdir={trained}"] if main == evaluate.main else train_arguments(tmp_path, "run")
    if main == train.main:
        shutil.copy(folder / "tiny.gin", tmp_path)
    message = refusal(main, capsys, *run, "--gin.data.path=/no/books", status=WRONG_DATA)
    assert "/no/books" in message and "does not exist" in message
    assert not (tmp_path / "run").exists()


def test_another_model_than_the_runs_is_refused(trained, capsys):
    options = [f"--workdir={trained}", "--gin.model.mlp_size=24"]
    assert "mlp" in refusal(evaluate.main, capsys, *options, status=WRONG_CHECKPOINT)


def test_training_refuses_a_split_without_documents(folder, tmp_path, capsys):
    (tmp_path / "train.jsonl").write_text((folder / "books/train.jsonl").read_text())
    (tmp_path / "validation.jsonl").write_text('{"id": "empty", "text": " "}\n')
    arguments = [*train_arguments(folder, "empty"), f"--gin.data.path={tmp_path}"]
    message = refusal(train.main, capsys, *arguments, status=WRONG_DATA)
    assert "jsonl validation" in message and "1 empty" in message
    assert not (folder / "empty").exists()


def test_training_refuses_the_work_directory_of_another_configuration(folder, trained, capsys):
    before = (trained / "config.gin").read_text()
    options = ["--gin.model.mlp_size=24", "--gin.training.seed=1", "--gin.training.num_steps=500"]
    message = refusal(train.main, capsys, *train_arguments(folder, "trained"), *options)
    assert "holds a run with another configuration" in message
    assert "model.mlp_size = 16, now 24" in message and "training.seed = 0, now 1" in message
    assert "num_steps" not in message
    assert (trained / "config.gin").read_text() == before


def test_no_module_imports_tensorflow(tmp_path):
    """With a TensorFlow to be found, in case one is imported only where it is installed."""
    (tmp_path / "tensorflow.py").write_text("")
    found = pkgutil.walk_packages(block_recurrent.__path__, "block_recurrent.")
    modules = [module.name for module in found] + [
        f"experiments.{path.stem}" for path in PROGRAMS.glob("*.py")
    ]
    assert "block_recurrent.runs.checkpoints" in modules and "experiments.train" in modules
    light = "import sys, block_recurrent; assert 'orbax' not in sys.modules"
    code = f"{light}; import {', '.join(modules)}; sys.exit('tensorflow' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{PROGRAMS.parent}"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, cwd=tmp_path)
