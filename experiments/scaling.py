"""The same program as `block-recurrent scaling`."""

import sys

from block_recurrent.lab.tables.scaling import main

if __name__ == "__main__":
    sys.exit(main())
