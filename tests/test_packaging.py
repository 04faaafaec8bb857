"""The package installs as one piece, declares what it imports, and importing it is light."""

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from block_recurrent.command_line import main as command

ROOT = Path(__file__).parents[1]
# The distribution that brings a package, where it has another name.
DISTRIBUTIONS = {"orbax": "orbax-checkpoint", "gin": "gin-config", "jaxlib": "jax"}
DISTRIBUTIONS |= {"scipy": "jax", "tensorstore": "orbax-checkpoint"}
REQUIRED = {"jax", "flax", "optax", "orbax-checkpoint", "tensorflow-datasets", "gin-config"}
REQUIRED |= {"jaxtyping", "numpy"}
HEAVY = (
    *("orbax", "tensorstore", "tensorflow_datasets", "tensorflow", "sentencepiece", "gin"),
    *("matplotlib", "array_record", "pyarrow", "scipy.stats", "wandb", "safetensors"),
    *("tokenizers", "tiktoken", "datasets"),
)
# Runs other people's packages in processes of their own; who compares installs them there.
PEERS = ROOT / "experiments/peers"


def plain(requirement: str) -> str:
    """The name in a requirement, as package indexes compare names."""
    return re.sub("[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()


def distribution(package: str) -> str:
    return plain(DISTRIBUTIONS.get(package, package))


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder with what a wheel holds, which was built from a copy of the sources."""
    pytest.importorskip("setuptools", minversion="70.1")
    folder = tmp_path_factory.mktemp("installation")
    source, target = folder / "source", folder / "installed"
    source.mkdir()
    for name in ("block_recurrent", "gin"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    options = ["--no-deps", "--no-index"]
    wheel = [*pip, "wheel", *options, "--no-build-isolation", f"--wheel-dir={folder}", str(source)]
    subprocess.run(wheel, check=True, cwd=folder)
    (built,) = folder.glob("*.whl")
    install = [*pip, "install", *options, "--no-compile", f"--target={target}", str(built)]
    subprocess.run(install, check=True, cwd=folder)
    return target


@pytest.fixture(scope="module")
def requirements(installed) -> dict[str, set[str]]:
    """The distributions that the wheel requires, by extra; those of all installations by ""."""
    (found,) = importlib.metadata.distributions(path=[str(installed)])
    listed: dict[str, set[str]] = {"": set()}
    for requirement in found.requires or []:
        extra = re.search(r"extra == [\"'](\w+)", requirement)
        listed.setdefault(extra[1] if extra else "", set()).add(plain(requirement))
    assert found.version == found.metadata["Version"] and found.metadata["Author"]
    return listed


def run(installed: Path, folder: Path, *words: str) -> str:
    """What the installed command prints; it must succeed."""
    script = [sys.executable, str(installed / "bin/block-recurrent"), *words]
    environment = os.environ | {"PYTHONPATH": str(installed)}
    ended = subprocess.run(script, cwd=folder, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_the_wheel_has_every_experiment_file(installed):
    def names(folder: Path) -> set[Path]:
        return {path.relative_to(folder) for path in folder.rglob("*.gin")}

    assert names(installed / "block_recurrent/gin") == names(ROOT / "gin") != set()


@pytest.mark.parametrize("name", ["laptop_rec_fixed_skip.gin", "gin/laptop_rec_fixed_skip.gin"])
def test_an_experiment_file_is_found_from_an_empty_folder(name, installed, tmp_path):
    assert "parameters" in run(installed, tmp_path, "train", f"--gin_file={name}", "--dry_run")


def test_a_file_of_the_users_own_wins(installed, tmp_path):
    (tmp_path / "gin").mkdir()
    own = 'include "laptop_rec_fixed_skip.gin"\nmodel.window = 32\n'
    (tmp_path / "gin/laptop_slide.gin").write_text(own)
    names = ("gin/laptop_slide.gin", "laptop_slide.gin")
    code = "from block_recurrent.gin_files import load; "
    code += f"print(*(load([name]).model.window for name in {names}))"
    environment = os.environ | {"PYTHONPATH": str(installed)}
    python = [sys.executable, "-c", code]
    found = subprocess.check_output(python, cwd=tmp_path, env=environment, text=True).split()
    assert found[0] == "32" and found[1] != "32"


def test_the_command_lists_its_programs_and_all_of_them_are_there(capsys):
    for words in ([], ["--help"]):
        assert command.main(words) == 0
        listed = capsys.readouterr().out
        assert all(re.search(rf"^  {name} +\w", listed, re.M) for name in command.PROGRAMS)
    modules = {module.rpartition(".")[2] for module, _ in command.PROGRAMS.values()}
    assert modules == {path.stem for path in (ROOT / "experiments").glob("*.py")}


def test_an_unknown_program_is_answered_with_the_nearest(capsys):
    assert command.main(["prepare_data"]) == 2
    assert "'prepare_data' (did you mean 'prepare-data'?)" in capsys.readouterr().err


def test_the_version_is_everywhere_the_same(installed):
    (found,) = importlib.metadata.distributions(path=[str(installed)])
    assert f"version: {found.version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"## [{found.version}]" in (ROOT / "CHANGELOG.md").read_text()


def sources(folder: str) -> Iterator[tuple[Path, ast.Module]]:
    """The files of a folder, parsed."""
    for path in (ROOT / folder).rglob("*.py"):
        if path.parent != PEERS:
            yield path, ast.parse(path.read_text(encoding="utf-8"))


def packages(node: ast.AST) -> set[str]:
    """The packages that an import statement names, other than Python's and our own."""
    names = set()
    if isinstance(node, ast.Import):
        names = {alias.name.split(".")[0] for alias in node.names}
    elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
        names = {node.module.split(".")[0]}
    return names - set(sys.stdlib_module_names) - {"block_recurrent", "experiments"}


def test_the_required_packages_are_those_promised(requirements):
    assert requirements[""] == REQUIRED


def test_every_imported_package_is_declared(requirements):
    known = set().union(*(requirements[extra] for extra in ("", "data", "plots", "tensorboard")))
    for folder in ("block_recurrent", "experiments"):
        for path, tree in sources(folder):
            for package in set().union(*map(packages, ast.walk(tree))):
                assert distribution(package) in known, f"{path}: {package}"


def test_modules_import_only_required_packages_when_they_are_imported():
    for path, tree in sources("block_recurrent"):
        for package in set().union(*map(packages, tree.body)):
            assert distribution(package) in REQUIRED, f"{path}: {package} is in an extra"


def test_every_extra_that_a_message_names_brings_the_package(requirements):
    for path, tree in sources("block_recurrent"):
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "require":
                package, extra, *_ = (ast.literal_eval(argument) for argument in node.args)
                where = f"{path}: {package}"
                assert distribution(package.split(".")[0]) in requirements[extra], where


def test_importing_the_library_is_light():
    code = f"import sys, block_recurrent; print([n for n in {HEAVY!r} if n in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert found.stdout.strip() == "[]", found.stdout + found.stderr
