"""Other language models with the protocol of `block_recurrent.model.protocol`."""

from block_recurrent.baselines.lstm import LSTM as LSTM
from block_recurrent.baselines.lstm import LSTMState as LSTMState
from block_recurrent.baselines.lstm import lstm_of_size as lstm_of_size
from block_recurrent.baselines.transformer import Transformer as Transformer
from block_recurrent.baselines.transformer_xl import RelativeState as RelativeState
from block_recurrent.baselines.transformer_xl import TransformerXL as TransformerXL
