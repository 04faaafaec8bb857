"""Attention for TPUs: fused kernels, the bias and its gradient included."""

import functools

from block_recurrent.config import LayerConfig
from block_recurrent.model.attention.choice import Attention, AttentionImpossible, device_kind
from block_recurrent.model.attention.tpu.heads import split_heads
from block_recurrent.model.attention.tpu.kernels import attend, attend_window
from block_recurrent.model.attention.tpu.plan import LANES

MOST_WINDOW = 2048  # larger ones do not fit the fast memory
# Generations with 16 MB of it, and what they multiply: the most of a window, and of states.
SMALL_CHIPS = {
    "TPU v2": {"float32": 512},
    "TPU v3": {"float32": 512},
    "TPU v4": {"float32": 512, "bfloat16": 1024},
}
LEAST_HEAD = 8  # head sizes are multiples of it
COMPILED = Attention(attend, attend_window, split_heads)
INTERPRETED = Attention(
    functools.partial(attend, interpret=True),
    functools.partial(attend_window, interpret=True),
    functools.partial(split_heads, interpret=True),
)


def build(config: LayerConfig, platform: str) -> Attention:
    """This implementation; a CPU interprets the kernels, which is for tests.

    Raises:
      AttentionImpossible: for another platform, or sizes that do not suit.
    """
    kind = device_kind(unknown="TPU")
    small = SMALL_CHIPS.get(kind[:6])
    if platform not in ("tpu", "cpu"):
        reason = f"is for TPUs and Hopper GPUs, but this model is built for {platform!r}"
    elif config.window % LANES or config.window > MOST_WINDOW:
        reason = (
            f"needs a window that is a multiple of {LANES} and at most {MOST_WINDOW}, "
            f"not {config.window}"
        )
    elif config.head_size % LEAST_HEAD:
        reason = f"needs a head_size that is a multiple of {LEAST_HEAD}, not {config.head_size}"
    elif small and max(config.window, config.num_states) > small.get(config.dtype, 0):
        possible = " or ".join(f"{most} in {dtype}" for dtype, most in small.items())
        reason = (
            f"on a {kind} needs a window and num_states of at most {possible}, "
            f"not {config.window} and {config.num_states} in {config.dtype}"
        )
    else:
        return INTERPRETED if platform == "cpu" else COMPILED
    raise AttentionImpossible(reason)
