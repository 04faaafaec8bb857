"""Laws of the loop: a run that was interrupted is the run that was not, bit for bit."""

import dataclasses
import functools
import gzip
import json
import os
import shutil
import signal
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import block_recurrent as br
from block_recurrent.config import (
    AdafactorConfig,
    ConfigError,
    DataConfig,
    ExperimentConfig,
    LSTMConfig,
    ModelConfig,
    TrainingConfig,
    TransformerConfig,
    TransformerXLConfig,
)
from block_recurrent.data import ByteTokenizer, Corpus, Document, TrainingLanes, tokenize
from block_recurrent.data.loading import Corpora
from block_recurrent.runs import Stopped, loop, train
from block_recurrent.runs.checkpoint_folder import read_state
from block_recurrent.runs.checkpoints import CheckpointError, Checkpoints
from block_recurrent.runs.loop import TrainingLoop
from block_recurrent.runs.metrics import read_metrics
from block_recurrent.system.progress import ProgressLine
from block_recurrent.system.signals import stop_on_signal
from block_recurrent.training import remat, trainer
from block_recurrent.training.build import make_lanes, make_model, make_train_state
from block_recurrent.training.evaluation import evaluate
from block_recurrent.training.optimizer import make_schedule
from block_recurrent.training.step import StepMetrics
from tests.helpers import SIZES, assert_close, assert_equal, slow, steps_compiled_once
from tests.quick_runs import tree_of

STEPS = 9
VALIDATION = "validation/bits_per_token"
TEXTS = ["0123456789" * 3, "abcdefg", "to be or not to be, that is", "xy", ".,;" * 11]
DOCUMENTS = tuple(Document(f"d{number}", "", text) for number, text in enumerate(TEXTS))
CORPORA = Corpora(
    tokenize(Corpus(DOCUMENTS, "train"), ByteTokenizer()),
    tokenize(Corpus(DOCUMENTS[:2], "validation"), ByteTokenizer()),
)
MODEL = ModelConfig(**SIZES, vocab_size=256, num_layers=1, recurrent_layers=(0,), dropout=0.2)
CONFIG = ExperimentConfig(
    model=MODEL,
    data=DataConfig(batch_size=2, segment_length=2 * MODEL.window),
    optimizer=AdafactorConfig(warmup_steps=3, clip_norm=1.0),
    training=TrainingConfig(
        num_steps=STEPS, log_every=2, evaluate_every=4, checkpoint_every=3, keep_checkpoints=1
    ),
)
BASELINE: dict[str, Any] = {"vocab_size": 256, "num_layers": 1, "model_size": 12, "dropout": 0.2}
HEADS: dict[str, Any] = {name: SIZES[name] for name in ("num_heads", "head_size", "mlp_size")}
MODELS = {
    "float32": MODEL,
    "bfloat16": dataclasses.replace(MODEL, dtype="bfloat16"),
    "transformer_xl": TransformerXLConfig(**BASELINE, **HEADS, memory=5),
    "transformer": TransformerConfig(**BASELINE, **HEADS, segment=2 * MODEL.window),
    "lstm": LSTMConfig(**BASELINE, hidden_size=5),
}
# Stopped in the first interval, at a checkpoint, at an evaluation, right after, and between logs.
LONG = dataclasses.replace(
    CONFIG,
    training=TrainingConfig(
        num_steps=40, log_every=3, evaluate_every=16, checkpoint_every=10, keep_checkpoints=1
    ),
)
STOPS = (2, 10, 16, 17, 31)
MICROBATCHES = {"lstm": 2}
FEWER_STOPS = {
    "bfloat16": (2, 17),
    "transformer_xl": (10, 16),
    "transformer": (16, 17),
    "lstm": (2, 31),
}


@pytest.fixture(autouse=True, scope="module")
def compiled_once():
    with steps_compiled_once():
        yield


def change(config: ExperimentConfig = CONFIG, **training) -> ExperimentConfig:
    return dataclasses.replace(config, training=dataclasses.replace(config.training, **training))


def run(config, workdir):
    return train(config, workdir, CORPORA, line=ProgressLine(quiet=True))


def result_of(workdir, config):
    """All that the last checkpoint of a run holds."""
    restored = TrainingLoop(config, workdir, CORPORA, ProgressLine(quiet=True))
    restored.close()
    return jax.tree.leaves(restored.trainer.state), restored.trainer.lanes.position


def bits(tree) -> list:
    """All that there is to an array, leaf by leaf, so that 0.0 is not -0.0."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]
    return [(leaf.dtype, leaf.shape, leaf.tobytes()) for leaf in leaves]


def figures_of(workdir) -> list[dict]:
    """The lines of metrics, without what the clock says."""
    lines = read_metrics(workdir / "metrics.jsonl")
    return [{name: line[name] for name in line if name != "tokens_per_second"} for line in lines]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The work directory of the uninterrupted run of a configuration."""

    @functools.cache
    def workdir_of(config):
        workdir = tmp_path_factory.mktemp("uninterrupted")
        run(config, workdir)
        return workdir

    return workdir_of


@pytest.fixture
def interrupt(monkeypatch):
    """Sends this process SIGINT with the batches of the given numbers, from 1; returns a list of
    all batches, to be filled."""

    def unnoticed(*arguments):
        raise AssertionError("the loop took no notice of a signal")

    def at(*numbers):
        read, batches = TrainingLanes.__next__, []

        def reading(lanes):
            batches.append(read(lanes))
            if len(batches) in numbers:
                os.kill(os.getpid(), signal.SIGINT)
            return batches[-1]

        monkeypatch.setattr(TrainingLanes, "__next__", reading)
        # Before the first step a signal would end this process.
        monkeypatch.setattr(loop, "stop_on_signal", lambda **_: stop_on_signal())
        return batches

    before = signal.signal(signal.SIGINT, unnoticed)
    yield at
    signal.signal(signal.SIGINT, before)


def run_with_stops(config, workdir, stops: int) -> None:
    for _ in range(stops):
        with pytest.raises(Stopped, match="stopped by SIGINT"):
            run(config, workdir)
    run(config, workdir)


@pytest.mark.parametrize(
    "model", ["float32", "transformer_xl", *slow("bfloat16", "transformer", "lstm")]
)
def test_a_stopped_run_is_the_uninterrupted_one(model, uninterrupted, tmp_path, interrupt):
    config = change(LONG, accumulate_steps=MICROBATCHES.get(model, 1))
    config = dataclasses.replace(config, model=MODELS[model])
    expected = uninterrupted(config)
    stops = FEWER_STOPS.get(model, STOPS)
    batches = interrupt(*stops)
    run_with_stops(config, tmp_path, len(stops))
    (state, position), (expected_state, expected_position) = (
        result_of(workdir, config) for workdir in (tmp_path, expected)
    )
    assert bits(state) == bits(expected_state) and position == expected_position
    assert figures_of(tmp_path) == figures_of(expected)
    lanes = make_lanes(config, CORPORA.train)
    assert bits(batches) == bits([next(lanes) for _ in range(config.training.num_steps)])


def test_a_stop_between_two_logs_changes_no_logged_figure(uninterrupted, tmp_path, interrupt):
    interrupt(1, 5)
    run_with_stops(CONFIG, tmp_path, 2)
    assert figures_of(tmp_path) == figures_of(uninterrupted(CONFIG))


def test_a_run_made_longer_is_the_long_run(uninterrupted, tmp_path):
    for steps in (4, STEPS):
        run(change(num_steps=steps), tmp_path)
    assert_equal(result_of(tmp_path, CONFIG), result_of(uninterrupted(CONFIG), CONFIG))


def test_a_run_may_go_on_with_another_number_of_microbatches(uninterrupted, tmp_path):
    plain = dataclasses.replace(CONFIG, model=dataclasses.replace(MODEL, dropout=0.0))
    for steps, microbatches in ((4, 2), (STEPS, 1)):
        run(change(plain, num_steps=steps, accumulate_steps=microbatches), tmp_path)
    (state, position), (expected, expected_position) = (
        result_of(workdir, plain) for workdir in (tmp_path, uninterrupted(plain))
    )
    assert_close(state, expected, 1e-6)
    assert position == expected_position
    for line, other in zip(figures_of(tmp_path), figures_of(uninterrupted(plain)), strict=True):
        line.pop("validation/word_perplexity", None)  # exp of a large number
        assert line == pytest.approx({name: other[name] for name in line}, rel=2e-6)


def test_a_run_keeps_what_automatic_rematerialisation_chose(uninterrupted, tmp_path, monkeypatch):
    """It goes on with the same choice in the same configuration, and on other devices."""
    auto = dataclasses.replace(CONFIG, model=dataclasses.replace(MODEL, remat="auto"))
    monkeypatch.setattr(remat, "_needed", lambda config, mesh: 1.0)
    run(change(auto, num_steps=4), tmp_path)
    assert "model.remat = 'none'" in (tmp_path / "config.gin").read_text()
    monkeypatch.setattr(remat, "device_memory", lambda devices: 0.0)
    run(auto, tmp_path)
    assert "model.remat = 'none'" in (tmp_path / "config.gin").read_text()
    assert_equal(result_of(tmp_path, CONFIG), result_of(uninterrupted(CONFIG), CONFIG))
    run(change(auto, num_steps=1), tmp_path / "new")
    assert "model.remat = 'layer'" in (tmp_path / "new/config.gin").read_text()


def test_a_new_run_begins_with_the_parameters_of_another(uninterrupted, tmp_path, capsys):
    source = shutil.copytree(uninterrupted(CONFIG), tmp_path / "source")
    config = change(initial_parameters=str(source), keep_checkpoints=9)
    train(config, tmp_path / "new", CORPORA)
    said = f"beginning with the parameters of {source}, step {STEPS}\n"
    assert capsys.readouterr().err.count(said) == 1
    begun, before = br.load(tmp_path / "new", 0), br.load(source)
    assert bits(begun.model) == bits(before.model)
    store = Checkpoints(tmp_path / "new/checkpoints")
    _, (state, _) = store.read(lambda f: read_state(f, make_train_state(CONFIG)), 0)
    assert bits(state.optimizer) == bits(make_train_state(CONFIG).optimizer)
    assert bits(state.carried) == bits(before.model.initial_state(2))
    # Of the parameters' own run, and of the same parameters by step.
    assert begun.progress["initial_parameters"]["step"] == STEPS
    named = change(config, initial_parameters=str(source / f"checkpoints/{STEPS}"))
    run(change(named, num_steps=5), tmp_path / "stopped")
    shutil.rmtree(source)
    run(named, tmp_path / "stopped")
    assert bits(result_of(tmp_path / "stopped", named)) == bits(result_of(tmp_path / "new", config))
    newest = [br.load(tmp_path / name).progress for name in ("new", "stopped")]
    assert newest[0]["initial_parameters"] == newest[1]["initial_parameters"]
    with pytest.raises(ConfigError, match=r"initial_parameters = '.*', now None"):
        run(change(named, initial_parameters=None), tmp_path / "stopped")


OTHER_SOURCES = {
    "model.window = 4, now 8": {"window": 8},
    "model.gate = 'fixed', now 'lstm'": {"gate": "lstm"},
    "model.num_layers = 1, now 2": {"num_layers": 2},
}


@pytest.mark.parametrize("words", OTHER_SOURCES)
def test_parameters_of_another_model_are_refused_before_anything_is_written(
    words, uninterrupted, tmp_path
):
    config = change(initial_parameters=str(uninterrupted(CONFIG)))
    model = dataclasses.replace(MODEL, **OTHER_SOURCES[words])
    with pytest.raises(ConfigError, match=f"those of another model.*\n.*{words}"):
        run(dataclasses.replace(config, model=model), tmp_path / "run")
    with pytest.raises(CheckpointError, match="there is no checkpoint 7 in"):
        place = uninterrupted(CONFIG) / "checkpoints/7"
        run(change(initial_parameters=str(place)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_profile_of_some_steps_changes_no_figure(uninterrupted, tmp_path, capsys):
    config = change(profile_steps="2:3")
    train(config, tmp_path, CORPORA)
    assert f"a profile of training steps is in {tmp_path / 'profile'}" in capsys.readouterr().err
    (trace,) = (tmp_path / "profile").rglob("*.trace.json.gz")
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    steps = [each["args"]["step_num"] for each in events if each.get("name") == "train"]
    assert steps == ["2", "3"]
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    assert figures_of(tmp_path) == figures_of(uninterrupted(CONFIG))
    assert bits(result_of(tmp_path, config)) == bits(result_of(uninterrupted(CONFIG), CONFIG))
    assert not (uninterrupted(CONFIG) / "profile").exists()


COSINE = AdafactorConfig(schedule="cosine", learning_rate=0.01, warmup_steps=1)


def test_a_longer_schedule_is_said_with_both_rates_and_can_be_kept(tmp_path, capsys):
    def train_for(steps, workdir, **optimizer):
        optimizer = dataclasses.replace(COSINE, **optimizer)
        config = change(num_steps=steps, seed=7)  # no step compiled for another optimizer
        train(dataclasses.replace(config, optimizer=optimizer), workdir, CORPORA)
        return capsys.readouterr().err

    for name in ("changed", "kept"):
        assert "learning rate" not in train_for(4, tmp_path / name)
    said = train_for(8, tmp_path / "changed")
    rates = [float(make_schedule(COSINE, steps)(4)) for steps in (8, 4)]
    sentence = "the learning rate of step 5 is {:.3g}; before the length of its schedule changed"
    assert sentence.format(rates[0]) in said and f"it was {rates[1]:.3g}" in said
    assert "--gin.optimizer.decay_steps=4 keeps it" in said
    assert "learning rate" not in train_for(8, tmp_path / "kept", decay_steps=4)
    last = figures_of(tmp_path / "kept")[-2]
    assert last["learning_rate"] == pytest.approx(float(make_schedule(COSINE, 4)(7)))


def test_fewer_steps_than_were_taken_are_refused_and_nothing_changes(tmp_path):
    run(change(num_steps=4), tmp_path)
    before = tree_of(tmp_path)
    with pytest.raises(
        ConfigError, match=r"taken 4 steps already, more than .* = 3: set training.num_steps = 4,"
    ):
        run(change(num_steps=3), tmp_path)
    assert tree_of(tmp_path) == before


def test_a_run_cut_off_repeats_the_steps_after_its_checkpoint(uninterrupted, tmp_path, monkeypatch):
    class Killed(Exception):
        pass

    def kill(*arguments):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(loop, "evaluate", kill)  # after the line of step 4, saved at step 3
        run(CONFIG, tmp_path)
    assert figures_of(tmp_path)[-1]["step"] == 4
    run(CONFIG, tmp_path)
    assert_equal(result_of(tmp_path, CONFIG), result_of(uninterrupted(CONFIG), CONFIG))
    assert [line["step"] for line in figures_of(tmp_path)] == [2, 4, 4, 6, 8, 8, 9, 9]


@pytest.mark.parametrize("config, stops", [(CONFIG, (1, 5)), (LONG, STOPS)])
def test_the_runs_above_are_interrupted_amid_documents_and_begin_others(config, stops):
    lanes, steps = make_lanes(config, CORPORA.train), config.training.num_steps
    batches, positions = zip(*[(next(lanes), lanes.position) for _ in range(steps)], strict=True)
    assert all(any(positions[step - 1]["lanes"]) for step in stops)
    assert sum(batch.start_of_document.any() for batch in batches) > 3
    assert positions[-1]["epoch"] > 0


def test_a_run_killed_after_an_evaluation_still_knows_the_best_checkpoint(tmp_path, monkeypatch):
    """Killed between the figures and the note of the best, at steps that are checkpoints."""

    class Killed(Exception):
        pass

    def kill(run, save=TrainingLoop.save, *, loss=None):
        if loss is not None:
            raise Killed
        save(run)

    monkeypatch.setattr(TrainingLoop, "save", kill)
    for step, best_before in ((3, None), (6, 3)):
        with pytest.raises(Killed):
            run(change(evaluate_every=3), tmp_path)
        line = figures_of(tmp_path)[-1]
        assert line["step"] == step and VALIDATION in line
        assert Checkpoints(tmp_path / "checkpoints").best_step() == best_before


def test_figures_come_at_their_steps_and_the_last_step_has_all(uninterrupted):
    workdir = uninterrupted(CONFIG)
    lines = figures_of(workdir)
    assert [line["step"] for line in lines if "bits_per_token" in line] == [2, 4, 6, 8, 9]
    assert [line["step"] for line in lines if "validation/nats" in line] == [4, 8, 9]
    losses = {line["step"]: line[VALIDATION] for line in lines if VALIDATION in line}
    best = min(losses, key=lambda step: losses[step])
    names = {path.name for path in (workdir / "checkpoints").iterdir()}
    assert {str(STEPS), str(best)} <= names and len(names) <= 3  # perhaps a former best one
    assert list((workdir / "tensorboard").iterdir())


def test_a_finished_run_trains_no_further(uninterrupted):
    workdir = uninterrupted(CONFIG)
    before, lines = result_of(workdir, CONFIG), figures_of(workdir)
    _, evaluation = run(CONFIG, workdir)
    assert_equal(result_of(workdir, CONFIG), before)
    assert evaluation.nats == lines[-1]["validation/nats"]
    assert figures_of(workdir) == lines


def test_the_seed_decides_the_parameters():
    def parameters(seed):
        return jax.tree.leaves(make_model(change(seed=seed)))

    assert_equal(parameters(1), parameters(1))
    assert any(jnp.any(x != y) for x, y in zip(parameters(1), parameters(2), strict=True))


def test_progress_goes_to_standard_error_unless_told_otherwise(tmp_path, capsys):
    run(change(num_steps=1), tmp_path)
    assert capsys.readouterr() == ("", "")
    train(change(num_steps=2), tmp_path, CORPORA)
    output, progress = capsys.readouterr()
    assert output == ""
    assert "continuing from step 1" in progress and "step 2: validation" in progress
    for what in ("the training step", "the evaluation"):
        assert progress.count(f"compiling {what}") == progress.count(f"compiled {what}") == 1


def test_cleared_states_change_training_and_evaluation(tmp_path):
    kept, cleared = change(num_steps=2), change(num_steps=2, clear_states=True)
    model, evaluation = run(kept, tmp_path / "kept")
    run(cleared, tmp_path / "cleared")
    first, other = (figures_of(tmp_path / name)[0] for name in ("kept", "cleared"))
    assert first["step"] == other["step"] == 2
    assert first["bits_per_token"] != other["bits_per_token"]
    assert evaluate(kept, model, CORPORA.validation).nats == evaluation.nats
    assert evaluate(cleared, model, CORPORA.validation).nats != evaluation.nats


@pytest.fixture
def break_from(monkeypatch):
    """A step without computation whose loss is not a number from a given step on."""

    def at(first):
        def step(state, batch):
            nats = jnp.float32("nan" if state.step + 1 >= first else 1.0)
            metrics = StepMetrics(nats, jnp.float32(1.0), jnp.float32(0.0))
            return state._replace(step=state.step + 1), metrics

        monkeypatch.setattr(trainer, "make_train_step", lambda *_, **__: step)

    return at


def test_a_loss_that_is_not_finite_stops_the_run(break_from, tmp_path):
    break_from(5)
    with pytest.raises(
        FloatingPointError,
        match="not finite by step 6.*lower optimizer.learning_rate.*that of step 4",
    ):
        run(CONFIG, tmp_path)
    assert [line["step"] for line in figures_of(tmp_path)] == [2, 4, 4]


def test_no_checkpoint_is_saved_after_the_loss_was_not_finite(break_from, tmp_path):
    break_from(5)
    with pytest.raises(FloatingPointError):
        run(change(log_every=7, checkpoint_every=2), tmp_path)
    assert Checkpoints(tmp_path / "checkpoints").steps() == [4]
