"""An index of a piece: every way to read and write some entries of a tensor does what indexing
does."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mnas.freeze.pieces import Indexed, Strided, index_from, index_of


def rows_of(width, rows):
    return (torch.tensor(rows)[:, None] * width + torch.arange(width)).flatten()


def columns_of(width):
    """The first columns of a matrix (4, 20)."""
    return rows_of(20, [0, 1, 2, 3]).view(4, 20)[:, :width].flatten()


# What it is read by: a view of one run or of equal blocks, or rows of equal width that are copied.
KINDS = {
    "all": (torch.arange(100), "run"),
    "one": (torch.tensor([3]), "run"),
    "neighbours": (torch.arange(7, 31), "run"),
    "prefix of columns": (columns_of(9), "blocks"),
    "every other row": (rows_of(10, [1, 3, 5, 7]), "blocks"),
    "two blocks": (rows_of(10, [1, 3]), "blocks"),
    "some rows": (rows_of(10, [0, 1, 4, 7]), "rows"),
    "rows up to the end": (rows_of(10, [0, 4, 8, 9]), "rows"),
    "narrow columns": (columns_of(3), "entries"),
    "irregular": (torch.tensor([0, 1, 5, 6, 7, 30, 99]), "entries"),
    "ends": (torch.tensor([0, 99]), "entries"),
}
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64)


def kind_of(index):
    if isinstance(index, Strided):
        return "run" if len(index.size) == 1 else "blocks"
    return "entries" if index.width == 1 else "rows"


def check(positions, index, size, dtype=torch.float32):
    memory = torch.arange(size).to(dtype)
    assert torch.equal(index.positions(), positions)
    assert torch.equal(index.read(memory).reshape(-1), memory[positions])
    assert index.is_view == (
        index.read(memory).untyped_storage().data_ptr() == memory.untyped_storage().data_ptr()
    )
    room = torch.cat([torch.zeros(5, dtype=dtype), memory])
    within = room[5:]  # a tensor that does not begin its memory
    assert torch.equal(index.read(within).reshape(-1), memory[positions])
    expected = memory.clone()
    expected[positions] = -1 - memory[positions]
    if index.is_view:
        index.read(memory).neg_().sub_(1)
    else:
        out = torch.empty(len(positions), dtype=dtype)
        assert index.read(memory, out) is out
        index.write(memory, -1 - out)
    assert torch.equal(memory, expected)
    again = index_from(index.parts())
    assert kind_of(again) == kind_of(index)
    assert torch.equal(again.positions(), positions)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_recognised_and_reads_and_writes(kind):
    positions, expected = KINDS[kind]
    index = index_of(positions, contiguous=False)
    assert kind_of(index) == expected
    check(positions, index, 100)
    contiguous = index_of(positions, contiguous=True)
    if expected == "blocks":  # no view with gaps
        assert isinstance(contiguous, Indexed)
    else:
        assert kind_of(contiguous) == expected
    check(positions, contiguous, 100)


@given(mask=st.lists(st.booleans(), min_size=1, max_size=90), width=st.sampled_from([1, 3, 8, 16]))
def test_any_mask(mask, width):
    entries = torch.tensor(mask).repeat_interleave(width)
    positions = entries.nonzero().squeeze(1)
    if not len(positions):
        return
    for dtype in DTYPES:
        check(positions, index_of(positions, contiguous=False), len(entries), dtype)
        check(positions, index_of(positions, contiguous=True), len(entries), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_large_tensors_are_written_to_the_bit(dtype):
    """Also where nothing is selected: NaN with a payload, negative zero and infinities stay what
    they are."""
    torch.manual_seed(0)
    size = torch.empty(0, dtype=dtype).element_size()
    words = {2: torch.int16, 4: torch.int32, 8: torch.int64}[size]
    # As many entries as torch works on in several threads.
    bits = torch.randint(-(2**15), 2**15, (2**15 + 3,), dtype=words) << (8 * size - 16)
    tensor = bits.clone().view(dtype)
    positions = (torch.rand(len(tensor)) < 0.5).nonzero().squeeze(1)
    index = index_of(positions, contiguous=True)
    assert isinstance(index, Indexed)
    values = index.read(tensor).clone()
    index.write(tensor, torch.flip(values, [0]))
    expected = bits.clone()
    expected[positions] = torch.flip(bits[positions], [0])
    assert torch.equal(tensor.view(words), expected)
