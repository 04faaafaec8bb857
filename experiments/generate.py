"""The same program as `block-recurrent generate`."""

import sys

from block_recurrent.command_line.generate import main

if __name__ == "__main__":
    sys.exit(main())
