"""The same program as `block-recurrent analyze`."""

import sys

from block_recurrent.lab.analysis.analyze import main

if __name__ == "__main__":
    sys.exit(main())
