"""The loss: negative log-likelihood, summed and counted over the targets that are not padding."""

from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from block_recurrent.config import ModelConfig
from block_recurrent.model.language_model import LanguageModel, tied_logits
from block_recurrent.model.protocol import Model

Targets = Array | np.ndarray


def target_nats(logits: Array, targets: Targets) -> Array:
    """Negative log-likelihood of every target: logits [B, N, V], [B, N] integers -> [B, N] nats."""
    # A comparison instead of a gather, because the gradient of a gather is a scatter.
    ids = jnp.arange(logits.shape[-1], dtype=targets.dtype)
    chosen = targets[..., None] == jax.lax.broadcast_to_rank(ids, logits.ndim)
    of_target = jnp.sum(jnp.where(chosen, logits, 0.0), axis=-1)
    return jax.nn.logsumexp(logits, axis=-1) - of_target


def cross_entropy(logits: Array, targets: Targets, mask: Targets) -> tuple[Array, Array]:
    """Negative log-likelihood of the targets in nats.

    Args:
      logits: [B, N, V] float32.
      targets: [B, N] integers.
      mask: [B, N] bool, True where a target counts.

    Returns:
      The sum over the targets that count, float32, and their number, int32.
    """
    nats = target_nats(logits, targets)
    return jnp.sum(jnp.where(mask, nats, 0.0)), jnp.sum(mask, dtype=jnp.int32)


def model_cross_entropy(
    model: Model, features: Array, targets: Targets, mask: Targets
) -> tuple[Array, Array]:
    """`cross_entropy` of a model's logits, from its features.

    With `logits_by_window` the logits exist only for one window of the segment at a time.

    Args:
      model: the language model.
      features: [B, N, E].
      targets: [B, N] integers.
      mask: [B, N] bool.
    """
    config = model.config
    if not (isinstance(config, ModelConfig) and config.logits_by_window):
        return cross_entropy(model.logits(features), targets, mask)
    windows = [_windows(x, config.window) for x in (features, targets, mask)]
    nats = nats_by_window(cast(LanguageModel, model).embedding[...], *windows)
    return nats, jnp.sum(mask, dtype=jnp.int32)


def _windows(x: Targets, window: int) -> Array:
    """[B, N, ...] -> [K, B, W, ...]."""
    split = jnp.reshape(x, (x.shape[0], -1, window, *x.shape[2:]))
    return jnp.swapaxes(split, 0, 1)


@jax.custom_vjp
def nats_by_window(embedding: Array, features: Array, targets: Array, mask: Array) -> Array:
    """Summed loss, computed one window after the other.

    The forward pass also computes the gradients, while it has the logits of a window. The backward
    pass only scales them. So there are three products of the size of the logits, and no logits are
    kept or computed again.

    Args:
      embedding: [V, E] float32.
      features: [K, B, W, E].
      targets: [K, B, W] integers.
      mask: [K, B, W] bool.
    """
    rounded = embedding.astype(features.dtype)

    def add(nats: Array, window: tuple[Array, Array, Array]) -> tuple[Array, None]:
        features, targets, mask = window
        return nats + cross_entropy(tied_logits(features, rounded), targets, mask)[0], None

    return jax.lax.scan(add, jnp.float32(0), (features, targets, mask))[0]


Gradients = tuple[Array, Array]  # of the embedding, float32, and of the features


def _with_gradients(
    embedding: Array, features: Array, targets: Array, mask: Array
) -> tuple[Array, Gradients]:
    rounded = embedding.astype(features.dtype)

    def add(sums: Gradients, window: tuple[Array, Array, Array]) -> tuple[Gradients, Array]:
        features, targets, mask = window
        loss = jax.value_and_grad(cross_entropy, has_aux=True)
        (nats, _), of_logits = loss(tied_logits(features, rounded), targets, mask)
        of_logits = of_logits.astype(features.dtype)
        of_features = jnp.einsum("bnv,ve->bne", of_logits, rounded)
        of_embedding = jnp.einsum(
            "bnv,bne->ve", of_logits, features, preferred_element_type=jnp.float32
        )
        return (sums[0] + nats, sums[1] + of_embedding), of_features

    zeros = jnp.float32(0), jnp.zeros(embedding.shape, jnp.float32)
    (nats, of_embedding), of_features = jax.lax.scan(add, zeros, (features, targets, mask))
    return nats, (of_embedding, of_features)


def _scale(gradients: Gradients, cotangent: Array) -> tuple[Array, Array, None, None]:
    of_embedding, of_features = gradients
    scaled = cotangent * of_features.astype(jnp.float32)
    return cotangent * of_embedding, scaled.astype(of_features.dtype), None, None


nats_by_window.defvjp(_with_gradients, _scale)
