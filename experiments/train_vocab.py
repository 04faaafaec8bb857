"""The same program as `block-recurrent train-vocab`."""

import sys

from block_recurrent.lab.corpora.train_vocab import main

if __name__ == "__main__":
    sys.exit(main())
