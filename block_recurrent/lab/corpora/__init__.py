"""Raw data to corpora: a source lists `entries` and reads them later; `corpus_writer` writes."""
