"""Makes a corpus of raw data: a directory that `data.source = "tfds"` reads, with a manifest.

    python experiments/prepare_data.py pg19 /data/pg19 --output=corpora/pg19
    python experiments/prepare_data.py pg19 --download=/data/pg19 --output=corpora/pg19
    python experiments/prepare_data.py latex /data/arxiv --output=corpora/arxiv
    python experiments/prepare_data.py git /data/repositories --output=corpora/github
    python experiments/prepare_data.py text /data/books --output=corpora/books

The corpus grows in DIR.partial and is renamed to DIR when it is complete. After SIGINT (Ctrl-C),
SIGTERM, a crash or a full disk, the same command goes on where it was, to the same bytes.
`prepare_data.py KIND --help` tells the options of a kind of data.
"""

import signal
import sys
from collections.abc import Sequence

from block_recurrent.command_line.failures import reported
from block_recurrent.command_line.raw_data import make_corpus, make_parser
from block_recurrent.data import DataError
from block_recurrent.preparation.corpus_writer import Interrupted, check_options
from block_recurrent.preparation.display import Display
from block_recurrent.preparation.manifest import summary
from block_recurrent.system.signals import stop_on_signal


@reported
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    arguments = make_parser(__doc__).parse_args(argv)
    parser, display = arguments.parser, Display()
    try:
        check_options(
            arguments.name, arguments.validation_percent, arguments.test_percent, arguments.limit
        )
    except DataError as error:
        parser.error(str(error))
    with stop_on_signal() as request:
        try:
            manifest = make_corpus(arguments, display, request)
        except (Interrupted, KeyboardInterrupt):
            name = request.signal or "SIGINT"
            display.end()
            print(f"stopped by {name}; the same command goes on from here", file=sys.stderr)
            return 128 + signal.Signals[name]
        finally:
            display.end()
    print(f"{summary(manifest)}\nwritten to {arguments.output}; to train on it:")
    print(
        f"  python experiments/train.py --gin_file=FILE --gin.data.source=tfds "
        f"--gin.data.path={arguments.output} --workdir=DIR"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
