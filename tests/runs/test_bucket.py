"""Laws of checkpoints in a bucket: as on a disk, and on a machine that has lost its own."""

import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from block_recurrent.config import ConfigError
from block_recurrent.runs.bucket import Bucket, BucketError
from block_recurrent.runs.checkpoints import CheckpointError, Checkpoints
from tests.helpers import assert_equal, slow
from tests.quick_runs import SAVED, STEPS, Steps, logged_steps, make_inputs, run
from tests.runs.test_checkpoints import POSITION, initial, trained
from tests.soak.processes import free_port

HAS_EMULATOR = find_spec("moto") is not None


@pytest.fixture(scope="module")
def object_store() -> Iterator[str]:
    """The address of an emulated S3 with a bucket."""
    if not HAS_EMULATOR:
        pytest.skip("moto is not installed")
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        put = urllib.request.Request(f"{address}/runs", method="PUT")
        end = time.monotonic() + 300
        while True:
            try:
                urllib.request.urlopen(put, timeout=60).close()
                break
            except urllib.error.URLError:
                assert time.monotonic() < end and server.poll() is None
                time.sleep(0.05)
        yield address
    finally:
        server.kill()
        server.wait()


@pytest.fixture(params=[*slow("file"), "s3"])
def url(request, tmp_path, monkeypatch) -> str:
    """A new place: in a folder that stands for a bucket, and in an emulated S3."""
    if request.param == "file":
        return f"file://{tmp_path}/bucket"
    monkeypatch.setenv("AWS_ENDPOINT_URL", request.getfixturevalue("object_store"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "any")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "any")
    return f"s3://runs/{tmp_path.name}"


def save(folder: Path, url: str, *steps: int, keep: int = 2) -> None:
    store = Checkpoints(folder, keep=keep, bucket=Bucket(url))
    for step in steps:
        store.save(trained(step=step), POSITION, loss=1.0 / step)
        store.wait()
    store.close()


def test_what_was_saved_comes_back_on_another_machine(tmp_path, url):
    save(tmp_path / "here", url, 1, 2, 3)
    assert Bucket(url).steps() == [2, 3]
    there = Checkpoints(tmp_path / "there", bucket=Bucket(url))
    state, progress = there.restore(initial())
    assert progress == POSITION
    assert_equal(state, trained(step=3))
    assert there.best_step() == 3


def test_a_damaged_object_is_noticed_and_the_one_before_it_taken(tmp_path, url):
    save(tmp_path / "here", url, 1, 2)
    bucket = Bucket(url)
    name = max(bucket.names(), key=lambda name: name.startswith("2/parameters/d/"))
    content = bytearray(bucket.read(name) or b"")
    content[-3] ^= 1
    bucket.write(name, bytes(content))
    warnings: list[str] = []
    there = Checkpoints(tmp_path / "there", warn=warnings.append, bucket=bucket)
    state, _ = there.restore(initial())
    assert_equal(state, trained(step=1))
    assert len(warnings) == 1 and "checkpoint 2 is damaged" in warnings[0]
    there.tidy()
    there.save(trained(step=2), POSITION)  # reached again
    there.close()
    again = Checkpoints(tmp_path / "elsewhere", bucket=bucket)
    assert_equal(again.restore(initial())[0], trained(step=2))


def test_what_was_being_written_or_removed_is_no_checkpoint(tmp_path, url):
    save(tmp_path / "here", url, 1, 2)
    bucket = Bucket(url)
    bucket.write("2/seal.json", None)  # as far as an upload, or a removal, had come
    assert bucket.steps() == [1]
    there = Checkpoints(tmp_path / "there", bucket=bucket)
    assert_equal(there.restore(initial())[0], trained(step=1))
    save(tmp_path / "here", url, 3, 4)
    assert not any(name.startswith("2/") for name in bucket.names())
    assert bucket.steps() == [3, 4]


def test_who_began_later_has_the_place(tmp_path, url):
    warnings: list[str] = []
    first = Checkpoints(tmp_path / "first", keep=1, warn=warnings.append, bucket=Bucket(url))
    first.save(trained(step=1), POSITION)
    first.wait()
    save(tmp_path / "second", url, 2, 3, keep=2)
    first.save(trained(step=4), POSITION, loss=0.0)
    first.close()
    assert len(warnings) == 1 and "another run has begun to write to" in warnings[0]
    assert Bucket(url).steps() == [2, 3] and first.steps() == [2, 3, 4]
    assert Checkpoints(tmp_path / "third", bucket=Bucket(url)).best_step() == 3


def test_what_could_not_be_copied_is_copied_with_the_next_and_nothing_is_lost(tmp_path, url):
    class Full(Bucket):
        full = False

        def write(self, name: str, content: bytes | None) -> None:
            if self.full and not name.endswith("owner.json"):
                raise BucketError("no room")
            super().write(name, content)

    bucket, warnings = Full(url), []
    store = Checkpoints(tmp_path / "here", keep=2, warn=warnings.append, bucket=bucket)
    for step in (1, 2, 3, 4, 5):
        bucket.full = step in (3, 4)
        store.save(trained(step=step), POSITION)
        store.wait()
        if bucket.full:
            assert bucket.steps() == [1, 2]
    store.close()
    assert [("no room" in warning) for warning in warnings] == [True, True]
    assert bucket.steps() == [4, 5]


def test_without_the_bucket_what_is_here_is_used(tmp_path):
    url = f"file://{tmp_path}/bucket"
    save(tmp_path / "here", url, 1)

    class Gone(Bucket):
        def names(self) -> list[str]:
            raise BucketError("gone")

    warnings: list[str] = []
    here = Checkpoints(tmp_path / "here", warn=warnings.append, bucket=Gone(url))
    assert_equal(here.restore(initial())[0], trained(step=1))
    assert "gone" in warnings
    with pytest.raises(CheckpointError, match="gone"):
        Checkpoints(tmp_path / "there", bucket=Gone(url)).restore(initial())


@pytest.mark.parametrize("url", ["runs/x", "http://a/b", "gs://", "s3:///x"])
def test_an_address_that_is_no_bucket_is_an_error(url):
    with pytest.raises(ConfigError, match="is not the address of a bucket: write gs://BUCKET/PATH"):
        Bucket(url)


def test_a_run_goes_on_without_its_work_directory(tmp_path, url, monkeypatch, capsys):
    inputs, steps = make_inputs(tmp_path), Steps(monkeypatch)
    bucket = f"--gin.training.bucket={url}"
    assert run(inputs, tmp_path / "run", bucket, "--gin.training.num_steps=4") == 0
    shutil.rmtree(tmp_path / "run")
    assert run(inputs, tmp_path / "new", bucket) == 0
    assert "continuing from step 4" in capsys.readouterr().err
    assert logged_steps(tmp_path / "new")[0] == 5
    assert max(steps.batches) == STEPS
    assert Bucket(url).steps() == list(SAVED)
    assert run(inputs, tmp_path / "other", bucket, "--gin.model.num_states=5") == 2
    assert "holds a run with another configuration" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
