"""The same program as `block-recurrent selftest`."""

import sys

from block_recurrent.lab.benchmark.selftest import main

if __name__ == "__main__":
    sys.exit(main())
