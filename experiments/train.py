"""The same program as `block-recurrent train`."""

import sys

from block_recurrent.command_line.train import main

if __name__ == "__main__":
    sys.exit(main())
