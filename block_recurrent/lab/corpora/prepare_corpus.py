"""Preparing a corpus as the command line of `prepare_data.py` says, with progress on the screen."""

import argparse
import sys
from typing import Any

from block_recurrent.data import DataError
from block_recurrent.lab.corpora.corpus_writer import Interrupted, check_target, prepare
from block_recurrent.lab.corpora.display import Display
from block_recurrent.lab.corpora.manifest import summary
from block_recurrent.lab.corpora.pg19_download import download
from block_recurrent.system.signals import Stopped, StopRequest


def prepare_corpus(arguments: argparse.Namespace, stop: StopRequest) -> None:
    """Makes the corpus and prints what it holds and how to train on it.

    Args:
      arguments: what `raw_data.parse` returns.
      stop: asked after every file and document.

    Raises:
      DataError: the data or the directory cannot be used.
      Stopped: a signal asked for it, which is printed; the same call goes on.
    """
    display = Display()
    try:
        manifest = _prepare(arguments, display, stop)
    except (Interrupted, KeyboardInterrupt) as error:
        stopped = Stopped(stop.signal or "SIGINT", "; the same command goes on from here")
        display.end()
        print(stopped, file=sys.stderr)
        raise stopped from error
    finally:
        display.end()
    print(
        f"{summary(manifest)}\nwritten to {arguments.output}; to train on it:\n"
        f"  python experiments/train.py --gin_file=FILE --gin.data.source=tfds "
        f"--gin.data.path={arguments.output} --workdir=DIR"
    )


def _prepare(arguments: argparse.Namespace, display: Display, stop: StopRequest) -> dict[str, Any]:
    """Returns the manifest; raises Interrupted if a signal has come."""
    check_target(arguments.output, overwrite=arguments.overwrite)
    if arguments.download is not None:
        report, asked = display.downloading, lambda: stop.signal
        if not download(arguments.download, report=report, stop=asked):
            raise Interrupted
        display.end()
    try:
        return prepare(
            arguments.make_source(arguments),
            arguments.output,
            name=arguments.name,
            validation_percent=arguments.validation_percent,
            test_percent=arguments.test_percent,
            limit=arguments.limit,
            restart=arguments.restart,
            overwrite=arguments.overwrite,
            report=display.writing,
            stop=lambda: stop.signal,
        )
    except DataError as error:
        if stop.signal:  # Ctrl-C also reaches the programs that a source has started
            raise Interrupted from error
        raise
