"""The same program as `block-recurrent benchmark`."""

import sys

from block_recurrent.lab.programs.benchmark import main

if __name__ == "__main__":
    sys.exit(main())
