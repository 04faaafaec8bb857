"""Loss, gradient or parameters that are not finite: the run stops, or skips what it may skip."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from block_recurrent.config import (
    AdamWConfig,
    DataConfig,
    ExperimentConfig,
    ModelConfig,
    TrainingConfig,
)
from block_recurrent.data import ByteTokenizer, Corpus, Document, tokenize
from block_recurrent.data.lanes import epoch_order
from block_recurrent.data.loading import Corpora
from block_recurrent.gin_files import to_gin
from block_recurrent.model.parameters import named_parameters, replace_parameters
from block_recurrent.runs import loop
from block_recurrent.runs.checkpoint_folder import read_model
from block_recurrent.runs.checkpoints import Checkpoints
from block_recurrent.runs.loop import TrainingLoop
from block_recurrent.runs.metrics import read_metrics
from block_recurrent.system.progress import ProgressLine
from block_recurrent.system.signals import Stopped
from block_recurrent.training.build import make_model
from block_recurrent.training.step import all_finite
from block_recurrent.training.trainer import MOST_SKIPPED, Trainer
from experiments import train as program
from tests.helpers import SIZES, assert_equal, steps_compiled_once

RARE = "~"
SEGMENT = 2 * SIZES["window"]
CONFIG = ExperimentConfig(
    model=ModelConfig(**SIZES, vocab_size=256, num_layers=1, recurrent_layers=(0,)),
    data=DataConfig(batch_size=1, segment_length=SEGMENT),
    optimizer=AdamWConfig(learning_rate=1e-3, warmup_steps=1),
    training=TrainingConfig(num_steps=6, log_every=1, evaluate_every=100, checkpoint_every=2),
)
SKIP = dataclasses.replace(CONFIG.training, non_finite="skip")
TEXT = "to be or not to be, that is the question: whether 'tis nobler in"


@pytest.fixture(autouse=True, scope="module")
def compiled_once():
    with steps_compiled_once():
        yield


def documents(*bad_steps: int, count: int = 8) -> Corpora:
    """Documents of one segment each; those of the given steps of the first epoch end in RARE.

    The last token of a document is a target and never an input.
    """
    texts = {}
    for step, place in enumerate(epoch_order(count, CONFIG.data.seed, 0), start=1):
        text = TEXT[place : place + SEGMENT]
        texts[place] = text[:-1] + RARE if step in bad_steps else text
    return corpora(*(texts[place] for place in range(count)))


def corpora(*texts: str) -> Corpora:
    """These documents to train on, and one to validate on."""
    train = tuple(Document(f"d{number:02}", "", text) for number, text in enumerate(texts))
    both = Corpus(train), Corpus((Document("v", "", TEXT[:20]),))
    return Corpora(*(tokenize(corpus, ByteTokenizer()) for corpus in both))


def start(workdir, data: Corpora, *, skip: bool = False, **training) -> TrainingLoop:
    chosen = dataclasses.replace(SKIP if skip else CONFIG.training, **training)
    config = dataclasses.replace(CONFIG, training=chosen)
    return TrainingLoop(config, workdir, data, ProgressLine(quiet=True))


def replace(trainer: Trainer, **arrays) -> None:
    """Puts other arrays in the place of parameters."""
    model = trainer.state.model
    named = named_parameters(model) | arrays
    trainer.state = trainer.state._replace(model=replace_parameters(model, named))


def overflow_on_rare(run: TrainingLoop, size: float = 1e30, scale: float = 1.0) -> None:
    """Makes steps with RARE among the targets overflow, all parameters being finite.

    The logit of RARE is hugely negative everywhere: its gradient, as a target, has an infinite
    norm, and with `size * scale` beyond float32 the loss is infinite.
    """
    table = run.trainer.state.model.embedding[...].at[:, 0].set(30.0).at[ord(RARE), 0].set(-size)
    replace(run.trainer, **{"embedding": table, "norm.scale": jnp.full(SIZES["model_size"], scale)})


def skipped_steps(workdir) -> list[int]:
    return [line["step"] for line in read_metrics(workdir / "metrics.jsonl") if "skipped" in line]


def assert_last_finite(workdir, step: int) -> None:
    """The newest checkpoint is that of a step, and whole and finite."""
    checkpoints = Checkpoints(workdir / "checkpoints")
    assert checkpoints.latest_step() == step
    like = make_model(CONFIG)
    restored, (model, _) = checkpoints.read(lambda folder: read_model(folder, like))
    checkpoints.close()
    assert restored == step
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(model))


BAD_STEPS = {"gradient": (1e30, 1.0, "inf"), "loss": (3e38, 8.0, "inf nats")}


@pytest.mark.parametrize("size, scale, words", BAD_STEPS.values(), ids=BAD_STEPS)
def test_a_step_that_overflows_stops_the_run_within_one_step(size, scale, words, tmp_path):
    run = start(tmp_path, documents(4))
    overflow_on_rare(run, size, scale)
    with pytest.raises(FloatingPointError) as caught:
        run.finish()
    run.close()
    assert run.trainer.step in (4, 5)
    message = str(caught.value)
    assert words in message and "the last finite checkpoint is that of step 2" in message
    assert_last_finite(tmp_path, 2)
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3]
    assert json.loads((tmp_path / "summary.json").read_text())["outcome"] == "failed"


@pytest.fixture
def spoil(monkeypatch):
    """Puts a number into a parameter of any run just before a step."""
    take_step = Trainer.take_step

    def at(step, name, number):
        def taking(trainer, **options):
            if trainer.step == step - 1:
                array = named_parameters(trainer.state.model)[name]
                replace(trainer, **{name: array.at[(0,) * array.ndim].set(number)})
            take_step(trainer, **options)

        monkeypatch.setattr(Trainer, "take_step", taking)

    return at


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("embedding", np.nan),
        ("norm.scale", np.inf),
        ("stack.parts.0.layer.cell.values.kernel", -np.inf),
    ],
)
def test_a_parameter_that_is_not_finite_stops_the_run_within_one_step(
    name, number, tmp_path, spoil
):
    spoil(4, name, number)
    run = start(tmp_path, documents(), num_steps=8, log_every=100, checkpoint_every=3)
    with pytest.raises(FloatingPointError, match="last finite checkpoint is that of step 3"):
        run.finish()
    run.close()
    assert run.trainer.step in (4, 5)
    assert_last_finite(tmp_path, 3)


@pytest.mark.parametrize("every", ["checkpoint_every", "evaluate_every"])
def test_a_parameter_no_loss_depends_on_yet_is_noticed_before_it_is_used(
    every, tmp_path, spoil, monkeypatch
):
    """The initial recurrent state matters where a document starts only."""
    monkeypatch.setattr(loop, "evaluate", lambda *_: pytest.fail("evaluated"))
    spoil(3, "stack.parts.0.layer.cell.initial", np.nan)
    run = start(
        tmp_path, corpora(TEXT), **{"checkpoint_every": 100, "evaluate_every": 100} | {every: 4}
    )
    with pytest.raises(
        FloatingPointError, match="parameters, optimizer or .* at step 4: .* step 0"
    ):
        run.finish()
    run.close()
    assert_last_finite(tmp_path, 0)
    assert "validation/nats" not in read_metrics(tmp_path / "metrics.jsonl")[-1]


def test_the_program_ends_in_status_5_and_names_the_last_finite_checkpoint(tmp_path, spoil, capsys):
    spoil(4, "norm.scale", np.nan)
    for split in ("train", "validation"):
        record = json.dumps({"id": split, "text": TEXT})
        (tmp_path / f"{split}.jsonl").write_text(record + "\n")
    data = dataclasses.replace(CONFIG.data, source="jsonl", path=str(tmp_path))
    (tmp_path / "run.gin").write_text(to_gin(dataclasses.replace(CONFIG, data=data)))
    workdir = tmp_path / "run"
    assert program.main([f"--gin_file={tmp_path / 'run.gin'}", f"--workdir={workdir}"]) == 5
    errors = capsys.readouterr().err
    assert "error: loss (nan nats)" in errors and "Traceback" not in errors
    assert "the last finite checkpoint is that of step 2" in errors
    assert_last_finite(workdir, 2)


def test_a_skipped_step_changes_no_bit_and_the_run_goes_on(tmp_path):
    run = start(tmp_path, documents(4), skip=True)
    overflow_on_rare(run)
    for _ in range(3):
        run.take_step()
    before = jax.tree.map(np.array, run.trainer.state)
    run.take_step()
    # The document of the skipped step begins with the next one.
    begun = before.model.initial_state(before.carried.batch_size)
    assert_equal(run.trainer.state, before._replace(carried=begun, step=4))
    run.finish()
    run.close()
    assert run.trainer.step == 6 and all_finite(run.trainer.state)
    after, before = (named_parameters(model) for model in (run.trainer.state.model, before.model))
    assert np.any(after["embedding"] != before["embedding"])
    lines = {line["step"]: line for line in read_metrics(tmp_path / "metrics.jsonl")[:6]}
    assert skipped_steps(tmp_path) == [4] and lines[4]["skipped"] == 1
    assert "bits_per_token" not in lines[4] and "bits_per_token" in lines[5]
    assert_last_finite(tmp_path, 6)


def test_skipped_steps_go_on_after_a_stop_as_without_one(tmp_path):
    def figures(name):
        lines = read_metrics(tmp_path / name / "metrics.jsonl")
        return [{k: v for k, v in line.items() if k != "tokens_per_second"} for line in lines]

    for name, stop_at in {"whole": None, "stopped": 4}.items():
        run = start(tmp_path / name, documents(2, 4), skip=True, log_every=6)
        overflow_on_rare(run)
        if stop_at is not None:
            while run.trainer.step < stop_at:
                run.take_step()
            run.stop.signal = "SIGINT"
            with pytest.raises(Stopped):
                run.finish()
            run.close()
            run = start(tmp_path / name, documents(2, 4), skip=True, log_every=6)
        run.finish()
        run.close()
    assert figures("stopped") == figures("whole")
    assert figures("whole")[0]["skipped"] == 2


def test_ten_in_a_row_are_not_skipped(tmp_path):
    assert MOST_SKIPPED == 10
    run = start(tmp_path, documents(*range(1, 12), count=11), skip=True, num_steps=11)
    overflow_on_rare(run)
    with pytest.raises(FloatingPointError, match="for 10 steps in a row .* of step 8"):
        run.finish()
    run.close()
    assert run.trainer.step in (10, 11)
    assert skipped_steps(tmp_path) == list(range(1, 10))
    assert_last_finite(tmp_path, 8)


def test_a_stop_does_not_begin_the_count_of_steps_in_a_row_anew(tmp_path):
    data = documents(*range(1, 12), count=11)
    run = start(tmp_path, data, skip=True, num_steps=11)
    overflow_on_rare(run)
    for _ in range(5):
        run.take_step()
    run.stop.signal = "SIGINT"
    with pytest.raises(Stopped):
        run.finish()
    run.close()
    run = start(tmp_path, data, skip=True, num_steps=11)
    assert run.first_step == 6
    with pytest.raises(FloatingPointError, match="for 10 steps in a row"):
        run.finish()
    run.close()
    assert run.trainer.step in (10, 11)


def test_nine_in_a_row_are_and_a_finite_step_begins_the_count_anew(tmp_path):
    bad = [*range(2, 11), 12]
    run = start(tmp_path, documents(*bad, count=13), skip=True, num_steps=13)
    overflow_on_rare(run)
    run.finish()
    run.close()
    assert skipped_steps(tmp_path) == bad
    assert_last_finite(tmp_path, 13)
