"""The loss: negative log-likelihood, summed and counted over the targets that are not padding."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from block_recurrent.model.language_model import LanguageModel

Targets = Array | np.ndarray


def cross_entropy(logits: Array, targets: Targets, mask: Targets) -> tuple[Array, Array]:
    """Negative log-likelihood of the targets in nats.

    Args:
      logits: [B, N, V] float32.
      targets: [B, N] integers.
      mask: [B, N] bool, True where a target counts.

    Returns:
      The sum over the targets that count, float32, and their number, int32.
    """
    # A comparison in place of a gather, whose gradient would be a scatter.
    chosen = targets[..., None] == jnp.arange(logits.shape[-1], dtype=targets.dtype)
    of_target = jnp.sum(jnp.where(chosen, logits, 0.0), axis=-1)
    nats = jax.nn.logsumexp(logits, axis=-1) - of_target
    return jnp.sum(jnp.where(mask, nats, 0.0)), jnp.sum(mask, dtype=jnp.int32)


def model_cross_entropy(
    model: LanguageModel, features: Array, targets: Targets, mask: Targets
) -> tuple[Array, Array]:
    """`cross_entropy` of a model's logits, from the features that they are computed from.

    With `logits_by_window` the logits exist for one window of the segment at a time, in the forward
    and in the backward pass.

    Args:
      model: the language model.
      features: [B, N, E].
      targets: [B, N] integers.
      mask: [B, N] bool.
    """
    if not model.config.logits_by_window:
        return cross_entropy(model.logits(features), targets, mask)

    @partial(jax.checkpoint, prevent_cse=False)
    def of_window(features: Array, targets: Array, mask: Array) -> tuple[Array, Array]:
        return cross_entropy(model.logits(features), targets, mask)

    def add(
        sums: tuple[Array, Array], window: tuple[Array, ...]
    ) -> tuple[tuple[Array, Array], None]:
        return jax.tree.map(jnp.add, sums, of_window(*window)), None

    windows = tuple(_windows(x, model.config.window) for x in (features, targets, mask))
    return jax.lax.scan(add, (jnp.float32(0), jnp.int32(0)), windows)[0]


def _windows(x: Targets, window: int) -> Array:
    """[B, N, ...] -> [K, B, W, ...]."""
    split = jnp.reshape(x, (x.shape[0], -1, window, *x.shape[2:]))
    return jnp.swapaxes(split, 0, 1)
