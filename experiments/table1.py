"""The same program as `block-recurrent table1`."""

import sys

from block_recurrent.lab.tables.table1 import main

if __name__ == "__main__":
    sys.exit(main())
