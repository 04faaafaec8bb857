"""Laws of trackers: they get every figure once, and the configuration, and never stop a run."""

import json
import struct
import sys
import threading
from types import SimpleNamespace

import pytest

from block_recurrent.config import ExperimentConfig, TrainingConfig
from block_recurrent.runs import trackers
from block_recurrent.runs.checkpoints import Checkpoints
from block_recurrent.runs.records import Records
from block_recurrent.runs.trackers import TensorBoard, Trackers
from tests.helpers import files_limited_to, model_config
from tests.quick_runs import make_inputs, run


def configuration(*names):
    return ExperimentConfig(
        model=model_config(vocab_size=256), training=TrainingConfig(trackers=names)
    )


def open_trackers(workdir, *names, warnings=None):
    warn = pytest.fail if warnings is None else warnings.append
    return Trackers(workdir, configuration(*names), 0, {}, warn)


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
    board = TensorBoard(tmp_path, {}, step=6)
    board.write(7, {"bits_per_token": 2.5, "validation/perplexity": 3})
    board.flush()
    first, begun, _, *events = events_in(tmp_path)
    board.close()
    assert first.file_version == "brain.Event:2"
    assert (begun.step, begun.session_log.status) == (7, begun.session_log.START)
    values = [(event.step, *event.summary.value) for event in events]
    assert [(step, value.tag, value.simple_value) for step, value in values] == [
        (7, "bits_per_token", 2.5),
        (7, "validation/perplexity", 3.0),
    ]


def test_tensorboard_has_every_parameter_among_its_hyperparameters(tmp_path):
    board = open_trackers(tmp_path, "tensorboard")
    board.close()
    _, _, event = events_in(tmp_path / "tensorboard")
    proto = pytest.importorskip("tensorboardX.proto.plugin_hparams_pb2")
    (value,) = event.summary.value
    assert value.metadata.plugin_data.plugin_name == "hparams"
    found = proto.HParamsPluginData.FromString(value.metadata.plugin_data.content)
    shown = found.session_start_info.hparams
    assert shown["model.window"].number_value == 4
    assert shown["data.source"].string_value == "stdlib"
    assert shown["training.clear_states"].bool_value is False
    assert shown["training.bucket"].string_value == "None"
    assert shown["training.trackers"].string_value == "('tensorboard',)"


def test_tensorboard_that_fails_is_a_warning_and_no_more(tmp_path):
    pytest.importorskip("tensorboardX")
    warnings = []
    board = open_trackers(tmp_path, "tensorboard", warnings=warnings)
    with files_limited_to(6000):
        for step in range(1, 100):
            board.write(step, {"loss": 2.5})
        board.flush()
        board.write(100, {"loss": 2.5})
    board.close()
    (warning,) = warnings
    assert warning.startswith("tensorboard gets no more metrics (File too large)")
    (tmp_path / "file").write_text("")
    open_trackers(tmp_path / "file", "tensorboard", warnings=warnings).write(1, {"loss": 2.5})
    assert len(warnings) == 2


def test_without_tensorboard_nothing_is_written(tmp_path, monkeypatch):
    for name in (
        "tensorboardX",
        *filter(lambda name: name.startswith("tensorboardX."), [*sys.modules]),
    ):
        monkeypatch.setitem(sys.modules, name, None)
    board = open_trackers(tmp_path, "tensorboard")
    board.write(1, {"loss": 2.5})
    board.close()
    assert not list(tmp_path.iterdir())


@pytest.fixture
def server(monkeypatch):
    """What wandb's server has, with a package in place of wandb that sends it there."""
    server = SimpleNamespace(rows=[], places=[], runs=[], config={}, before=lambda: None)

    def log(row, step, commit):
        server.rows.append(row)
        server.places.append(step)

    def init(**options):
        server.before()
        server.runs.append((options["id"], options["resume"]))
        server.config = options["config"]
        return SimpleNamespace(define_metric=lambda *_, **__: None, log=log, finish=lambda: None)

    package = SimpleNamespace(
        init=init,
        Settings=lambda **_: None,
        setup=lambda: SimpleNamespace(settings=SimpleNamespace(mode="offline")),
    )
    monkeypatch.setitem(sys.modules, "wandb", package)
    return server


def test_wandb_gets_every_figure_once_however_often_the_run_continues(server, tmp_path):
    def log(after, last, *, evaluate=True):
        """Continues after a step, until the run is killed. Step 4 is to be evaluated."""
        store = Checkpoints(tmp_path / "checkpoints")
        records = Records(tmp_path, configuration("wandb"), after, store, pytest.fail)
        for step in range(after + 1, last + 1):
            records.write(step, {"loss": step})
            if step == 4 and evaluate:
                records.write(step, {"validation/loss": 40})
        records.close()

    log(0, 4, evaluate=False)
    log(2, 3)
    log(2, 4)
    log(2, 3)
    log(3, 6)
    expected = [{"step": step, "loss": step} for step in (1, 2, 3, 4, 5, 6)]
    expected.insert(4, {"step": 4, "validation/loss": 40})
    assert server.rows == expected
    assert server.places == sorted({*server.places})  # what wandb takes, in this order
    (name,) = {name for name, _ in server.runs}
    assert server.runs == [(name, "allow")] * 5


def test_wandb_has_the_configuration(server, tmp_path):
    open_trackers(tmp_path, "wandb").close()
    assert server.config["model.window"] == 4 and server.config["training.bucket"] == "None"


def test_wandb_that_fails_or_hangs_is_a_warning_and_never_waited_for(server, tmp_path, monkeypatch):
    monkeypatch.setattr(trackers, "FINISH_SECONDS", 0.05)
    warnings, network = [], threading.Event()
    server.before = network.wait
    opened = open_trackers(tmp_path, "wandb", warnings=warnings)
    opened.write(1, {"loss": 2.5})
    opened.close()
    assert server.rows == [] and len(warnings) == 1
    assert "wandb gets no more metrics (not everything was sent within 0.05 s)" in warnings[0]
    network.set()

    def unreachable():
        raise RuntimeError("no network")

    server.before = unreachable
    opened = open_trackers(tmp_path, "wandb", warnings=warnings)
    opened._trackers["wandb"]._thread.join()
    for step in (1, 2, 3):
        opened.write(step, {"loss": 2.5})
    opened.close()
    assert len(warnings) == 2 and "(no network)" in warnings[1]


def test_wandb_itself_takes_a_run_that_is_continued(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    try:
        for step in (1, 2):
            opened = open_trackers(tmp_path, "wandb")
            opened.write(step, {"loss": 2.5, "validation/loss": 3})
            opened.close()
    finally:
        wandb.teardown()
    name = json.loads((tmp_path / "wandb/run.json").read_text())["id"]
    contents = [
        path.read_bytes() for path in tmp_path.glob(f"wandb/offline-run-*/run-{name}.wandb")
    ]
    assert len(contents) == 2
    assert all(b"model.window" in content and b"validation/loss" in content for content in contents)


def test_wandb_that_is_missing_is_named_before_anything_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert run(make_inputs(tmp_path), tmp_path / "run", "--gin.training.trackers=('wandb',)") == 2
    assert "needs wandb: pip install 'block_recurrent[wandb]'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
