"""Laws of the bootstrap over documents."""

import numpy as np

from block_recurrent.lab.analysis.intervals import estimate


def test_equal_documents_leave_no_doubt():
    found = estimate(np.full(5, 6.0), np.full(5, 3.0))
    assert found.mean == found.low == found.high == 2.0


def test_the_mean_is_over_tokens():
    assert estimate(np.array([1.0, 30.0]), np.array([1.0, 3.0])).mean == 31 / 4


def test_the_interval_is_about_that_of_the_normal_distribution():
    values = np.random.default_rng(0).normal(1.0, 2.0, 400)
    found = estimate(values * 10, np.full(400, 10.0))
    low, high = values.mean() + np.array([-1.96, 1.96]) * values.std() / 20
    np.testing.assert_allclose([found.low, found.high], [low, high], atol=0.03)


def test_what_few_documents_have_has_no_interval():
    sums, counts = np.array([[4.0, 2.0, 0.0], [2.0, 0.0, 0.0]]), np.array([[2, 1, 0], [2, 0, 0]])
    found = estimate(sums, counts)
    np.testing.assert_array_equal(found.mean, [1.5, 2.0, np.nan])
    np.testing.assert_array_equal(np.isnan(found.low), [False, True, True])
    assert np.isnan(estimate(sums[:1], counts[:1]).high).all()
