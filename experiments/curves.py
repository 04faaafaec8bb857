"""The same program as `block-recurrent curves`."""

import sys

from block_recurrent.lab.tables.curves import main

if __name__ == "__main__":
    sys.exit(main())
