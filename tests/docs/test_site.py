"""The site builds without a warning and fetches nothing; the picture of the layer can be drawn."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    options = ["--quiet", "--fail-on-warning", "--keep-going"]
    command = [sys.executable, "-m", "sphinx", *options, "docs", str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stderr
    return folder


def test_every_page_is_there_and_reached(site):
    pages = {path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md")}
    index = (site / "index.html").read_text(encoding="utf-8")
    for page in pages:
        name = page.with_suffix(".html").as_posix()
        assert (site / name).is_file(), name
        assert name == "index.html" or f'href="{name}"' in index, name


def test_reading_it_fetches_nothing(site):
    fetched = re.compile(
        r'(?:<script|<img|<link[^>]*rel="stylesheet")[^>]*(?:src|href)="(https?:[^"]*)"'
    )
    for path in site.rglob("*.html"):
        assert fetched.findall(path.read_text(encoding="utf-8")) == [], path


def test_names_of_the_library_are_described(site):
    text = (site / "api/model.html").read_text(encoding="utf-8")
    for name in ("LanguageModel", "RecurrentCell", "generate", "load_parameters"):
        assert re.search(rf'id="block_recurrent\.[\w.]*{name}"', text), name


def test_the_picture_of_the_layer_can_be_drawn(tmp_path):
    runpy.run_path(str(ROOT / "docs/draw_layer.py"))["draw"](tmp_path / "layer.svg")
    assert "<svg" in (tmp_path / "layer.svg").read_text(encoding="utf-8")
