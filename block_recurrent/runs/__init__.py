"""Everything that a work directory holds, written and read."""

from block_recurrent.runs.loop import train as train
from block_recurrent.system.signals import Stopped as Stopped
