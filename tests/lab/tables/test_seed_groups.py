"""Runs that differ only in their seeds, and their mean and spread."""

import math

import numpy as np
import pytest

from block_recurrent.lab.tables.seed_groups import group_runs, spread
from block_recurrent.runs import reading
from tests.synthetic_runs import small, write_run


def test_groups_are_runs_that_differ_in_seeds_only(tmp_path):
    made = [
        small(training__seed=1),
        small(training__seed=0, data__seed=1),
        small(training__seed=0),
        small("slide_4l"),
        small(corpus="latex"),
        small(optimizer__learning_rate=0.1),
    ]
    folders = [write_run(tmp_path / str(n), one, [2.0]) for n, one in enumerate(made)]
    groups = group_runs(reading.read_runs(folders))
    assert [[run.workdir.name for run in group.runs] for group in groups] == [
        ["2", "1", "0"],
        ["3"],
        ["4"],
        ["5"],
    ]
    assert [group.name for group in groups][1:3] == ["Slide:4L", "Rec:fixed:skip"]
    assert len({group.name for group in groups if group is not groups[2]}) == 3


def test_the_same_run_does_not_count_twice(tmp_path):
    folders = [write_run(tmp_path / name, small(), [2.0]) for name in "ab"]
    with pytest.raises(reading.RunError, match="/a and .*/b hold the same run"):
        group_runs(reading.read_runs(folders))


def test_figures_are_of_finished_runs_or_of_a_step_that_all_have(tmp_path):
    def final(name, *bits):
        folders = [
            write_run(tmp_path / name / str(n), small(training__seed=n), values)
            for n, values in enumerate(bits)
        ]
        (group,) = group_runs(reading.read_runs(folders))
        return group, [(run.seeds[0], point.step) for run, point in group.final]

    group, found = final("finished", [4.0, 3.0, 2.0, 1.0], [4.0, 3.0], [])
    assert found == [(0, 4)] and group.finished and group.cell("bits_per_token") == "1.000"
    group, found = final("unfinished", [4.0, 3.0, 2.0], [4.0, 2.0], [])
    assert found == [(0, 2), (1, 2)] and not group.finished
    assert group.cell("bits_per_token") == "2.500 ± 0.707 (2) @2"
    assert group.progress() == "2/4"


@pytest.mark.parametrize("n", [2, 3, 7])
def test_mean_and_spread_are_numpys(n):
    values = np.random.default_rng(n).normal(2.0, 0.1, n).tolist()
    found = spread(values)
    np.testing.assert_allclose(
        [found.mean, found.deviation], [np.mean(values), np.std(values, ddof=1)]
    )
    quantile = {2: 12.7062, 3: 4.3027, 7: 2.4469}[n]
    expected = quantile * np.std(values, ddof=1) / math.sqrt(n)
    np.testing.assert_allclose(found.interval, expected, rtol=1e-4)
    assert found.n == n


def test_one_figure_has_no_spread_and_none_no_mean():
    assert spread([2.0]) == (2.0, None, None, 1)
    assert spread([]) == (None, None, None, 0)
