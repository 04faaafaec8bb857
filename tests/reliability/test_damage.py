"""Laws of damage: what happens to any file of a checkpoint is noticed, and an older one serves."""

import functools
import random
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import pytest

from block_recurrent.model.parameters import named_parameters
from block_recurrent.runs import seal as seal_module
from block_recurrent.runs.checkpoint_folder import read_model
from block_recurrent.runs.checkpoints import CheckpointError, Checkpoints, read_parameters
from block_recurrent.runs.errors import Damaged
from block_recurrent.runs.seal import UNSEALED, check_seal
from block_recurrent.system.digests import seal, unseal
from block_recurrent.training import TrainState
from tests import quick_runs
from tests.helpers import assert_equal, model_config, random_like, random_train_state
from tests.quick_runs import SAVED, STEPS, checkpoint, logged_steps, run, tree_of, warnings_in

POSITION = {"lanes": [[3, 40], None], "seed": 1}
OLD, NEW = 3, 12
ORBAX_WRITES_LAST = {"_CHECKPOINT_METADATA", "commit_success.txt"}


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
NESTED = b"[" * 100_000


def write(path: Path, content: bytes | None) -> None:
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)


def sealed_files(folder: Path) -> list[Path]:
    """Every file whose damage must be noticed; the seal is one of them."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    harmless = {folder / name for name in UNSEALED - {"seal.json"}}
    return [path for path in paths if path not in harmless]


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


def damage_every_file(saved: Path, damage: Callable[[bytes], list[bytes | None]]) -> None:
    paths = sealed_files(saved / str(NEW))
    names = {path.relative_to(saved / str(NEW)).parts[0] for path in paths}
    assert names == {"parameters", "training", "progress", "seal.json"}
    for path in paths:
        content = path.read_bytes()
        for damaged in damage(content):
            write(path, damaged)
            with pytest.raises(Damaged, match=str(path)):
                check_seal(saved / str(NEW))
        path.write_bytes(content)
    write(path, damage(content)[0])
    assert_the_older_one_serves(saved, path)
    path.write_bytes(content)
    assert_equal(Checkpoints(saved).restore(initial())[0], trained(NEW))


def test_brackets_without_end_are_refused_in_every_file(saved):
    damage_every_file(saved, lambda _: [NESTED])
    path = saved / str(NEW) / "_CHECKPOINT_METADATA"  # which Orbax reads, and writes after the seal
    content = path.read_bytes()
    path.write_bytes(NESTED)
    with pytest.raises(CheckpointError, match=f"{path.parent} cannot be read"):
        Checkpoints(saved).restore(initial())
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["more.json", ".hidden"])
def test_an_added_file_is_noticed(name, saved):
    path = saved / str(NEW) / name
    path.write_text("more")
    assert_the_older_one_serves(saved, path)
    path.unlink()


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("name", sorted(ORBAX_WRITES_LAST))
def test_damage_of_what_orbax_writes_after_the_seal_is_harmless(name, damage, saved):
    path = saved / str(NEW) / name
    content = path.read_bytes()
    for damaged in damage(content):
        write(path, damaged)
        state, progress = Checkpoints(saved).restore(initial())
        assert_equal(state, trained(NEW))
        assert progress == {**POSITION, "step": NEW}
        assert_equal(read_parameters(saved), named_parameters(trained(NEW).model))
    path.write_bytes(content)


def test_every_flipped_bit_is_noticed(saved):
    folder, rng, noticed = saved / str(NEW), random.Random(1), 0
    for path in sealed_files(folder):
        content = path.read_bytes()
        for position in range(rng.randrange(31), len(content), max(31, len(content) // 40)):
            path.write_bytes(flip(content, position, rng.randrange(8)))
            with pytest.raises(Damaged, match=str(path)):
                check_seal(folder)
            noticed += 1
        path.write_bytes(content)
    check_seal(folder)
    assert noticed > 200


def test_every_process_checks_a_part_and_together_they_check_all(saved):
    folder, noticed = saved / str(NEW), 0
    for path in sealed_files(folder):
        content = path.read_bytes()
        if path.name == "seal.json" or not content:
            continue
        path.write_bytes(flip(content, len(content) // 2, 3))
        for part in range(3):
            try:
                check_seal(folder, part, 3)
            except Damaged:
                noticed += 1
        path.write_bytes(content)
    assert noticed == len(sealed_files(folder)) - 1


@pytest.mark.parametrize("name", ["parameters", "training", "progress"])
def test_files_of_another_checkpoint_are_noticed(name, saved, tmp_path):
    directory = tmp_path / "checkpoints"
    shutil.copytree(saved, directory)
    folder = directory / str(NEW) / name
    shutil.rmtree(folder)
    shutil.copytree(saved / str(OLD) / name, folder)
    assert_the_older_one_serves(directory, folder)


def test_parameters_alone_are_checked_in_the_same_way(saved, tmp_path):
    directory = tmp_path / "checkpoints"
    shutil.copytree(saved, directory)
    (directory / str(NEW) / "training/manifest.ocdbt").write_bytes(b"")
    with pytest.warns(UserWarning, match=f"checkpoint {NEW} is damaged.*manifest.ocdbt"):
        arrays = read_parameters(directory)
    assert_equal(arrays, read_parameters(directory, OLD))
    with pytest.raises(CheckpointError, match="manifest.ocdbt"):
        read_parameters(directory, NEW)
    warnings = []
    store = Checkpoints(directory, warn=warnings.append)
    assert store.read(lambda folder: read_model(folder, initial().model))[0] == 3
    assert len(warnings) == 1


@pytest.mark.parametrize("known", [False, True])
def test_what_cannot_be_read_at_present_is_not_damaged(known, saved, monkeypatch):
    """As where a process has too many files open: nothing is set aside, and the start ends."""
    files = seal_module._read_seal(saved / str(NEW))
    if known:
        monkeypatch.setattr(seal_module, "_read_seal", lambda folder: files)
        monkeypatch.setattr(seal_module, "_files_in", lambda folder: list(files))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        with pytest.raises(CheckpointError, match="Too many open files") as caught:
            check_seal(saved / str(NEW))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert not isinstance(caught.value, Damaged)


def test_a_checkpoint_of_another_format_is_not_read(saved):
    path = saved / str(NEW) / "seal.json"
    content = path.read_bytes()
    listed = unseal(content)
    path.write_text(seal(listed | {"format": 99}))
    before = tree_of(saved)
    with pytest.raises(CheckpointError, match=f"{path} has format 99") as caught:
        Checkpoints(saved).restore(initial())
    assert not isinstance(caught.value, Damaged) and tree_of(saved) == before
    path.write_bytes(content)


def test_every_damaged_checkpoint_is_named(saved, tmp_path):
    directory = tmp_path / "checkpoints"
    shutil.copytree(saved, directory)
    shutil.copytree(saved / str(OLD), directory / "2")
    path = directory / "2/seal.json"
    path.write_text(seal(unseal(path.read_bytes()) | {"step": 2}))
    for step in (OLD, NEW):
        (directory / str(step) / "training/manifest.ocdbt").unlink()
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
    (last / "seal.json").write_text("{}")
    damaged = tree_of(last)
    capsys.readouterr()
    steps.batches.clear()
    seen = {}
    steps.at[5] = lambda: seen.update(logged=logged_steps(workdir), names=set(tree_of(workdir)))
    assert run(inputs, workdir) == 0
    errors = capsys.readouterr().err
    (warning,) = warnings_in(errors)
    assert f"checkpoint {STEPS} is damaged" in warning and "seal.json" in warning
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
