"""Attention: one function, several implementations.

`reference` says what is computed; `tiled` suits a CPU or a GPU, `tpu` a TPU, `hopper` and `cudnn`
NVIDIA's GPUs; `choice` picks one for a model.
"""

from block_recurrent.model.attention.choice import Attention as Attention
from block_recurrent.model.attention.choice import AttentionImpossible as AttentionImpossible
from block_recurrent.model.attention.choice import attention_name as attention_name
from block_recurrent.model.attention.choice import built_for as built_for
from block_recurrent.model.attention.choice import choose_attention as choose_attention
from block_recurrent.model.attention.choice import describe_attention as describe_attention
from block_recurrent.model.attention.choice import device_kind as device_kind
from block_recurrent.model.attention.choice import target_platform as target_platform
