"""Every gin file that is a run: it reads back, it builds, and it has the size its name says."""

import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gin
import pytest

from block_recurrent import LSTMConfig, ModelConfig, gin_files
from block_recurrent.config import AnyModelConfig, ExperimentConfig
from block_recurrent.gin_files import GIN_FOLDER, load, to_gin
from block_recurrent.lab.tables import naming, rows
from block_recurrent.model.parameters import count_parameters
from block_recurrent.training.build import abstract_model

README = (GIN_FOLDER / "README.md").read_text(encoding="utf-8")
PARTS = {
    folder: sorted(str(path.relative_to(GIN_FOLDER)) for path in (GIN_FOLDER / folder).glob("*"))
    for folder in ("sizes", "rows", "datasets", "optimizers", "tokenizers", "meshes")
}
SHARED = {"table1/run.gin", "scaling/run.gin", "small/base.gin"}
SHARED |= {f"characters/{name}.gin" for name in ("run", "xl_12l", "xl_24l", "rec_12l", "rec_24l")}
RUNS = sorted(
    {str(path.relative_to(GIN_FOLDER)) for path in GIN_FOLDER.rglob("*.gin")}
    - set(itertools.chain(*PARTS.values()))
    - SHARED
)
TABLE_1 = [run for run in RUNS if run.startswith("table1/")]
CORPORA = {
    "pg19_bytes": ("PG19", "bytes", 256),
    "pg19_tokens": ("PG19", "sentencepiece", 32_000),
    "arxiv": ("arXiv", "sentencepiece", 32_000),
    "github": ("GitHub", "sentencepiece", 32_000),
}
# Published counts, in millions without embedding.
COUNTS = {
    "slide_12l": 151.0,
    "slide_13l": 163.6,
    "rec_fixed_skip": 160.5,
    "rec_lstm_dual": 181.4,
    "feedback_fixed_skip": 183.5,
}
SIZES = {"40m": 40, "90m": 90, "160m": 160, "350m": 350, "650m": 650, "1300m": 1300}
PAPER = {
    row.paper.lower().replace(":", "_"): row
    for row in rows.table_rows(load(["table1/pg19_tokens/rec_fixed_skip.gin"], needs_data=False))
}


# Rows that are not the paper's.
BASELINES = ("transformer_xl", "transformer", "lstm")


@functools.cache
def read(*files: str) -> ExperimentConfig:
    return load(files, needs_data=False)


@functools.cache
def built(config: AnyModelConfig) -> int:
    """Parameters without embedding of a model that is only built abstractly."""
    return count_parameters(abstract_model(config), embedding=False)


def count(run: str) -> int:
    return built(dataclasses.replace(read(run).model, vocab_size=256, remat="none", dropout=0.0))


def closed_form(config: AnyModelConfig) -> int:
    """Parameters without embedding by the equations of the papers."""
    if isinstance(config, ModelConfig):
        return closed_form_of_the_table(config)
    e, layers = config.model_size, config.num_layers
    if isinstance(config, LSTMConfig):
        h = config.hidden_size
        return layers * (e + 4 * h * (e + h + 1) + h * e) + e
    heads, m = config.num_heads * config.head_size, config.mlp_size
    # The layers, u and v, and the bias of the logits of bytes.
    return layers * (5 * e * heads + 2 * e * m + m + 5 * e) + 2 * heads + 256


def closed_form_of_the_table(config: ModelConfig) -> int:
    e, m, s, h = config.model_size, config.mlp_size, config.num_states, config.num_heads
    heads = h * config.head_size
    plain = 4 * e * heads + 2 * e * m + 2 * e + h + 32 * h
    to_states = 2 * e * heads + h

    def gate(inputs):
        return {"fixed": inputs * e + e, "lstm": 3 * inputs * e + 2 * e}[config.gate]

    wiring = {
        "skip": gate(2 * heads),
        "single": 2 * heads * m + gate(m),
        "dual": gate(2 * heads) + e + e * m + gate(m),
    }[config.wiring]
    recurrent = len(config.recurrent_layers)
    states = 2 * s * e + e + 4 * e * heads + 2 * h + wiring
    readers = config.num_layers if config.feedback else recurrent
    return config.num_layers * plain + readers * to_states + recurrent * states + e


@pytest.mark.parametrize("run", RUNS)
def test_a_run_reads_back_equal_and_has_as_many_parameters_as_its_equations(run, tmp_path):
    experiment = read(run)
    (tmp_path / "config.gin").write_text(to_gin(experiment), encoding="utf-8")
    assert load([tmp_path / "config.gin"]) == experiment
    assert count(run) == closed_form(experiment.model)


def chosen(section: str, kinds: tuple) -> Callable[..., Any]:
    """Builds the configuration of a section from its fields."""

    def build(**fields):
        parameter, choices = gin_files.CHOICES.get(section, ("", {}))
        return choices.get(fields.get(parameter.rpartition(".")[2]), kinds[0])(**fields)

    return build


@pytest.fixture(scope="module")
def registered() -> Iterator[dict]:
    yield {
        name: gin.external_configurable(chosen(name, kinds), name, module="test_gin_files")
        for name, kinds in gin_files.SECTIONS.items()
    }
    gin.clear_config()


@pytest.mark.parametrize("run", [run for run in RUNS if Path(run).stem not in BASELINES])
def test_gin_itself_reads_the_same_values(run, registered, monkeypatch):
    experiment = read(run)
    paths = {"data.path": experiment.data.path, "data.vocab_path": experiment.data.vocab_path}
    bindings = [f"{name}={value!r}" for name, value in paths.items() if value is not None]
    monkeypatch.chdir(GIN_FOLDER)
    gin.clear_config()
    gin.parse_config_files_and_bindings([run], bindings)
    assert ExperimentConfig(**{name: build() for name, build in registered.items()}) == experiment


def test_any_size_goes_with_any_row():
    for files in itertools.product(PARTS["sizes"], PARTS["tokenizers"], PARTS["rows"]):
        experiment = read(*files)
        row = files[-1]
        if Path(row).stem in BASELINES:
            assert experiment.model.architecture == Path(row).stem
            continue
        assert ("rows/xl" in row) == (experiment.data.segment_length == experiment.model.window)
        assert experiment.model.feedback == ("feedback" in row)
        assert bool(experiment.model.recurrent_layers) == bool(re.search("rec|feedback", row))


def test_the_small_size_over_a_run_of_table_1_is_the_same_row():
    for run in TABLE_1:
        if Path(run).stem in BASELINES:
            continue
        row = PAPER[Path(run).stem].paper
        small = read(run, "sizes/small.gin")
        if row.startswith(("Rec:", "Feedback:")):
            assert naming.row_name(small) == row
        elif row == "Slide:12L":
            assert naming.row_name(small) == "Slide:4L"
        large = read(run).data
        assert small.data.corpus_name == large.corpus_name
        assert small.data.tokenizer == large.tokenizer
        assert built(dataclasses.replace(small.model, vocab_size=256, remat="none")) < 1e6


def test_any_data_goes_with_any_optimizer():
    for data, optimizer in itertools.product(PARTS["datasets"], PARTS["optimizers"]):
        experiment = read("sizes/paper.gin", data, optimizer)
        tokens = experiment.data.tokenizer == "sentencepiece"
        assert experiment.model.vocab_size == (32_000 if tokens else 256)
        assert experiment.data == read("sizes/paper.gin", data).data


@pytest.mark.parametrize("corpus", CORPORA)
def test_table_1_has_every_row_of_the_paper_at_its_size(corpus):
    for run in (run for run in TABLE_1 if run.split("/")[1] == corpus):
        data = corpus if corpus.startswith("pg19") else f"{corpus}_tokens"
        parts = ("table1/run.gin", f"datasets/{data}.gin", f"rows/{Path(run).name}")
        assert read(run) == read(*parts)
    for name, paper in PAPER.items():
        experiment, row = read(f"table1/{corpus}/{name}.gin"), paper.config
        model, data = experiment.model, experiment.data
        assert (data.name, data.tokenizer, model.vocab_size) == CORPORA[corpus]
        assert data.batch_size * data.segment_length == 2**17
        assert (model.window, data.segment_length) == (row.model.window, row.data.segment_length)
        assert closed_form(model) == closed_form(row.model)
        of_the_corpus = {"vocab_size": model.vocab_size, "logits_by_window": model.vocab_size > 256}
        assert model == dataclasses.replace(row.model, **of_the_corpus, **update_of(model))
        assert (experiment.optimizer, experiment.training) == (row.optimizer, row.training)
        assert data.source == "tfds" and experiment.training.num_steps == 500_000


@pytest.mark.parametrize("corpus", CORPORA)
def test_table_1_has_the_baselines_at_the_size_of_its_rows(corpus):
    table = read(f"table1/{corpus}/xl_512.gin")
    for name in BASELINES:
        run = f"table1/{corpus}/{name}.gin"
        experiment = read(run)
        assert experiment.model.architecture == name and rows.paper_row(experiment) is None
        assert experiment.data == table.data and experiment.training == table.training
        assert experiment.optimizer == table.optimizer
        assert experiment.model.vocab_size == table.model.vocab_size
        assert experiment.model.remat == "layer" and experiment.model.dropout == 0.05
        assert math.isclose(count(run), count(f"table1/{corpus}/xl_512.gin"), rel_tol=0.005)


def update_of(model: ModelConfig) -> dict[str, str]:
    """Gate and wiring of models that have no use for them."""
    return {} if model.recurrent_layers else {"gate": model.gate, "wiring": model.wiring}


@pytest.mark.parametrize("row, millions", COUNTS.items())
def test_counts_are_the_published_ones(row, millions):
    assert round(count(f"table1/pg19_tokens/{row}.gin") / 1e6, 1) == millions


@pytest.mark.parametrize("size, millions", SIZES.items())
def test_scaling_runs_have_the_size_of_their_name(size, millions):
    recurrent, slide = (read(f"scaling/{size}_{kind}.gin") for kind in ("rec", "slide"))
    for kind in ("rec", "slide"):
        assert math.isclose(count(f"scaling/{size}_{kind}.gin"), millions * 1e6, rel_tol=0.1)
    assert recurrent.model.recurrent_indices in ((9,), (9, 19)) and recurrent.model.wiring == "skip"
    extra = len(recurrent.model.recurrent_layers)
    plain = dataclasses.replace(
        recurrent.model, recurrent_layers=(), num_layers=recurrent.model.num_layers + extra
    )
    assert slide == dataclasses.replace(recurrent, model=plain)


def test_ablations_change_one_thing_of_the_row():
    row = read("table1/pg19_tokens/rec_fixed_skip.gin")
    lines = to_gin(row).splitlines()
    changed = {}
    for run in RUNS:
        if run.startswith("ablations/"):
            (changed[Path(run).stem],) = set(to_gin(read(run)).splitlines()) - set(lines)
    assert changed == {
        **{f"states_{n}": f"model.num_states = {n}" for n in (128, 256, 1024, 2048)},
        "two_adjacent_layers": "model.recurrent_layers = (-4, -3)",
        "cleared_states": "training.clear_states = True",
    }


@pytest.mark.parametrize("layers, millions", [("12l", 41), ("24l", 277)])
@pytest.mark.parametrize("corpus", ["enwik8", "text8"])
def test_runs_on_characters_have_the_published_size_and_as_many_tokens(corpus, layers, millions):
    older, recurrent = (read(f"characters/{corpus}_{row}_{layers}.gin") for row in ("xl", "rec"))
    assert round(count(f"characters/{corpus}_xl_{layers}.gin") / 1e6) == millions
    assert older.model.memory == older.data.segment_length == recurrent.model.window
    tokens = {run.data.batch_size * run.data.segment_length for run in (older, recurrent)}
    assert len(tokens) == 1
    assert (older.training, older.optimizer) == (recurrent.training, recurrent.optimizer)
    assert older.data.corpus_name == recurrent.data.corpus_name == corpus


def cells(pattern: str) -> dict[str, list[str]]:
    """The rows of the README's tables whose first cell in backticks matches, by that cell."""
    found = re.findall(rf"^\|(?:[^`\n]*\|)* ?`({pattern})` \|(.*)\|$", README, re.MULTILINE)
    return {name: [cell.strip() for cell in rest.split("|")] for name, rest in found}


def test_the_readme_names_every_run_of_table_1_and_its_sizes():
    table = {name: rest for name, rest in cells(r"\w+").items() if rest[-1].endswith(" M")}
    named = {f"table1/{corpus}/{row}.gin" for corpus in CORPORA for row in table}
    assert named == set(TABLE_1) and set(CORPORA) <= set(cells(r"\w+"))
    for row, (paper, window, segment, batch, millions) in table.items():
        experiment = read(f"table1/arxiv/{row}.gin")
        data = experiment.data
        shown = [naming.window_of(experiment) or "", data.segment_length, data.batch_size]
        assert [window, segment, batch] == list(map(str, shown))
        assert paper.lower().replace(":", "_") == ("" if row in BASELINES else row)
        assert millions == f"{count(f'table1/arxiv/{row}.gin') / 1e6:.1f} M"


def test_the_readme_names_the_other_runs_and_their_sizes():
    shown = re.findall(
        r"`((?:scaling|ablations|characters)/\w+\.gin)` \|(?:[^|`]*\|)? ([\d.]+ M)", README
    )
    runs = [run for run in RUNS if run.startswith(("scaling/", "ablations/", "characters/"))]
    assert dict(shown) == {run: f"{count(run) / 1e6:.1f} M" for run in runs}
    assert all(run in README for run in RUNS if run.startswith("small/"))


def test_the_files_the_readme_names_exist():
    named = re.findall(r"(?:gin/|`)((?:\w+/)*\w+\.gin)", README)
    assert len(named) > 20
    assert [name for name in named if not (GIN_FOLDER / name).is_file()] == []
