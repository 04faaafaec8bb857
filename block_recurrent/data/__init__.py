"""Documents, tokenizers, and lanes that read long documents segment by segment."""

from block_recurrent.data.corpus import Corpus as Corpus
from block_recurrent.data.corpus import load_corpus as load_corpus
from block_recurrent.data.documents import DataError as DataError
from block_recurrent.data.documents import Document as Document
from block_recurrent.data.documents import byte_count as byte_count
from block_recurrent.data.documents import split_of as split_of
from block_recurrent.data.documents import word_count as word_count
from block_recurrent.data.lanes import Batch as Batch
from block_recurrent.data.lanes import TrainingLanes as TrainingLanes
from block_recurrent.data.lanes import evaluation_batches as evaluation_batches
from block_recurrent.data.tfds_reader import TfdsDirectory as TfdsDirectory
from block_recurrent.data.token_cache import cached_tokens as cached_tokens
from block_recurrent.data.tokenized import TokenizedCorpus as TokenizedCorpus
from block_recurrent.data.tokenized import tokenize as tokenize
from block_recurrent.data.tokenizers import ByteTokenizer as ByteTokenizer
from block_recurrent.data.tokenizers import Tokenizer as Tokenizer
from block_recurrent.data.vocabularies import HuggingFaceTokenizer as HuggingFaceTokenizer
from block_recurrent.data.vocabularies import SentencePieceTokenizer as SentencePieceTokenizer
from block_recurrent.data.vocabularies import TiktokenTokenizer as TiktokenTokenizer
from block_recurrent.data.vocabularies import make_tokenizer as make_tokenizer
