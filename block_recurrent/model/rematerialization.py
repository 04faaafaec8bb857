"""What the backward pass computes again in place of keeping it (`ModelConfig.remat`)."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jax.ad_checkpoint import checkpoint_name

Tree = TypeVar("Tree")
_KEPT = "kept"


def keep(tree: Tree) -> Tree:
    """Arrays that are kept where `rematerialize` would compute them again."""
    return jax.tree.map(lambda x: checkpoint_name(x, _KEPT), tree)


def rematerialize(
    function: Callable, remat: str, *, in_scan: bool = False, keeps: bool = True
) -> Callable:
    """A layer's `function`, of which the backward pass computes again what `remat` says.

    `remat` is a value of `ModelConfig.remat`. Inside a compiled loop (`in_scan`) XLA does not merge
    the two computations of a layer; elsewhere that has to be prevented. `keeps` is whether what
    `keep` names is kept.
    """
    if remat == "none":
        return function
    policies = jax.checkpoint_policies
    policy = policies.save_only_these_names(_KEPT) if keeps else policies.nothing_saveable
    if remat == "dots":
        dots = policies.dots_with_no_batch_dims_saveable
        policy = policies.save_from_both_policies(policy, dots)
    return jax.checkpoint(function, policy=policy, prevent_cse=not in_scan)


def scan_blocks(
    step: Callable[[Any, Any], tuple[Any, Any]], carry: Any, inputs: Any, *, recompute: bool
) -> tuple[Any, Any]:
    """A `jax.lax.scan` over blocks, arrays [K, B, ...].

    With `recompute` the backward pass computes each step again, and only carries and results are
    kept. A layer that is computed again does not run the scan again, because both are there.
    """
    if not recompute:
        return jax.lax.scan(step, carry, inputs)
    recomputed = jax.checkpoint(step, prevent_cse=False)

    def kept_step(carry: Any, inputs: Any) -> tuple[Any, Any]:
        carry, result = recomputed(keep(carry), inputs)
        return carry, keep(result)

    return jax.lax.scan(kept_step, carry, inputs)
