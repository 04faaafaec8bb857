"""The same program as `block-recurrent export`."""

import sys

from block_recurrent.command_line.export import main

if __name__ == "__main__":
    sys.exit(main())
