"""Parameters in other programs' formats."""

from block_recurrent.interop import meliad as meliad
