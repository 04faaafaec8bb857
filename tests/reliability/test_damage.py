"""Laws of damage: what happens to any file of a checkpoint is noticed, and an older one serves."""

import functools
import random
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import pytest

from block_recurrent.runs import array_file, checkpoint_folder
from block_recurrent.runs.checkpoint_folder import check_folder
from block_recurrent.runs.checkpoints import CheckpointError, Checkpoints, read_parameters
from block_recurrent.runs.errors import Damaged
from block_recurrent.system.digests import seal, unseal
from block_recurrent.training import TrainState
from tests import quick_runs
from tests.helpers import assert_equal, model_config, random_like, random_train_state
from tests.quick_runs import SAVED, STEPS, checkpoint, logged_steps, run, tree_of, warnings_in

pytestmark = pytest.mark.usefixtures("optax_mixes_integers_and_floats")

POSITION = {"lanes": [[3, 40], None], "seed": 1}
OLD, NEW = 3, 12
FILES = {"parameters.safetensors", "training.safetensors", "checkpoint.json"}


@functools.cache
def initial() -> TrainState:
    return random_train_state(model_config(0, num_layers=2, dtype="bfloat16"))


@functools.cache
def trained(step: int) -> TrainState:
    return random_like(initial(), seed=step)._replace(step=jnp.int32(step))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A directory with two checkpoints."""
    store = Checkpoints(tmp_path_factory.mktemp("damage") / "checkpoints")
    for step in (OLD, NEW):
        store.save(trained(step), {**POSITION, "step": step})
    store.close()
    return store.directory


def flip(content: bytes, position: int, bit: int) -> bytes:
    return content[:position] + bytes([content[position] ^ 1 << bit]) + content[position + 1 :]


def flipped(content: bytes) -> list[bytes]:
    """A bit flipped in each half."""
    rng = random.Random(len(content))
    middle, end = len(content) // 2, len(content)
    positions = (rng.randrange(middle), rng.randrange(middle, end))
    return [flip(content, position, rng.randrange(8)) for position in positions]


DAMAGES = {
    "cut in half": lambda content: [content[: len(content) // 2]],
    "emptied": lambda content: [b""],
    "deleted": lambda content: [None],
    "with a byte more": lambda content: [content + b"\n"],
    "bits flipped": flipped,
}


def write(path: Path, content: bytes | None) -> None:
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)


def assert_the_older_one_serves(directory: Path, path: Path) -> None:
    warnings = []
    store = Checkpoints(directory, warn=warnings.append)
    state, position = store.restore(initial())
    assert_equal(state, trained(OLD))
    assert position == {**POSITION, "step": OLD}
    (warning,) = warnings
    assert f"checkpoint {NEW} is damaged" in warning and f"using {OLD} instead" in warning
    assert str(path) in warning


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damage_of_any_file_is_noticed_and_the_checkpoint_before_is_used(damage, saved):
    damage_every_file(saved, damage)


@pytest.mark.parametrize("name", ["cut in half", "bits flipped"])
def test_damage_is_noticed_where_files_are_read_in_pieces(name, saved, monkeypatch):
    monkeypatch.setattr(array_file, "AT_ONCE", 200)
    damage_every_file(saved, lambda content: DAMAGES[name](content)[:1])


def damage_every_file(saved: Path, damage: Callable[[bytes], list[bytes | None]]) -> None:
    paths = [path for path in (saved / str(NEW)).rglob("*") if path.is_file()]
    assert {path.relative_to(saved / str(NEW)).as_posix() for path in paths} == FILES
    for path in paths:
        content = path.read_bytes()
        for damaged in damage(content):
            assert damaged != content
            write(path, damaged)
            assert_the_older_one_serves(saved, path)
        path.write_bytes(content)
    assert_equal(Checkpoints(saved).restore(initial())[0], trained(NEW))


@pytest.mark.parametrize("name", ["more.json", ".hidden"])
def test_an_added_file_is_noticed(name, saved):
    path = saved / str(NEW) / name
    path.write_text("more")
    assert_the_older_one_serves(saved, path)
    path.unlink()


def test_every_flipped_bit_is_noticed(saved):
    folder, rng, noticed = saved / str(NEW), random.Random(1), 0
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        content = path.read_bytes()
        for position in range(rng.randrange(31), len(content), max(31, len(content) // 100)):
            path.write_bytes(flip(content, position, rng.randrange(8)))
            with pytest.raises(Damaged, match=str(path)):
                check_folder(folder)
            noticed += 1
        path.write_bytes(content)
    check_folder(folder)
    assert noticed > 200


@pytest.mark.parametrize("name", ["parameters.safetensors", "training.safetensors"])
def test_arrays_of_another_checkpoint_are_noticed(name, saved, tmp_path):
    """Files of the same names, sizes and headers, with other numbers."""
    directory = tmp_path / "checkpoints"
    shutil.copytree(saved, directory)
    other = Checkpoints(tmp_path / "other")
    other.save(random_like(trained(NEW), seed=5)._replace(step=jnp.int32(NEW)), POSITION)
    other.close()
    path = directory / str(NEW) / name
    shutil.copy(other.directory / str(NEW) / name, path)
    assert_the_older_one_serves(directory, Path(f"in {path} is not the one"))


def test_parameters_alone_are_checked_in_the_same_way(saved, tmp_path):
    directory = tmp_path / "checkpoints"
    shutil.copytree(saved, directory)
    (directory / str(NEW) / "training.safetensors").write_bytes(b"")
    with pytest.warns(UserWarning, match=f"checkpoint {NEW} is damaged.*training.safetensors"):
        arrays = read_parameters(directory)
    assert_equal(arrays, read_parameters(directory, OLD))
    with pytest.raises(CheckpointError, match="training.safetensors"):
        read_parameters(directory, NEW)
    warnings = []
    assert Checkpoints(directory, warn=warnings.append).restore_parameters(initial().model)[0] == 3
    assert len(warnings) == 1


@pytest.mark.parametrize("known", [False, True])
def test_what_cannot_be_read_at_present_is_not_damaged(known, saved, monkeypatch):
    """As where a process has too many files open: nothing is set aside, and the start ends."""
    contents = checkpoint_folder.read_contents(saved / str(NEW))
    if known:
        monkeypatch.setattr(checkpoint_folder, "read_contents", lambda folder: contents)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        with pytest.raises(CheckpointError, match="Too many open files") as caught:
            check_folder(saved / str(NEW))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert not isinstance(caught.value, Damaged)


def test_a_checkpoint_of_another_format_is_not_read(saved):
    path = saved / str(NEW) / "checkpoint.json"
    content = path.read_bytes()
    listed = unseal(content)
    path.write_text(seal(listed | {"format": 99}))
    before = tree_of(saved)
    with pytest.raises(CheckpointError, match=f"{path} is of format 99, .* writes 1") as caught:
        Checkpoints(saved).restore(initial())
    assert not isinstance(caught.value, Damaged) and tree_of(saved) == before
    path.write_bytes(content)


def test_every_damaged_checkpoint_is_named(saved, tmp_path):
    directory = tmp_path / "checkpoints"
    shutil.copytree(saved, directory)
    shutil.copytree(saved / str(OLD), directory / "2")
    path = directory / "2/checkpoint.json"
    path.write_text(seal(unseal(path.read_bytes()) | {"name": "2"}))
    for step in (OLD, NEW):
        (directory / str(step) / "training.safetensors").unlink()
    before, warnings = tree_of(directory), []
    store = Checkpoints(directory, warn=warnings.append)
    store.restore(initial())
    assert [text.partition(",")[0] for text in warnings] == [
        f"checkpoint {step} is damaged" for step in (NEW, OLD)
    ]
    assert tree_of(directory) == before
    store.tidy()
    assert {path.name for path in directory.iterdir()} == {"2", "damaged-3", "damaged-12"}


def test_a_run_goes_on_from_the_checkpoint_before(tmp_path, monkeypatch, capsys):
    steps, inputs = quick_runs.Steps(monkeypatch), quick_runs.make_inputs(tmp_path)
    workdir, other = tmp_path / "run", tmp_path / "other"
    assert run(inputs, other) == run(inputs, workdir) == 0
    before, batches = logged_steps(workdir), dict(steps.batches)
    assert before == [1, 2, 3, 4, 5, 6, 6]
    kept, last = (checkpoint(workdir, step) for step in SAVED)
    whole = tree_of(kept)
    (last / "checkpoint.json").write_text("{}")
    damaged = tree_of(last)
    capsys.readouterr()
    steps.batches.clear()
    seen = {}
    steps.at[5] = lambda: seen.update(logged=logged_steps(workdir), names=set(tree_of(workdir)))
    assert run(inputs, workdir) == 0
    errors = capsys.readouterr().err
    (warning,) = warnings_in(errors)
    assert f"checkpoint {STEPS} is damaged" in warning and "checkpoint.json" in warning
    assert "continuing from step 4" in errors
    assert seen["logged"] == [1, 2, 3, 4] and f"checkpoints/damaged-{STEPS}" in seen["names"]
    assert logged_steps(workdir) == before
    assert set(steps.batches) == {5, 6}
    assert all((steps.batches[n].inputs == batches[n].inputs).all() for n in steps.batches)
    assert tree_of(kept) == whole
    assert tree_of(checkpoint(workdir, STEPS).with_name(f"damaged-{STEPS}")) == damaged
    store = Checkpoints(workdir / "checkpoints")
    assert store.steps() == list(SAVED)
    assert_equal(read_parameters(store.directory, STEPS), read_parameters(other / "checkpoints"))
