"""The preparation of raw data: `experiments/prepare_data.py` makes a corpus on disk of it.

A source lists entries, one a document, and reads the ones it is asked for (`entries`); the writer
puts them into a directory that tensorflow-datasets reads, with a manifest (`corpus_writer`).
"""
