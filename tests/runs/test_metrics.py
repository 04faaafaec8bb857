"""Laws of the metrics file: whole lines, in order, none from a future that was undone."""

import struct
import sys

import pytest

from block_recurrent.runs.errors import RunError
from block_recurrent.runs.metrics import MetricsFile, TensorBoard, read_metrics
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
    MetricsFile(path, step=step).write(step + 1, {})
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


def events_in(folder):
    """The events of the only file of a folder, by the format of TensorBoard."""
    proto = pytest.importorskip("tensorboardX.proto.event_pb2")
    (path,) = folder.glob("events.*")
    content, events = path.read_bytes(), []
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        events.append(proto.Event.FromString(content[12 : 12 + length]))
        content = content[16 + length :]
    return events


def test_tensorboard_gets_every_figure_and_hides_later_ones(tmp_path):
    board = TensorBoard(tmp_path, step=6)
    board.write(7, {"bits_per_token": 2.5, "validation/perplexity": 3})
    board.flush()
    first, begun, *events = events_in(tmp_path)
    board.close()
    assert first.file_version == "brain.Event:2"
    assert (begun.step, begun.session_log.status) == (7, begun.session_log.START)
    values = [(event.step, *event.summary.value) for event in events]
    assert [(step, value.tag, value.simple_value) for step, value in values] == [
        (7, "bits_per_token", 2.5),
        (7, "validation/perplexity", 3.0),
    ]


def test_tensorboard_that_fails_is_a_warning_and_no_more(tmp_path):
    pytest.importorskip("tensorboardX")
    warnings = []
    board = TensorBoard(tmp_path / "board", warn=warnings.append)
    with files_limited_to(1000):
        for step in range(1, 100):
            board.write(step, {"loss": 2.5})
        board.flush()
        board.write(100, {"loss": 2.5})
    board.close()
    (warning,) = warnings
    assert f"{tmp_path / 'board'} (File too large)" in warning
    (tmp_path / "file").write_text("")
    TensorBoard(tmp_path / "file", warn=warnings.append).write(1, {"loss": 2.5})
    assert len(warnings) == 2


def test_without_tensorboard_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    board = TensorBoard(tmp_path / "tensorboard")
    board.write(1, {"loss": 2.5})
    board.close()
    assert not list(tmp_path.iterdir())
