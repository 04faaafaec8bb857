"""The loss: negative log-likelihood, summed and counted over the targets that are not padding."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

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
