"""Laws of being killed: a run survives it, whatever it was doing."""

from tests.soak.processes import EVERY, Plan
from tests.soak.soak import newest_begun, soak


def test_a_run_that_is_killed_again_and_again_is_the_run_that_was_not(tmp_path):
    summary = soak(Plan(tmp_path / "soak", kills=2, seed=0))  # `make soak`: 200
    print(summary.describe())
    assert summary.kills == {"save": 1, "step": 1}
    assert summary.runs == 1 and summary.continued >= 1 and summary.most_lost <= 2 * EVERY


def test_what_was_begun_and_what_is_newest_follows_from_the_steps_logged():
    """Step 80 is logged before its save begins, step 81 after it, where a save begins every 40."""
    assert EVERY == 40
    logged = (0, 1, 40, 41, 80, 81, 120)
    assert [newest_begun(step) for step in logged] == [0, 0, 0, 40, 40, 80, 80]
