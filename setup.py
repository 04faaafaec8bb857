"""Packaging of block_recurrent; tool settings are in pyproject.toml."""

import pathlib
import re

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(
    r'^__version__ = "(.+)"$', (ROOT / "block_recurrent/__init__.py").read_text(), re.MULTILINE
)
assert VERSION is not None

PLOTS = ["matplotlib>=3.11"]
DOCS = ["sphinx>=9.0", "furo>=2025.12", "myst-parser>=5.0"]
TENSORBOARD = ["tensorboardX>=2.6.5"]

setup(
    name="block_recurrent",
    version=VERSION[1],
    description="The Block-Recurrent Transformer in JAX and Flax",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["block_recurrent*"]),
    package_data={"block_recurrent": ["py.typed"]},
    install_requires=[
        "jax>=0.10.2",
        "flax>=0.12.8",
        "optax>=0.2.8",
        # Checkpoints use Orbax's v1 interface, which is still called experimental.
        "orbax-checkpoint>=0.12.8,<0.13",
        "gin-config>=0.5.0",
        "numpy>=2.4",
        "scipy>=1.17",
        "tensorflow-datasets>=4.9.10",
        "array_record>=0.8.6",
        "pyarrow>=26",
        "sentencepiece>=0.2.3",
        "tensorstore>=0.1.86",
        "xxhash>=4.1",
        "zstandard>=0.25",
    ],
    extras_require={
        "cuda": ["jax[cuda13]>=0.10.2"],
        "tpu": ["jax[tpu]>=0.10.2"],
        "plots": PLOTS,
        "tensorboard": TENSORBOARD,
        "docs": DOCS,
        "dev": [
            *DOCS,
            *PLOTS,
            *TENSORBOARD,
            "hypothesis>=6.170",
            "moto[s3,server]>=5.2",
            "pyright[nodejs]>=1.1.414",
            "pytest>=9.1",
            "pytest-xdist>=3.8",
            "ruff>=0.17",
        ],
    },
)
