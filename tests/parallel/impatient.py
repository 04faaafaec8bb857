"""train.py, with little patience for other processes; with --hang process 1 never gets a batch."""

import sys
import threading

from block_recurrent.parallel import processes, watch
from block_recurrent.runs import checkpoints
from block_recurrent.training import trainer
from experiments import train

watch.PATIENCE_SECONDS = 12
checkpoints.LONGEST_SAVE = 5
put_batch = trainer.put_batch


def place_or_hang(*arguments):
    if processes.index() == 1:
        threading.Event().wait()
    return put_batch(*arguments)


if "--hang" in sys.argv:
    sys.argv.remove("--hang")
    trainer.put_batch = place_or_hang
sys.exit(train.main())
