"""Laws of a cut of the power: what was announced is there, and the run goes on."""

import shutil

import pytest

from tests.soak.power import cut


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("strace"), reason="strace records what a run writes")
def test_a_run_goes_on_from_what_was_announced_whenever_the_power_is_cut(tmp_path):
    found = list(cut(tmp_path / "power", cuts=20, seed=1))
    assert len(found) == 20 and {newest for newest, _ in found} >= {0, 2, 4}
