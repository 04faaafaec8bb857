"""The same program as `block-recurrent table2`."""

import sys

from block_recurrent.lab.tables.table2 import main

if __name__ == "__main__":
    sys.exit(main())
