"""The same program as `block-recurrent recall`."""

import sys

from block_recurrent.lab.recall.recall import main

if __name__ == "__main__":
    sys.exit(main())
