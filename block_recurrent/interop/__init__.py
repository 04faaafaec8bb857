"""Parameters in other programs' formats."""

from block_recurrent.interop import meliad as meliad
from block_recurrent.interop import transformer_xl as transformer_xl
