"""The analyses as a program: what it prints, writes and refuses."""

import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from block_recurrent.data.loading import load_split
from block_recurrent.runs.metrics import read_metrics
from block_recurrent.runs.trained import load
from block_recurrent.training.evaluation import evaluate
from experiments import analyze
from tests import quick_runs
from tests.quick_runs import TEXT
from tests.synthetic_runs import exit_status

SMALL = ["--positions=6", "--context=32", "--freeze_at=16", "--batch_size=2"]
SLIDE = ["--gin.model.recurrent_layers=()"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Work directories `rec` and `slide` of models that have hardly been trained."""
    folder = tmp_path_factory.mktemp("analysis")
    inputs = quick_runs.make_inputs(folder)
    # Longer documents than those of quick runs, so that the context can be varied.
    for path in (folder / "books").glob("*.jsonl"):
        path.write_text(path.read_text().replace(TEXT, TEXT * 3))
    with pytest.MonkeyPatch.context() as patch:
        quick_runs.Steps(patch)
        for name, options in {"rec": [], "slide": SLIDE}.items():
            assert quick_runs.run(inputs, folder / name, *options) == 0
    shutil.copytree(folder / "slide", folder / "copy")
    return folder


@pytest.fixture(scope="module")
def analysed(folder):
    """The output folder of a first call."""
    words = [str(folder / "rec"), str(folder / "slide"), f"--output={folder / 'out'}", *SMALL]
    assert analyze.main(words) == 0
    return folder / "out"


PICTURES = {"position", "kinds", "distance", "interventions", "context", "states", "attention"}


def data_of(folder: Path) -> dict:
    return json.loads((folder / "analysis.json").read_text())


def test_everything_is_written(analysed):
    names = {path.name for path in analysed.iterdir()}
    assert names == {"analysis.md", "analysis.json"} | {f"{name}.png" for name in PICTURES}
    page = (analysed / "analysis.md").read_text()
    for name in PICTURES:
        assert f"![{name}]({name}.png)" in page
        assert (analysed / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert "Slide:1L has no recurrent layers" in page and "## The words that gain most" in page


def test_bits_are_those_of_evaluation(folder, analysed):
    data = data_of(analysed)
    for run in data["runs"]:
        model, config, *_ = load(run["workdir"])
        expected = evaluate(config, model, load_split(config.data, "validation"))
        assert run["bits"]["mean"] == pytest.approx(expected.bits_per_token, rel=1e-5)
    assert data["reference"] == "Slide:1L" and data["corpus"]["documents"] == [
        "validation0",
        "validation1",
    ]


def test_figures_fit_one_another(analysed):
    data = data_of(analysed)
    recurrent, slide = data["runs"]
    assert slide["difference"] is slide["words"] is slide["interventions"] is None
    difference = recurrent["bits"]["mean"] - slide["bits"]["mean"]
    assert recurrent["difference"]["mean"] == pytest.approx(difference, abs=1e-6)
    assert sum(data["tokens_by_position"]) == data["corpus"]["tokens"]
    kinds = np.array(list(data["kinds"].values()))
    counted = [text for text in data["kinds"] if data["kinds"][text]]
    assert counted == ["other white space", "letters and digits", "other"]
    by_kind = np.array(recurrent["difference_by_kind"]["mean"], float)
    whole = np.nansum(by_kind * kinds) / data["corpus"]["tokens"]
    assert whole == pytest.approx(difference, abs=1e-6)
    classes = recurrent["words"]["classes"]
    assert sum(row["words"] for row in classes[:-1]) == classes[-1]["words"]
    assert classes[-1]["words"] == sum(recurrent["words"]["counts_by_distance"])
    readings = recurrent["interventions"]
    assert readings["normal"]["bits"]["mean"] == pytest.approx(recurrent["bits"]["mean"], abs=1e-5)
    assert readings["normal"]["difference"]["mean"] == 0
    (states,) = recurrent["states"]
    assert np.sum(states["attention"], axis=-1) == pytest.approx([1, 1])
    context = data["context"]
    assert context["lengths"] == [8, 16, 32] and np.shape(context["bits"]) == (2, 3)
    # Slide's one window of four is over before any of these lengths.
    assert np.ptp(context["bits"][1]) < 1e-5 and context["recl"][1] == 8


def test_what_gains_most_is_a_word_of_the_text(analysed):
    words = data_of(analysed)["runs"][0]["words"]
    known = {"he"} | set(TEXT.replace(".", "").split())  # the second document begins with "he"
    assert {word["word"] for word in words["top"]} <= known
    assert words["window"] == words["reach"] == 4
    count = words["shares_of_top"]["not_in_window"]
    assert count == sum(word["distance"] is None or word["distance"] > 4 for word in words["top"])
    everything = words["shares_of_all"]
    assert everything["words"] == words["classes"][-1]["words"] >= 20
    assert everything["capital"] == 0
    gains = [word["bits"] for word in words["top"]]
    assert gains == sorted(gains, reverse=True)


def test_one_text_of_ones_own_and_no_reference(folder, tmp_path, capsys):
    text = tmp_path / "novel.txt"
    text.write_text(TEXT)
    words = [folder / "rec", f"--text={text}", *SMALL, "--tokens=30", "--context=8"]
    assert exit_status(analyze.main, *words, f"--output={tmp_path / 'out'}") == 0
    output = " ".join(capsys.readouterr().out.split())
    assert "novel.txt: 1 documents, 30 tokens" in output and "see --against" in output
    assert "The length of the context was not varied" in output
    data = data_of(tmp_path / "out")
    assert data["reference"] is None and data["corpus"]["tokens"] == 30
    assert "swapped" not in data["runs"][0]["interventions"]
    assert not (tmp_path / "out/distance.png").exists()


def test_the_reference_may_be_named_and_need_not_be_among_the_runs(folder, tmp_path):
    against = folder / "rec"
    words = [folder / "slide", folder / "copy", f"--against={against}", *SMALL, "--tokens=20"]
    assert exit_status(analyze.main, *words, f"--output={tmp_path}") == 0
    data = data_of(tmp_path)
    assert data["reference"] == "Rec:fixed:skip"
    names = [run["name"] for run in data["runs"]]
    assert names == ["Slide:1L (slide)", "Slide:1L (copy)", "Rec:fixed:skip"]
    assert all(math.isfinite(run["words"]["classes"][-1]["gain"]) for run in data["runs"][:2])


def test_a_run_without_a_checkpoint_is_a_sentence(folder, tmp_path, capsys):
    (tmp_path / "new").mkdir()
    (tmp_path / "new/config.gin").write_text((folder / "rec/config.gin").read_text())
    out = tmp_path / "out"
    assert exit_status(analyze.main, tmp_path / "new", f"--output={out}", *SMALL) == 4
    error = capsys.readouterr().err
    assert "checkpoint" in error and str(tmp_path / "new") in error and not out.exists()


def test_runs_of_other_documents_or_tokenizers_are_a_sentence(folder, tmp_path, capsys):
    other = quick_runs.write_corpus(tmp_path / "books", "validation")
    config = (folder / "rec/config.gin").read_text()
    (tmp_path / "run").mkdir()
    changed = config.replace(str(folder / "books"), str(other))
    (tmp_path / "run/config.gin").write_text(changed)
    assert exit_status(analyze.main, folder / "rec", tmp_path / "run", *SMALL) == 2
    assert "different validation documents" in capsys.readouterr().err


def test_runs_that_have_seen_other_numbers_of_tokens_are_refused(folder, tmp_path, capsys):
    shutil.copytree(folder / "copy", longer := tmp_path / "longer")
    metrics = read_metrics(longer / "metrics.jsonl")
    lines = (json.dumps(line | {"targets": 2 * line.get("targets", 0)}) + "\n" for line in metrics)
    (longer / "metrics.jsonl").write_text("".join(lines))
    assert exit_status(analyze.main, folder / "slide", longer, *SMALL) == 2
    found = re.search(r"trained on (\d+) tokens and .*longer on (\d+),", capsys.readouterr().err)
    assert found and int(found[2]) == 2 * int(found[1])


@pytest.mark.parametrize(
    "words, status, sentence",
    [
        (["--against=/no/run"], 2, "/no/run holds no run"),
        (["--text=/no/novel.txt"], 3, "--text=/no/novel.txt: No such file"),
        (["--documents=0"], 2, "at least 1"),
        (["--split=tset"], 2, "invalid choice"),
        (["--split=test"], 3, ""),
    ],
    ids=str,
)
def test_wrong_calls_are_sentences(words, status, sentence, folder, capsys):
    assert exit_status(analyze.main, folder / "rec", *words) == status
    error = capsys.readouterr().err
    assert "error: " in error and sentence in error and "Traceback" not in error


def test_without_any_run_it_ends_in_status_2(tmp_path, capsys):
    assert exit_status(analyze.main, tmp_path) == 2
    assert "no run is left" in capsys.readouterr().err
