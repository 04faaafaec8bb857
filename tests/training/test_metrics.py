"""Laws of the metrics file: whole lines, in order, none from a future that was undone."""

import sys

import pytest

from block_recurrent.training.checkpoints import CheckpointError
from block_recurrent.training.metrics import MetricsFile, TensorBoard, read_metrics


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
    with pytest.raises(CheckpointError, match=rf"{path}, line 2 is damaged .*remove that line"):
        MetricsFile(path, step=4)


def test_tensorboard_gets_every_figure(tmp_path):
    pytest.importorskip("tensorboardX")
    board = TensorBoard(tmp_path)
    board.write(1, {"bits_per_token": 2.5, "validation/perplexity": 3})
    board.close()
    (events,) = tmp_path.glob("events.*")
    assert all(tag in events.read_bytes() for tag in (b"bits_per_token", b"validation/perplexity"))


def test_without_tensorboard_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    board = TensorBoard(tmp_path / "tensorboard")
    board.write(1, {"loss": 2.5})
    board.close()
    assert not list(tmp_path.iterdir())
