"""The closed form of the operations that a step needs."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from block_recurrent.gin_files import load
from block_recurrent.measure.flops import forward_flops_per_token, step_flops
from block_recurrent.training.build import abstract_model
from block_recurrent.training.rows import slide, table_rows

PAPER = load(["sizes/paper.gin", "rows/rec_fixed_skip.gin"], ["model.vocab_size=32000"])


def test_it_is_what_xla_counts_but_for_the_hidden_half_of_the_attention_tiles():
    model = dataclasses.replace(slide(PAPER).config.model, scan_layers=False, num_layers=2)
    tokens = jnp.zeros((1, model.window), jnp.int32)
    built = abstract_model(model)
    state = jax.eval_shape(lambda model: model.initial_state(1), built)
    lowered = jax.jit(lambda *arguments: built.__class__.__call__(*arguments)[0]).lower(
        built, jax.ShapeDtypeStruct(tokens.shape, tokens.dtype), state
    )
    cost = lowered.cost_analysis()
    hidden = 2 * model.num_layers * 2 * model.window * model.num_heads * model.head_size
    counted = cost["flops"] / tokens.size - hidden
    assert forward_flops_per_token(model) == pytest.approx(counted, rel=0.03)


def test_ratios_of_the_papers_rows():
    per_token = {
        row.paper: step_flops(row.config)
        / row.config.data.batch_size
        / row.config.data.segment_length
        for row in table_rows(PAPER)
    }
    of_slide = {name: flops / per_token["Slide:13L"] for name, flops in per_token.items()}
    assert of_slide["XL:512"] == of_slide["Slide:12L"] < of_slide["Rec:fixed:skip"] < 1
    assert 1 < of_slide["Rec:lstm:dual"] < of_slide["XL:2048"] < of_slide["Feedback:fixed:skip"]


def test_operations_grow_with_the_tokens():
    twice = dataclasses.replace(PAPER, data=dataclasses.replace(PAPER.data, batch_size=64))
    assert step_flops(twice) == 2 * step_flops(PAPER)
