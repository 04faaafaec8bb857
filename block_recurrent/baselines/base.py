"""What all baselines share."""

from typing import Any, ClassVar

from flax import nnx

from block_recurrent.model import checks
from block_recurrent.model.language_model import BaseLanguageModel

LONGEST_CALL = 512


class BaselineModel(BaseLanguageModel):
    """A language model with the protocol `Baseline`; `kind` is the class of its configuration."""

    kind: ClassVar[type]

    def __init__(self, config: Any, *, rngs: nnx.Rngs):
        checks.check_config(config, self.kind, rngs)
        self.config = config

    def next_length(self, state: Any, available: int) -> int:
        """The largest power of two that is at most `available` and at most 512."""
        del state
        return min(LONGEST_CALL, 1 << (available.bit_length() - 1))
