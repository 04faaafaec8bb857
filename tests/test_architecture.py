"""Laws of the layers: which part of the library imports which."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import block_recurrent
import block_recurrent.model

ROOT = Path(block_recurrent.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
CORE = [path for path in FILES if ROOT / "lab" not in path.parents]
TOUCHES_FILES = {"glob", "io", "os", "pathlib", "shutil", "tempfile"}


def imports(path: Path) -> Iterator[str]:
    """The full name of everything that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module and not node.level, f"{path}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def wrong(files: list[Path], *forbidden: str) -> list[str]:
    """The imports from forbidden packages or modules."""
    return [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files
        for name in imports(path)
        if any(f"{name}.".startswith(f"{each}.") for each in forbidden)
    ]


def inside(package: str) -> list[Path]:
    return [path for path in FILES if ROOT / package in path.parents]


def parts_except(*allowed: str) -> list[str]:
    """The names of all parts of the library except the allowed ones."""
    names = {path.relative_to(ROOT).parts[0].removesuffix(".py") for path in FILES}
    return [f"block_recurrent.{name}" for name in sorted(names - {*allowed, "__init__"})]


def test_the_core_imports_neither_the_lab_nor_tests_nor_programs():
    assert len(CORE) < len(FILES)
    assert wrong(CORE, "block_recurrent.lab", "tests", "experiments") == []
    assert wrong(FILES, "tests", "experiments") == []


@pytest.mark.parametrize(
    ("package", "allowed"),
    [
        ("system", ("system",)),
        ("parallel", ("parallel", "system", "config")),
        ("data", ("data", "system", "config")),
        ("model", ("model", "parallel", "config")),
        ("baselines", ("baselines", "model", "config")),
        ("training", ("training", "baselines", "model", "data", "parallel", "system", "config")),
    ],
)
def test_a_package_imports_only_those_below_it(package, allowed):
    assert wrong(inside(package), *parts_except(*allowed)) == []


def test_configurations_import_only_the_system_and_gin_files_only_configurations():
    assert wrong([ROOT / "model_config.py"], *parts_except("system")) == []
    assert wrong([ROOT / "config.py"], *parts_except("model_config", "system")) == []
    assert wrong([ROOT / "gin_files.py"], *parts_except("config", "system")) == []


def test_training_touches_no_file():
    assert wrong(inside("training"), *TOUCHES_FILES) == []
    for path in inside("training"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            assert not (isinstance(node, ast.Call) and ast.unparse(node.func) == "open"), path


def test_each_file_of_the_model_imports_only_those_before_it():
    """The order is that of the package's docstring."""
    folder, documentation = ROOT / "model", block_recurrent.model.__doc__ or ""
    modules = {path.stem for path in folder.iterdir() if not path.stem.startswith("__")}
    names = dict.fromkeys(re.findall(r"[a-z_]+", documentation))
    order = {name: index for index, name in enumerate(name for name in names if name in modules)}
    assert order.keys() == modules
    for path in inside("model"):
        own = path.relative_to(folder).parts[0].removesuffix(".py")
        for name in imports(path):
            used = name.removeprefix("block_recurrent.model.").partition(".")[0]
            if own in order and used in order and name != used:
                assert order[used] <= order[own], f"{path.relative_to(ROOT)} imports {name}"


def test_nothing_imports_tensorflow():
    assert wrong(FILES, "tensorflow") == []
    code = "import sys, block_recurrent.gin_files; sys.exit('tensorflow' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_importing_the_library_loads_jax_flax_and_numpy_alone():
    code = (
        "import sys, jax, jax.numpy, numpy, flax.nnx; before = set(sys.modules)\n"
        "import block_recurrent; print(*sorted(set(sys.modules) - before))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in ended.stdout.split()}
    allowed = {"block_recurrent", "jax", "jaxlib", "jaxtyping", "flax", "numpy"}
    assert loaded - allowed - set(sys.stdlib_module_names) == set()


RUNS_WHAT_IT_READS = ("pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "yaml")
EXCHANGED = "parallel/processes.py"  # pickles values for the other processes of a run
CALLS = {"eval", "exec", "compile", "__import__", "execfile", "run_path", "run_module"}


def test_nothing_is_run_that_a_file_brings():
    files = [path for path in FILES if str(path.relative_to(ROOT)) != EXCHANGED]
    assert wrong(files, *RUNS_WHAT_IT_READS) == []
    found = []
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                keywords = {keyword.arg for keyword in node.keywords}
                called = node.func.id if isinstance(node.func, ast.Name) else ""
                if called in CALLS or keywords & {"allow_pickle", "trust_remote_code"}:
                    found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert found == []
