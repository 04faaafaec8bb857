"""Raw data to corpora, for `experiments/prepare_data.py`.

A source lists entries, one a document, and reads them later (`entries`). The writer puts them into
a directory that tensorflow-datasets reads, with a manifest (`corpus_writer`).
"""
