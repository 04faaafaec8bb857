"""Laws of sharing out the arrays of a checkpoint: each to one process, and about evenly."""

import numpy as np
import pytest

from block_recurrent.runs.shares import file_of, part_of, shared_out

SIZES = {"a.safetensors": [1, 900, 40, 300, 7], "b.safetensors": [500, 2, 499, 300]}
ARRAYS = {
    file: {f"{file[0]}{size}-{index}": np.zeros(size, np.uint8) for index, size in enumerate(sizes)}
    for file, sizes in SIZES.items()
}


@pytest.mark.parametrize("count", [1, 2, 3, 20])
def test_every_array_is_written_by_one_process(count):
    shares = shared_out(ARRAYS, count)
    assert len(shares) == count
    found = [
        (file_of(part), name) for share in shares for part, named in share.items() for name in named
    ]
    expected = [(file, name) for file, named in ARRAYS.items() for name in named]
    assert sorted(found) == sorted(expected)
    names = [part for share in shares for part in share]
    assert len(set(names)) == len(names)


def test_one_process_writes_the_files_themselves():
    assert shared_out(ARRAYS, 1) == [ARRAYS]


def test_no_process_writes_much_more_than_another():
    loads = [
        sum(array.nbytes for named in share.values() for array in named.values())
        for share in shared_out(ARRAYS, 3)
    ]
    assert max(loads) <= sum(map(sum, SIZES.values())) / 3 * 1.1


def test_the_name_of_a_part_says_of_what_it_is():
    assert part_of("a.b.safetensors", 1, 12) == "a.b-00002-of-00012.safetensors"
    assert file_of("a.b-00002-of-00012.safetensors") == "a.b.safetensors"
    assert file_of("a-2.safetensors") == "a-2.safetensors"
