"""Which implementation of attention a model uses, chosen once, when it is built.

An implementation is a file of this folder with a function `build(config, platform)`. A new one
needs that file, and its name among the values of `LayerConfig.attention`.
"""

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import jax
from jax import Array

from block_recurrent.config import LayerConfig
from block_recurrent.model.layers import split_heads

# Files whose name is not that of the implementation, and by platform those of "pallas".
FILES = {"xla": "reference"}
KERNELS = {"gpu": "hopper"}  # elsewhere "tpu"
UNTRIED = "no GPU or TPU has run these kernels yet: 'block-recurrent selftest' checks them"
# What "auto" chooses from by platform, the fastest first. The last is possible for every layer.
AUTO = {"tpu": ("pallas", "xla"), "gpu": ("cudnn", "pallas", "tiled"), "cpu": ("tiled",)}
_target: ContextVar[tuple[str, str | None] | None] = ContextVar("target", default=None)


class AttentionImpossible(ValueError):
    """The platform or the sizes rule out the implementation of attention that was asked for."""


class Attention(NamedTuple):
    """One implementation: arguments and results are those of `reference` and `layers`.

    Attributes:
      attend: queries to all keys, without bias.
      attend_window: tokens to the W tokens before them.
      split_heads: splits projections into heads and scales their vectors to a length.
    """

    attend: Callable[..., Array]
    attend_window: Callable[..., Array]
    split_heads: Callable[..., list[Array]] = split_heads


@contextmanager
def built_for(platform: str, kind: str | None = None) -> Iterator[None]:
    """Models built inside run on `platform`, "cpu", "gpu" or "tpu", whatever this process has.

    `kind` says which GPU or TPU, as `device_kind` does.
    """
    token = _target.set((platform, kind))
    try:
        yield
    finally:
        _target.reset(token)


def target_platform() -> str:
    """Where a model that is built now will run: "cpu", "gpu" or "tpu"."""
    target = _target.get()
    return target[0] if target else jax.default_backend()


def device_kind(unknown: str) -> str:
    """Which device a model built now will run on.

    Of an NVIDIA GPU it is the compute capability, such as "9.0", of others JAX's name, such as
    "TPU v4". It is `unknown` where a device that is not there was not described.
    """
    target = _target.get()
    if target:
        return target[1] or unknown
    device = jax.devices()[0]
    return getattr(device, "compute_capability", device.device_kind)


def choose_attention(config: LayerConfig) -> Attention:
    """The implementation that `config.attention` names, or the best that is possible for "auto".

    Raises:
      AttentionImpossible: the platform or the sizes rule out the implementation that is named.
    """
    return _choose(config)[1]


def attention_name(config: LayerConfig) -> str:
    """The name of the implementation that `choose_attention` chooses."""
    return _choose(config)[0]


def describe_attention(config: LayerConfig) -> str:
    """Which implementation `choose_attention` chooses, and why not a better one."""
    name, _, refused = _choose(config)
    untried = [UNTRIED] if name == "pallas" else []
    return "; ".join([name, *(f"{other} {why}" for other, why in refused.items()), *untried])


def _choose(config: LayerConfig) -> tuple[str, Attention, dict[str, str]]:
    """Name and implementation, and of those that "auto" would rather choose, why not."""
    platform, name = target_platform(), config.attention
    names = AUTO.get(platform, ("xla",)) if name == "auto" else (name,)
    refused, reason = {}, None
    for name in names:
        file = KERNELS.get(platform, "tpu") if name == "pallas" else FILES.get(name, name)
        module = importlib.import_module(f"{__package__}.{file}")
        try:
            return name, module.build(config, platform), refused
        except AttentionImpossible as error:
            refused[name], reason = str(error), error
    raise AttentionImpossible(
        f"model.attention {name!r} {reason}; set model.attention = 'auto' or 'xla'"
    ) from reason
