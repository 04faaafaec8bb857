"""The same program as `block-recurrent compile`."""

import sys

from block_recurrent.lab.compile.compile import main

if __name__ == "__main__":
    sys.exit(main())
