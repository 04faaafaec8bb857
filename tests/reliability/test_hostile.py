"""Files made to hurt: they are refused, or read without harm to what lies beside them."""

from collections import Counter

from tests.soak.hostile import try_kinds
from tests.soak.hostile_kinds import KINDS

COUNT = 60  # of each kind; `python -m tests.soak.hostile` tries thousands
FEW = 6  # of those that take long to read
SLOW = ["git", "checkpoint"]


def test_changed_files_of_every_kind_are_refused_or_do_no_harm():
    quick = [kind for kind in KINDS if kind not in SLOW]
    trials = [*try_kinds(quick, count=COUNT, seed=2), *try_kinds(SLOW, count=FEW, seed=2)]
    assert [trial for trial in trials if trial.outcome == "found"] == []
    assert len(trials) == COUNT * len(quick) + FEW * len(SLOW)
    outcomes = Counter((trial.kind, trial.outcome) for trial in trials)
    refused = {kind for kind, outcome in outcomes if outcome == "refused"}
    assert refused >= KINDS.keys() - {"text", "csv"}  # nearly any bytes are such
