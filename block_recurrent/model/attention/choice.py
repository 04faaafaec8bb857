"""Which implementation of attention a model uses, chosen once, when it is built."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import jax
from jax import Array

from block_recurrent.config import LayerConfig
from block_recurrent.model.attention import reference, tiled

_platform: ContextVar[str | None] = ContextVar("platform", default=None)


class Attention(NamedTuple):
    """One implementation: arguments and results are those of the reference.

    Attributes:
      attend: queries to all keys, without bias.
      attend_window: tokens to the W tokens before them.
    """

    attend: Callable[..., Array]
    attend_window: Callable[..., Array]


IMPLEMENTATIONS = {
    "xla": Attention(reference.attend, reference.attend_window),
    "tiled": Attention(tiled.attend, tiled.attend_window),
}


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
    """The implementation that `config.attention` names; "auto" is the fastest that is possible.

    Raises:
      ValueError: the platform or the sizes rule out the implementation that is named.
    """
    if config.attention == "auto":
        return IMPLEMENTATIONS["tiled" if target_platform() == "cpu" else "xla"]
    return IMPLEMENTATIONS[config.attention]
