"""Attention for TPUs: fused kernels, the bias and its gradient included."""

import functools

from block_recurrent.config import LayerConfig
from block_recurrent.model.attention.choice import Attention, AttentionImpossible
from block_recurrent.model.attention.tpu.heads import split_heads
from block_recurrent.model.attention.tpu.kernels import attend, attend_window
from block_recurrent.model.attention.tpu.plan import LANES

MOST_WINDOW = 2048  # larger ones do not fit the fast memory
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
      AttentionImpossible: for another platform, or a window or head size that does not suit.
    """
    if platform not in ("tpu", "cpu"):
        reason = f"is for TPUs and Hopper GPUs, but this model is built for {platform!r}"
    elif config.window % LANES or config.window > MOST_WINDOW:
        reason = (
            f"needs a window that is a multiple of {LANES} and at most {MOST_WINDOW}, "
            f"not {config.window}"
        )
    elif config.head_size % LEAST_HEAD:
        reason = f"needs a head_size that is a multiple of {LEAST_HEAD}, not {config.head_size}"
    else:
        return INTERPRETED if platform == "cpu" else COMPILED
    raise AttentionImpossible(reason)
