"""Laws of whole files and folders, and of a lock: all or nothing, and one process at a time."""

import os
import subprocess
import sys

import pytest

from block_recurrent.system import files
from block_recurrent.system.files import hold, put_in_place, remove, whole_folder


def test_a_folder_gets_its_name_when_it_is_whole(tmp_path):
    with whole_folder(tmp_path / "done", tmp_path / "building") as building:
        (building / "a").write_text("a")
        assert not (tmp_path / "done").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["done"]
    assert (tmp_path / "done/a").read_text() == "a"


def test_an_error_leaves_nothing_of_a_folder(tmp_path):
    with pytest.raises(KeyError), whole_folder(tmp_path / "done", tmp_path / "x") as building:
        (building / "sub").mkdir()
        raise KeyError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["file", "folder"])
def test_an_existing_folder_or_file_stays(content, tmp_path):
    place = tmp_path / "done"
    place.write_text("mine") if content == "file" else (place / "sub").mkdir(parents=True)
    with pytest.raises(OSError), whole_folder(place, tmp_path / "building"):
        pass
    assert list(tmp_path.iterdir()) == [place]
    assert place.read_text() == "mine" if content == "file" else (place / "sub").is_dir()


def test_a_folder_is_flushed_before_it_gets_its_name(tmp_path, monkeypatch):
    flushed, place = {}, tmp_path / "done"
    monkeypatch.setattr(files, "flush_to_disk", lambda path: flushed.update({path: place.exists()}))
    (tmp_path / "x/sub").mkdir(parents=True)
    (tmp_path / "x/sub/a").write_text("a")
    put_in_place(tmp_path / "x", place)
    before = {tmp_path / name for name in ("x", "x/sub", "x/sub/a")}
    assert flushed == dict.fromkeys(before, False) | {tmp_path: True}


def test_remove_removes_anything_but_not_the_target_of_a_link(tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder/sub").mkdir(parents=True)
    for name in ("link", "file", "folder", "none"):
        remove(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


HOLD = "import sys; from block_recurrent.system.files import hold; hold(__import__('pathlib').Path"


def holds_elsewhere(path) -> bool:
    """Whether another process can hold the file."""
    command = [sys.executable, "-c", f"{HOLD}({str(path)!r}))"]
    return subprocess.run(command, capture_output=True, env=os.environ).returncode == 0


def test_a_file_is_held_by_one_process_until_it_is_closed(tmp_path):
    with hold(tmp_path / "lock") as file:
        file.write(b"mine")
        file.flush()
        assert not holds_elsewhere(tmp_path / "lock")
    assert holds_elsewhere(tmp_path / "lock")
    with hold(tmp_path / "lock") as file:
        file.seek(0)
        assert file.read() == b"mine"


def test_a_file_that_its_holder_removed_is_not_held(tmp_path, monkeypatch):
    """It is removed between the moment that it is opened and the moment that it is locked."""
    path, flock, removed = tmp_path / "lock", files.fcntl.flock, []

    def locking(file, how):
        if not removed:
            removed.append(file)
            path.unlink()
        flock(file, how)

    monkeypatch.setattr(files.fcntl, "flock", locking)
    with hold(path) as file:
        assert removed[0].closed and os.fstat(file.fileno()).st_ino == path.stat().st_ino
        assert not holds_elsewhere(path)
