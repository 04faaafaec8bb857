"""Laws of the metrics file: whole lines, in order, none from a future that was undone."""

import pytest

from block_recurrent.runs.errors import RunError
from block_recurrent.runs.metrics import MetricsFile, read_metrics
from tests.helpers import files_limited_to


def steps(path) -> list[int]:
    return [line["step"] for line in read_metrics(path)]


@pytest.fixture
def path(tmp_path):
    """A file with steps 1 to 4."""
    file = MetricsFile(tmp_path / "metrics.jsonl")
    for step in range(1, 5):
        file.write(step, {"loss": step / 3, "tokens": step})
    return tmp_path / "metrics.jsonl"


def test_what_is_written_is_read(path):
    assert read_metrics(path)[2] == {"step": 3, "loss": 1.0, "tokens": 3}
    assert steps(path) == [1, 2, 3, 4]
    assert read_metrics(path.parent / "other.jsonl") == []


@pytest.mark.parametrize("step", [0, 2, 4, 9])
def test_lines_after_the_restored_step_are_removed(path, step):
    before = read_metrics(path)
    file = MetricsFile(path, step=step)
    assert file.written["loss"] == 4
    file.write(step + 1, {})
    assert read_metrics(path) == [*before[: min(step, 4)], {"step": step + 1}]


def test_a_half_written_last_line_is_ignored(path):
    whole = path.read_text()
    for length in range(1, len('{"step": 5, "loss": 1.5}\n')):
        path.write_text(whole + '{"step": 5, "loss": 1.5}\n'[:length])
        assert steps(path) == [1, 2, 3, 4]


def test_a_half_written_last_line_does_not_spoil_the_next(path):
    path.write_text(path.read_text() + '{"step": 5, "lo')
    MetricsFile(path, step=4).write(5, {"loss": 2.0})
    assert read_metrics(path)[4:] == [{"step": 5, "loss": 2.0}]


@pytest.mark.parametrize(
    "damage", [b"\0\0\n", b'{"step": \n', b"[]\n", b'{"loss": 1}\n', b"\xff\n"]
)
def test_a_damaged_line_is_named(path, damage):
    first, *others = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([first, damage, *others]))
    with pytest.raises(RunError, match=f"{path}:2: "):
        MetricsFile(path, step=4)


def test_a_line_that_does_not_fit_leaves_no_part_of_it(path):
    before, file = path.read_bytes(), MetricsFile(path, step=4)
    with files_limited_to(len(before) + 10), pytest.raises(OSError, match="File too large"):
        file.write(5, {"loss": 2.0})
    assert path.read_bytes() == before
    file.write(5, {"loss": 2.0})
    assert read_metrics(path)[4:] == [{"step": 5, "loss": 2.0}]


def test_a_file_that_was_removed_is_begun_again(path):
    file = MetricsFile(path, step=4)
    path.unlink()
    file.write(5, {"loss": 2.0})
    assert steps(path) == [5]
