"""The same program as `block-recurrent table`."""

import sys

from block_recurrent.lab.programs.train_table import main

if __name__ == "__main__":
    sys.exit(main())
