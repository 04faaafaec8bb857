"""Packaging of block_recurrent; tool settings are in pyproject.toml."""

import pathlib
import re
import shutil

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(
    r'^__version__ = "(.+)"$', (ROOT / "block_recurrent/__init__.py").read_text(), re.MULTILINE
)
assert VERSION is not None


class BuildWithGinFiles(build_py):
    """Copies the experiment files of gin/ into the package, unless the installation is editable."""

    def run(self) -> None:
        """Builds the package."""
        super().run()
        if not self.editable_mode:
            target = pathlib.Path(self.build_lib, "block_recurrent", "gin")
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(ROOT / "gin", target)


# Every lower bound is a version that the tests were run with.
DATA = [
    "array_record>=0.7.1",
    "datasketch>=2.0.0",
    "pyarrow>=17.0",
    "sentencepiece>=0.2.0",
    "tiktoken>=0.13",
    "tokenizers>=0.20.3",
    "zstandard>=0.22",
]
HUGGINGFACE = ["datasets>=5.2", "huggingface_hub>=2.4"]
PLOTS = ["matplotlib>=3.11"]
TENSORBOARD = ["tensorboardX>=2.6.2"]
WANDB = ["wandb>=0.31.0"]
SAFETENSORS = ["safetensors>=0.8.0"]
DOCS = ["sphinx>=9.0", "furo>=2025.12", "myst-parser>=5.0"]

setup(
    name="block_recurrent",
    version=VERSION[1],
    description="The Block-Recurrent Transformer in JAX and Flax",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="block_recurrent maintainers",
    license="Apache-2.0",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    python_requires=">=3.11",
    packages=find_packages(include=["block_recurrent*"]),
    package_data={"block_recurrent": ["py.typed"]},
    cmdclass={"build_py": BuildWithGinFiles},
    entry_points={"console_scripts": ["block-recurrent = block_recurrent.command_line.main:main"]},
    install_requires=[
        "jax>=0.10.2",
        "flax>=0.12.8",
        "jaxtyping>=0.3.2",
        "optax>=0.2.8",
        # Checkpoints use Orbax's v1 interface, which is still called experimental.
        "orbax-checkpoint>=0.12.8,<0.13",
        "tensorflow-datasets>=4.9.10",
        "gin-config>=0.5.0",
        "numpy>=2.0",
    ],
    extras_require={
        "data": DATA,
        "huggingface": HUGGINGFACE,
        "plots": PLOTS,
        "tensorboard": TENSORBOARD,
        "wandb": WANDB,
        "safetensors": SAFETENSORS,
        "cuda": ["jax[cuda13]>=0.10.2"],
        "tpu": ["jax[tpu]>=0.10.2"],
        "docs": DOCS,
        "dev": [
            *DATA,
            *HUGGINGFACE,
            *PLOTS,
            *TENSORBOARD,
            *WANDB,
            *SAFETENSORS,
            *DOCS,
            "filelock>=3.12",
            "hypothesis>=6.170",
            "moto[s3,server]>=5.2",
            "pyright[nodejs]>=1.1.414",
            "pytest>=9.1",
            "pytest-xdist>=3.8",
            "ruff>=0.17",
            "setuptools>=70.1",
        ],
    },
)
