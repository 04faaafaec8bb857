"""The same program as `block-recurrent prepare-data`."""

import sys

from block_recurrent.lab.corpora.prepare_data import main

if __name__ == "__main__":
    sys.exit(main())
