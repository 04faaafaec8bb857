"""The Block-Recurrent Transformer (Hutchins et al. 2022, arXiv 2203.07852) in JAX and Flax NNX.

The names below are the public ones. A module holds parameters and its configuration. It takes the
state as an argument and returns the next state.

Letters in shapes: B batch rows, N segment length, W window and block length, K = N / W blocks,
S recurrent states, E model size, H heads, D head size, M MLP size, V vocabulary, L layers,
R recurrent layers.
"""

import importlib
import typing

from block_recurrent import interop as interop
from block_recurrent.baselines.lstm import LSTM as LSTM
from block_recurrent.baselines.transformer import Transformer as Transformer
from block_recurrent.baselines.transformer_xl import TransformerXL as TransformerXL
from block_recurrent.config import LayerConfig as LayerConfig
from block_recurrent.config import LSTMConfig as LSTMConfig
from block_recurrent.config import ModelConfig as ModelConfig
from block_recurrent.config import TransformerConfig as TransformerConfig
from block_recurrent.config import TransformerXLConfig as TransformerXLConfig
from block_recurrent.model.cell import RecurrentCell as RecurrentCell
from block_recurrent.model.decoding import GenerationState as GenerationState
from block_recurrent.model.decoding import generate as generate
from block_recurrent.model.decoding import prefill as prefill
from block_recurrent.model.decoding import row_lengths as row_lengths
from block_recurrent.model.gates import FixedGate as FixedGate
from block_recurrent.model.gates import LSTMGate as LSTMGate
from block_recurrent.model.language_model import LanguageModel as LanguageModel
from block_recurrent.model.layers import RMSNorm as RMSNorm
from block_recurrent.model.positions import Rotary as Rotary
from block_recurrent.model.positions import T5Bias as T5Bias
from block_recurrent.model.stack import BlockRecurrentLayer as BlockRecurrentLayer
from block_recurrent.model.state import KeysValues as KeysValues
from block_recurrent.model.state import LayerState as LayerState
from block_recurrent.model.state import ModelState as ModelState
from block_recurrent.model.state import reset as reset
from block_recurrent.model.transformer_layer import SlidingWindowLayer as SlidingWindowLayer

if typing.TYPE_CHECKING:
    from block_recurrent.runs.exported import load_safetensors as load_safetensors
    from block_recurrent.runs.exported import save_safetensors as save_safetensors
    from block_recurrent.runs.scoring import Score as Score
    from block_recurrent.runs.scoring import score as score
    from block_recurrent.runs.trained import TrainedModel as TrainedModel
    from block_recurrent.runs.trained import load as load

__version__ = "0.1.0"
_LATER = {
    "Score": "block_recurrent.runs.scoring",
    "TrainedModel": "block_recurrent.runs.trained",
    "load": "block_recurrent.runs.trained",
    "load_safetensors": "block_recurrent.runs.exported",
    "save_safetensors": "block_recurrent.runs.exported",
    "score": "block_recurrent.runs.scoring",
}


def __getattr__(name: str) -> typing.Any:
    """Imports what reads checkpoints at its first use, so that importing the package stays fast."""
    if name in _LATER:
        return getattr(importlib.import_module(_LATER[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
