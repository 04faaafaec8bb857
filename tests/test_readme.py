"""What the README shows works as shown, with smaller sizes."""

import re
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

README = Path(__file__).parents[1] / "README.md"
SMALLER = {
    "num_layers=12": "num_layers=4",
    "model_size=1024": "model_size=16",
    "num_heads=8": "num_heads=2",
    "head_size=128": "head_size=8",
    "mlp_size=4096": "mlp_size=32",
    "window=512": "window=64",
    "num_states=512": "num_states=4",
    "(2, 4096)": "(2, 128)",
    "max_new_tokens=200": "max_new_tokens=3",
}


@pytest.fixture(scope="module")
def names():
    """Everything the README's Python blocks define, run one after the other."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    source = "\n".join(blocks)
    for shown, smaller in SMALLER.items():
        assert shown in source
        source = source.replace(shown, smaller)
    defined = {}
    exec(source, defined)
    return defined


def test_shapes_are_those_in_the_comments(names):
    assert names["logits"].shape == (2, 128, 256)
    assert names["more"].shape == (2, 3)
    assert names["tags"].shape == (2, 96, 5)


@pytest.fixture(scope="module")
def inputs(names):
    """Tokens, a state, and that a document begins in the first of two rows."""
    tokens = jax.random.randint(jax.random.key(1), (2, 96), 0, 100)
    return tokens, names["tagger_state"], jnp.array([True, False])


def without_gradient(apply, model):
    """The parameters that have no part in a loss."""
    gradient = jax.jit(jax.grad(lambda model: jnp.square(apply(model)[0]).sum()))(model)
    return [path for path, leaf in jax.tree.leaves_with_path(gradient) if not jnp.any(leaf)]


def test_all_of_a_flax_model_trains_the_initial_state_too(names, inputs):
    assert without_gradient(lambda tagger: tagger(*inputs), names["tagger"]) == []


def test_all_of_a_linen_model_trains_through_the_bridge(names, inputs):
    tagger = names["LinenTagger"](names["tagger"].recurrent.config)
    variables = tagger.init(jax.random.key(0), *inputs)
    assert without_gradient(lambda variables: tagger.apply(variables, *inputs), variables) == []


def test_every_public_name_is_mentioned(names):
    text = README.read_text(encoding="utf-8")
    public = {name: value for name, value in vars(names["br"]).items() if name[0] != "_"}
    own = [name for name, value in public.items() if not isinstance(value, types.ModuleType)]
    assert [name for name in own if name not in text] == []


def test_the_files_named_exist():
    text = README.read_text(encoding="utf-8")
    named = re.findall(r"\b(?:experiments|gin|tests|block_recurrent)/[\w/]*(?:\.\w+)?", text)
    missing = [name for name in named if not (README.parent / name).exists()]
    assert missing == []
