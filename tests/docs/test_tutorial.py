"""The tutorial runs as shown, with fewer documents and steps."""

import runpy
from pathlib import Path

import matplotlib
import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/tutorial.md").read_text(encoding="utf-8")
TOOLS = runpy.run_path(str(ROOT / "docs/run_page.py"))
SMALLER = {
    'glob("*.py")': 'glob("a*.py")',
    "[:30_000]": "[:600]",
    "texts[10:]": "texts[2:]",
    "texts[:10]": "texts[:2]",
    "blocks = 500": "blocks = 8",
    "[100:]": "[4:]",
    "num_layers=4": "num_layers=2",
    "batch_size=8, segment_length=512": "batch_size=2, segment_length=64",
    "num_steps=1000, checkpoint_every=500": "num_steps=3, checkpoint_every=500",
    "max_new_tokens=300": "max_new_tokens=20",
}


@pytest.fixture
def printed(tmp_path, monkeypatch):
    """What each block of the page prints."""
    monkeypatch.chdir(tmp_path)
    blocks = TOOLS["code_of"](PAGE)
    for shown, smaller in SMALLER.items():
        assert shown in "".join(blocks), shown
        blocks = [block.replace(shown, smaller) for block in blocks]
    with matplotlib.rc_context():
        yield list(TOOLS["run"](blocks, {}))


def test_every_block_runs_and_the_page_shows_what_prints(printed, tmp_path):
    shown = TOOLS["outputs_of"](PAGE)
    assert [bool(text) for text in printed] == [bool(text) for text in shown]
    assert (tmp_path / "run/checkpoints").is_dir()
    assert (tmp_path / "states.png").stat().st_size > 0


def test_outputs_are_put_after_their_blocks():
    page = "a\n\n```python\nprint(1)\n```\n\n```text\nold\n```\n\nb\n\n```python\nx = 1\n```\n"
    printed = list(TOOLS["run"](TOOLS["code_of"](page), {}))
    assert printed == ["1\n", ""]
    assert TOOLS["with_outputs"](page, printed) == page.replace("old", "1")
