"""`python -m block_recurrent` is the command `block-recurrent`."""

import sys

from block_recurrent.command_line.main import main

sys.exit(main())
