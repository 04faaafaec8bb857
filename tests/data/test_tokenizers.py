"""Laws of tokenizers: bytes lose nothing."""

import numpy as np
import pytest

from block_recurrent.data import ByteTokenizer, DataError, make_tokenizer

TEXTS = ["", "plain\r\n\ttext", "né à 水 \U0001f600", "\0 and \0", "\ufeff\ufffd"]


@pytest.mark.parametrize("text", TEXTS)
def test_bytes_round_trip(text):
    tokenizer = ByteTokenizer()
    tokens = tokenizer.encode(text)
    assert tokens.dtype == np.int32 and tokens.shape == (len(text.encode()),)
    assert tokenizer.decode(tokens) == tokenizer.decode(tokens.tolist()) == text


def test_every_byte_is_inside_the_vocabulary():
    tokens = ByteTokenizer().encode("".join(map(chr, range(0x800))))
    assert tokens.min() >= 0 and tokens.max() < ByteTokenizer.vocab_size
    assert 0 <= ByteTokenizer.beginning_of_document < ByteTokenizer.vocab_size


def test_cut_character_is_replaced():
    tokenizer = ByteTokenizer()
    assert tokenizer.decode(tokenizer.encode("aé")[:-1]) == "a\ufffd"


@pytest.mark.parametrize("token", [-1, 256])
def test_id_that_is_no_byte_is_an_error(token):
    with pytest.raises(DataError, match=f"token id {token} is not a byte"):
        ByteTokenizer().decode([65, token])


def test_tokenizer_is_made_by_its_name():
    assert make_tokenizer("bytes").name == "bytes"
    with pytest.raises(DataError, match="unknown tokenizer 'byte': did you mean 'bytes'"):
        make_tokenizer("byte")
