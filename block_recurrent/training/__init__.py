"""Training and evaluation: one concern a file, bottom up.

loss, optimizer, step and evaluation compute, checkpoints and metrics write, signals, lock and meter
watch, records keeps a run's checkpoints and figures, experiment makes all of a configuration, loop
joins them.
"""

from block_recurrent.training.evaluation import Evaluation as Evaluation
from block_recurrent.training.evaluation import evaluate as evaluate
from block_recurrent.training.loop import train as train
from block_recurrent.training.optimizer import make_optimizer as make_optimizer
from block_recurrent.training.optimizer import make_schedule as make_schedule
from block_recurrent.training.signals import Stopped as Stopped
from block_recurrent.training.step import TrainState as TrainState
from block_recurrent.training.step import make_train_step as make_train_step
