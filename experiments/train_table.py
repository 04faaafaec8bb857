"""The same program as `block-recurrent table`."""

import sys

from block_recurrent.lab.tables.train_table import main

if __name__ == "__main__":
    sys.exit(main())
