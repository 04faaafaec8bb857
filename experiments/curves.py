"""The same program as `block-recurrent curves`."""

import sys

from block_recurrent.lab.programs.curves import main

if __name__ == "__main__":
    sys.exit(main())
