"""Training without files: loss, optimizer, step and evaluation."""

from block_recurrent.training.evaluation import Evaluation as Evaluation
from block_recurrent.training.evaluation import evaluate as evaluate
from block_recurrent.training.optimizer import make_optimizer as make_optimizer
from block_recurrent.training.optimizer import make_schedule as make_schedule
from block_recurrent.training.step import TrainState as TrainState
from block_recurrent.training.step import make_train_step as make_train_step
