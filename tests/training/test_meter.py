"""Laws of the figures between two logs, and of where the time goes."""

import math

import jax.numpy as jnp
import pytest

from block_recurrent.config import TrainingConfig
from block_recurrent.system import progress
from block_recurrent.system.progress import Stopwatch, duration
from block_recurrent.training import meter
from block_recurrent.training.meter import Meter
from block_recurrent.training.step import StepMetrics

NAN = float("nan")
TRAINING = TrainingConfig(num_steps=100, evaluate_every=40)


class Clock:
    """A clock that stands still between the calls of `pass_by`."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now

    def pass_by(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    for module in (meter, progress):
        monkeypatch.setattr(module, "time", clock)
    return clock


def metrics(nats: float, targets: float = 4.0, norm: float = 1.0) -> StepMetrics:
    return StepMetrics(*map(jnp.float32, (nats, targets, norm)))


def filled(*steps: StepMetrics) -> Meter:
    meter = Meter(TRAINING, 20)
    for step in steps:
        meter.add(step)
    meter.settle()
    return meter


def test_loss_is_the_sum_over_targets_and_not_the_mean_over_steps(clock):
    figures = filled(metrics(8, 8), metrics(4, 2, norm=3)).collect()
    assert figures["bits_per_token"] == pytest.approx(12 / 10 / math.log(2))
    assert (figures["targets"], figures["gradient_norm"]) == (10, 3)
    assert figures["target_share"] == 10 / (2 * 20)
    assert "skipped" not in figures


def test_speed_leaves_out_the_first_step_and_pauses(clock):
    meter = Meter(TRAINING, 20)
    clock.pass_by(50)  # reading data and compiling
    meter.add(metrics(1))
    for _ in range(2):
        clock.pass_by(3)
        meter.add(metrics(1))
    meter.settle()
    assert meter.collect()["tokens_per_second"] == pytest.approx(4 / 3)
    clock.pass_by(70)  # an evaluation
    meter.restart_clock()
    clock.pass_by(2)
    meter.add(metrics(1))
    meter.settle()
    assert meter.collect()["tokens_per_second"] == pytest.approx(4 / 2)


def test_steps_before_a_pause_do_not_count_as_time_after_it(clock):
    meter = filled(metrics(1))
    meter.collect()
    clock.pass_by(3)
    meter.add(metrics(1))
    clock.pass_by(70)  # an evaluation, not where there is a log
    meter.restart_clock()
    for _ in range(2):
        clock.pass_by(2)
        meter.add(metrics(1))
    meter.settle()
    assert meter.collect()["tokens_per_second"] == pytest.approx(4 / 2)


def test_there_is_no_speed_where_no_step_was_timed(clock):
    meter = filled(metrics(1))
    figures = meter.collect()
    assert "tokens_per_second" not in figures
    line = meter.describe(1, figures)
    assert "tokens/s" not in line and "left" not in line
    clock.pass_by(2)
    meter.add(metrics(1))
    meter.settle()
    assert meter.describe(2, meter.collect()).endswith("| 2 tokens/s | 3m 16s left")


def test_the_time_left_counts_the_evaluations_to_come(clock):
    """Those at steps 40, 80 and 100: like five steps each, until one of them was timed."""
    meter = Meter(TRAINING, 20, evaluation_steps=5)
    meter.add(metrics(1))
    clock.pass_by(2)
    meter.add(metrics(1))
    meter.settle()
    figures = meter.collect()
    assert meter.describe(2, figures).endswith(f"| {duration(98 * 2 + 3 * 5 * 2)} left")
    meter.add_evaluation(60)
    assert meter.describe(60, figures).endswith(f"| {duration(40 * 2 + 2 * 60)} left")


def test_whether_a_fetched_step_is_finite_is_known_without_the_device(clock):
    meter = Meter(TRAINING, 20)
    for step in (metrics(1), metrics(NAN), metrics(1, norm=math.inf)):
        meter.add(step)
    assert [step.finite for step in meter.settle()] == [True, False, False]
    assert {type(figure) for step in meter.unlogged for figure in step} == {float}
    assert type(metrics(1).finite) is bool


def test_an_evaluation_before_the_first_step_does_not_start_the_clock(clock):
    meter = Meter(TRAINING, 20)
    meter.restart_clock()
    clock.pass_by(60)  # compiling
    meter.add(metrics(1))
    clock.pass_by(2)
    meter.add(metrics(1))
    meter.settle()
    assert meter.collect()["tokens_per_second"] == pytest.approx(4 / 2)


def test_skipped_steps_count_in_no_other_figure(clock):
    bad = [metrics(NAN), metrics(4, norm=math.inf), metrics(math.inf)]
    figures = filled(metrics(8), *bad).collect()
    expected = filled(metrics(8)).collect()
    assert figures.pop("skipped") == 3
    del figures["tokens_per_second"]
    assert figures == expected
    assert "bits_per_token" not in filled(*bad).collect()


def test_each_step_is_settled_once_and_the_newest_may_be_left(clock):
    meter = Meter(TRAINING, 20)
    for nats in (1, 2, 3):
        meter.add(metrics(nats))
    assert [step.nats for step in meter.settle(but=1)] == [1, 2]
    assert meter.settle(but=1) == []
    assert [step.nats for step in meter.settle()] == [3]


def test_unlogged_figures_go_on_in_another_meter(clock):
    steps = [metrics(1), metrics(NAN), metrics(5)]
    first, second = filled(*steps[:2]), Meter(TRAINING, 20)
    second.restore(first.unlogged)
    second.add(steps[2])
    assert [step.nats for step in second.settle()] == [5]
    resumed, whole = second.collect(), filled(*steps).collect()
    resumed.pop("tokens_per_second", None)
    whole.pop("tokens_per_second", None)
    assert resumed == whole


def test_the_line_says_what_there_is(clock):
    figures = filled(metrics(4 * math.log(2)), metrics(NAN)).collect()
    line = "step 7/100 | 1.000 bits/token | 1 steps skipped | "
    assert Meter(TRAINING, 20).describe(7, figures).startswith(line)
    nothing = filled(metrics(NAN)).collect()
    assert "bits/token" not in Meter(TRAINING, 20).describe(7, nothing)


def test_parts_add_up_whatever_happens_in_them(clock):
    watch = Stopwatch()
    for name, seconds in [("step", 2), ("save", 1), ("step", 5)]:
        with pytest.raises(KeyError), watch.part(name):
            clock.pass_by(seconds)
            raise KeyError
    assert watch.seconds == {"step": 7, "save": 1}
    assert watch.shares() == {"step": 7 / 8, "save": 1 / 8}
    assert watch.describe() == "8s in all: step 88%, save 12%"
    assert Stopwatch().shares() == {}
