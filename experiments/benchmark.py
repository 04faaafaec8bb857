"""The same program as `block-recurrent benchmark`."""

import sys

from block_recurrent.lab.benchmark.benchmark import main

if __name__ == "__main__":
    sys.exit(main())
