"""Makes a corpus of raw data: a directory that `data.source = "tfds"` reads, with a manifest.

    block-recurrent prepare-data pg19 /data/pg19 --output=corpora/pg19
    block-recurrent prepare-data pg19 --download=/data/pg19 --output=corpora/pg19
    block-recurrent prepare-data latex /data/arxiv --output=corpora/arxiv
    block-recurrent prepare-data git /data/repositories --output=corpora/github
    block-recurrent prepare-data text /data/books --output=corpora/books

The corpus grows in DIR.partial and is renamed to DIR when it is complete. After SIGINT (Ctrl-C),
SIGTERM, a crash or a full disk, the same command continues: it keeps finished splits and writes the
others from their start. The result has the same bytes as that of a run that was not stopped.
`block-recurrent prepare-data KIND --help` shows the options of a kind of data.
"""

from collections.abc import Sequence

from block_recurrent.command_line.failures import reported
from block_recurrent.lab.corpora.prepare_corpus import parse, prepare_corpus
from block_recurrent.system.signals import stop_on_signal


@reported
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    arguments = parse(__doc__, argv)
    with stop_on_signal() as stop:
        prepare_corpus(arguments, stop)
    return 0
