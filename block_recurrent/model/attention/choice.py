"""Which implementation of attention a model uses, chosen once, when it is built."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import jax
from jax import Array

from block_recurrent.config import LayerConfig
from block_recurrent.model.attention import cudnn, reference, tiled
from block_recurrent.model.attention.tpu import LANES, heads, kernels
from block_recurrent.model.layers import split_heads

_platform: ContextVar[str | None] = ContextVar("platform", default=None)


class AttentionImpossible(ValueError):
    """The platform or the sizes rule out the implementation of attention that was asked for."""


class Attention(NamedTuple):
    """One implementation: arguments and results are those of `reference` and `heads`.

    Attributes:
      attend: queries to all keys, without bias.
      attend_window: tokens to the W tokens before them.
      split_heads: cuts projections into heads and gives their vectors a length.
    """

    attend: Callable[..., Array]
    attend_window: Callable[..., Array]
    split_heads: Callable[..., list[Array]] = split_heads


IMPLEMENTATIONS = {
    "xla": Attention(reference.attend, reference.attend_window),
    "tiled": Attention(tiled.attend, tiled.attend_window),
    "pallas": Attention(kernels.attend, kernels.attend_window, heads.split_heads),
    "cudnn": Attention(cudnn.attend, cudnn.attend_window),
}
TILED_IN_TURN = Attention(tiled.attend, functools.partial(tiled.attend_window, in_turn=True))
INTERPRETED = Attention(
    functools.partial(kernels.attend, interpret=True),
    functools.partial(kernels.attend_window, interpret=True),
    functools.partial(heads.split_heads, interpret=True),
)


@contextmanager
def built_for(platform: str) -> Iterator[None]:
    """Models built inside run on `platform`, "cpu", "gpu" or "tpu", whatever this process has."""
    token = _platform.set(platform)
    try:
        yield
    finally:
        _platform.reset(token)


def target_platform() -> str:
    """Where a model that is built now will run: "cpu", "gpu" or "tpu"."""
    return _platform.get() or jax.default_backend()


def choose_attention(config: LayerConfig) -> Attention:
    """The implementation that `config.attention` names; "auto" is the best that is possible.

    Raises:
      AttentionImpossible: the platform or the sizes rule out the implementation that is named.
    """
    platform = target_platform()
    name = _best(config, platform) if config.attention == "auto" else config.attention
    reason = _obstacle(name, config, platform)
    if reason is not None:
        raise AttentionImpossible(f"model.attention {name!r} {reason}; set it to 'auto' or 'xla'")
    if name == "pallas" and platform == "cpu":
        return INTERPRETED
    if name == "tiled" and platform != "cpu":
        return TILED_IN_TURN
    return IMPLEMENTATIONS[name]


def _best(config: LayerConfig, platform: str) -> str:
    """What "auto" means; "cudnn" has to be asked for."""
    if platform != "tpu":
        return "tiled"
    return "pallas" if _obstacle("pallas", config, platform) is None else "xla"


def _obstacle(name: str, config: LayerConfig, platform: str) -> str | None:
    """Why an implementation cannot be had, as the end of a sentence; None if it can."""
    if name == "pallas":
        return _no_pallas(config, platform)
    return _no_cudnn(config, platform) if name == "cudnn" else None


def _no_pallas(config: LayerConfig, platform: str) -> str | None:
    if platform == "gpu":
        return "is for TPUs (a CPU interprets it), but this model is built for a GPU"
    if config.window % LANES or config.window > kernels.MOST_WINDOW:
        return (
            f"needs a window that is a multiple of {LANES} and at most "
            f"{kernels.MOST_WINDOW}, not {config.window}"
        )
    if config.head_size % kernels.LEAST_HEAD:
        return (
            f"needs a head_size that is a multiple of {kernels.LEAST_HEAD}, not {config.head_size}"
        )
    return None


def _no_cudnn(config: LayerConfig, platform: str) -> str | None:
    if platform != "gpu":
        return f"needs a GPU, but this model is built for a {platform.upper()}"
    if config.dtype != "bfloat16":
        return f"needs dtype 'bfloat16', not {config.dtype!r}"
    if config.dropout > 0:
        return f"has no dropout, but dropout is {config.dropout}"
    if config.window % 2:
        return f"needs an even window, not {config.window}"
    if config.head_size % cudnn.LEAST_HEAD or config.head_size > cudnn.MOST_HEAD:
        return (
            f"needs a head_size that is a multiple of {cudnn.LEAST_HEAD} and at most "
            f"{cudnn.MOST_HEAD}, not {config.head_size}"
        )
    return None
