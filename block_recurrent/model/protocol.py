"""What training, evaluation, runs and the lab need of a language model, ours or another."""

from typing import Any, Protocol

from block_recurrent.config import AnyModelConfig
from block_recurrent.model.array_types import Activations, Key, Lengths, Logits, Starts, Tokens


class CarriedState(Protocol):
    """What a model carries from one segment to the next.

    A NamedTuple of arrays, which may be nested. Every array has the batch on its axis 1, so that
    rows can be reset, sharded and saved whatever the model is.
    """

    @property
    def batch_size(self) -> int:
        """B."""
        ...

    @property
    def axes(self) -> Any:
        """The same NamedTuple with the letters of every array's axes, such as "LBWHD".

        B is the batch, and H is an axis of heads, which may be sharded.
        """
        ...


class Model(Protocol):
    """A language model: a pytree of parameters, and a configuration.

    Memory goes in and comes out.
    """

    @property
    def config(self) -> AnyModelConfig:
        """What it was built from."""
        ...

    def initial_state(self, batch_size: int) -> Any:
        """The `CarriedState` at a document's start, of B rows."""
        ...

    def __call__(
        self,
        tokens: Tokens,
        state: Any,
        *,
        start_of_document: Starts | None = None,
        dropout_key: Key | None = None,
        lengths: Lengths | None = None,
    ) -> tuple[Logits, Any]:
        """Logits and the next state; arguments and results are those of `LanguageModel`.

        Dropout is on exactly when a key is given.
        """
        ...

    def features(
        self,
        tokens: Tokens,
        state: Any,
        *,
        start_of_document: Starts | None = None,
        dropout_key: Key | None = None,
        lengths: Lengths | None = None,
    ) -> tuple[Activations, Any]:
        """Everything before the last product: the features, and the next state."""
        ...

    def logits(self, features: Activations) -> Logits:
        """The logits of the next token at each position."""
        ...


class Baseline(Model, Protocol):
    """A model that reads single tokens by `features` itself, which is how it generates."""

    def check_state(self, state: Any, batch_size: int) -> None:
        """Raises TypeError or ValueError unless `state` is one of this model."""
        ...

    def next_length(self, state: Any, available: int) -> int:
        """How many of the `available` tokens the next call from `state` should read, at least 1.

        It takes few different values, so that few programs are compiled.
        """
        ...
