"""The same program as `block-recurrent evaluate`."""

import sys

from block_recurrent.command_line.evaluate import main

if __name__ == "__main__":
    sys.exit(main())
