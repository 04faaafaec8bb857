"""What README and documentation show works as shown; what generates text has smaller sizes."""

import re
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import block_recurrent as br

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
OTHERS = [ROOT / "CONTRIBUTING.md", ROOT / "gin/README.md"]
OTHERS += sorted((ROOT / "experiments").glob("*/README.md"))
TUTORIAL = ROOT / "docs/tutorial.md"  # has a test of its own
SMALLER = {  # equal sizes, so that fewer shapes are compiled
    "num_layers=12": "num_layers=3",
    "model_size=1024": "model_size=16",
    "num_heads=8": "num_heads=2",
    "head_size=128": "head_size=8",
    "mlp_size=4096": "mlp_size=16",
    "window=512": "window=64",
    "num_states=512": "num_states=16",
    "memory=512": "memory=16",
    "max_new_tokens=200": "max_new_tokens=3",
}


def blocks_of(page: Path) -> str:
    """The Python blocks of a page, one after the other."""
    text = page.read_text(encoding="utf-8")
    return "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))


def run(page: Path) -> dict:
    """Everything that a page's Python blocks define."""
    source = blocks_of(page)
    for shown, smaller in SMALLER.items():
        source = source.replace(shown, smaller)
    defined = {}
    exec(source, defined)
    return defined


def trace(page: Path) -> dict:
    """What a page's Python blocks define, traced at the sizes shown: shapes without values."""
    defined = {}
    jax.eval_shape(lambda: exec(blocks_of(page), defined))
    return defined


@pytest.fixture(scope="module")
def names():
    """What the page about layers defines."""
    return trace(ROOT / "docs/layers.md")


def test_every_page_with_code_is_run_here():
    """All but docs/runs.md and docs/scoring.md, which the tests in tests/runs run."""
    with_code = [path.name for path in PAGES if blocks_of(path) and path != TUTORIAL]
    others = ["baselines.md", "generation.md", "layers.md", "runs.md", "scoring.md"]
    assert with_code == ["README.md", *others]
    together = "".join(blocks_of(path) for path in PAGES)
    assert [shown for shown in SMALLER if shown not in together] == []


def test_the_readmes_shapes_are_those_in_the_comments():
    defined = trace(ROOT / "README.md")
    assert defined["y"].shape == (2, 4096, 1024)
    assert isinstance(defined["state"], br.LayerState)


def test_shapes_of_layers_are_those_in_the_comments(names):
    assert names["logits"].shape == (2, 4096, 256)
    assert names["tags"].shape == (2, 96, 5)


def test_shapes_of_generation_are_those_in_the_comments():
    defined = run(ROOT / "docs/generation.md")
    assert defined["new"].shape == defined["more"].shape == (2, 3)
    assert defined["logits"].shape == (2, 256)
    assert isinstance(defined["point"], br.GenerationState)


def test_shapes_of_baselines_are_those_in_the_comments():
    defined = run(ROOT / "docs/baselines.md")
    assert defined["logits"].shape == (2, 100, 256) and defined["new"].shape == (2, 3)


@pytest.fixture(scope="module")
def tagger(names):
    """The Flax model of the page about layers."""
    return jax.jit(lambda: names["Tagger"](nnx.Rngs(0)))()


@pytest.fixture(scope="module")
def inputs(tagger):
    """Tokens, a state, and that a document begins in the first of two rows."""
    tokens = jax.random.randint(jax.random.key(1), (2, 96), 0, 100)
    return tokens, tagger.initial_state(2), jnp.array([True, False])


def without_gradient(apply, model):
    """The parameters that have no part in a loss."""
    gradient = jax.jit(jax.grad(lambda model: jnp.square(apply(model)[0]).sum()))(model)
    return [path for path, leaf in jax.tree.leaves_with_path(gradient) if not jnp.any(leaf)]


def test_all_of_a_flax_model_trains_the_initial_state_too(tagger, inputs):
    assert without_gradient(lambda tagger: tagger(*inputs), tagger) == []


def test_all_of_a_linen_model_trains_through_the_bridge(names, tagger, inputs):
    linen = names["LinenTagger"](tagger.recurrent.config)
    variables = jax.jit(linen.init)(jax.random.key(0), *inputs)
    assert without_gradient(lambda variables: linen.apply(variables, *inputs), variables) == []


def test_every_public_name_is_mentioned():
    text = "".join(path.read_text(encoding="utf-8") for path in PAGES)
    public = {name: value for name, value in vars(br).items() if name[0] != "_"}
    own = [name for name, value in public.items() if not isinstance(value, types.ModuleType)]
    assert [name for name in own if name not in text] == []


@pytest.mark.parametrize("path", PAGES + OTHERS, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_files_named_exist(path):
    text = path.read_text(encoding="utf-8")
    named = re.findall(r"\b(?:experiments|gin|tests|docs|block_recurrent)/[\w/]*(?:\.\w+)?", text)
    assert [name for name in named if not (ROOT / name).exists()] == []
    links = re.findall(r"\]\(([^)#:]+)\)", text)
    assert [link for link in links if not (path.parent / link).exists()] == []


def test_the_make_targets_named_exist():
    targets = re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    text = "".join(path.read_text(encoding="utf-8") for path in PAGES + OTHERS)
    named = re.findall(r"(?:^    |`)make ([a-z][\w-]*)", text, re.MULTILINE)
    assert set(named) <= set(targets)
