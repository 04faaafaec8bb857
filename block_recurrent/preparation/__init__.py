"""From raw data to a corpus on disk: what `experiments/prepare_data.py` is made of.

A source lists entries, one a document, and reads the ones it is asked for (`entries`); the writer
puts them into a directory that tensorflow-datasets reads, with a manifest (`corpus_writer`).
"""
