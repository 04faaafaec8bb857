"""What the package declares is what it imports, and importing it is light."""

import ast
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
# What is imported, where its name is not that of the distribution.
DISTRIBUTIONS = {"orbax": "orbax-checkpoint", "gin": "gin-config", "jaxlib": "jax"}
HEAVY = (
    "orbax",
    "tensorstore",
    "tensorflow_datasets",
    "tensorflow",
    "sentencepiece",
    "gin",
    "matplotlib",
)
HEAVY += ("array_record", "pyarrow", "scipy.stats")
# Drives other people's packages in processes of their own; who compares installs them there.
PEERS = ROOT / "experiments/peers"


def imported(folder: str) -> set[str]:
    """The packages that the files of a folder import, other than Python's and our own."""
    found: set[str] = set()
    for path in (ROOT / folder).rglob("*.py"):
        if path.parent == PEERS:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.split(".")[0])
            elif isinstance(node, ast.Call) and ast.unparse(node.func) == "require":
                found.add(ast.literal_eval(node.args[0]).split(".")[0])
    return found - set(sys.stdlib_module_names) - {"block_recurrent", "experiments"}


def plain(requirement: str) -> str:
    """The name in a requirement, as package indexes compare names."""
    return re.sub("[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()


def declared() -> dict[str, set[str]]:
    """The distributions that setup.py requires, by extra; those of all installations by ""."""
    given = {}
    source = (ROOT / "setup.py").read_text(encoding="utf-8")
    source = source.replace("from setuptools import find_packages, setup", "")
    names = {"__file__": str(ROOT / "setup.py"), "find_packages": lambda **_: []}
    exec(source, names | {"setup": given.update})
    requirements = {"": given["install_requires"], **given["extras_require"]}
    return {extra: set(map(plain, listed)) for extra, listed in requirements.items()}


def undeclared(packages: set[str], known: set[str]) -> list[str]:
    """The packages that no requirement of `known` brings."""
    return sorted(name for name in packages if plain(DISTRIBUTIONS.get(name, name)) not in known)


def test_every_imported_package_is_declared():
    extras = declared()
    for folder in ("block_recurrent", "experiments"):
        known = extras[""] | extras["plots"] | extras["tensorboard"]
        assert undeclared(imported(folder), known) == []


def test_every_required_package_is_imported():
    wanted = {plain(DISTRIBUTIONS.get(name, name)) for name in imported("block_recurrent")}
    assert declared()[""] - wanted == set()


def test_importing_the_library_is_light():
    code = f"import sys, block_recurrent; print([n for n in {HEAVY!r} if n in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert found.stdout.strip() == "[]", found.stdout + found.stderr
