"""Places: every way to read and write some entries of a tensor does what indexing does."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mnas.places import LARGE, Blocks, Box, Run, Scattered, place, place_of


def rows_of(width, rows):
    return (torch.tensor(rows)[:, None] * width + torch.arange(width)).flatten()


KINDS = {
    "all": (torch.arange(100), Run),
    "one": (torch.tensor([3]), Run),
    "neighbours": (torch.arange(7, 31), Run),
    "prefix of columns": (rows_of(20, [0, 1, 2, 3]).view(4, 20)[:, :9].flatten(), Box),
    "every other row": (rows_of(10, [1, 3, 5, 7]), Box),
    "two blocks": (rows_of(10, [1, 3]), Box),
    "some rows": (rows_of(10, [0, 1, 4, 7]), Blocks),
    "rows up to the end": (rows_of(10, [0, 4, 8, 9]), Blocks),
    "narrow columns": (rows_of(20, [0, 1, 2, 3]).view(4, 20)[:, :3].flatten(), Scattered),
    "irregular": (torch.tensor([0, 1, 5, 6, 7, 30, 99]), Scattered),
    "ends": (torch.tensor([0, 99]), Scattered),
}


DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64)


def check(index, where, size, dtype=torch.float32):
    flat = torch.arange(size).to(dtype)
    assert torch.equal(where.positions(), index)
    assert torch.equal(where.read(flat).reshape(-1), flat[index])
    assert where.is_view == (where.read(flat).untyped_storage().data_ptr() == flat.untyped_storage().data_ptr())
    shifted = torch.cat([torch.zeros(5, dtype=dtype), flat])[5:]  # a tensor that does not begin its memory
    assert torch.equal(where.read(shifted).reshape(-1), flat[index])
    expected = flat.clone()
    expected[index] = -1 - flat[index]
    if where.is_view:
        where.read(flat).neg_().sub_(1)
    else:
        out = torch.empty(len(index), dtype=dtype)
        assert where.read(flat, out) is out
        where.write(flat, -1 - out)
    assert torch.equal(flat, expected)
    again = place_of(where.parts())
    assert type(again) is type(where)
    assert torch.equal(again.positions(), index)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_recognised_and_reads_and_writes(kind):
    index, expected = KINDS[kind]
    where = place(index, contiguous=False)
    assert type(where) is expected
    check(index, where, 100)
    contiguous = place(index, contiguous=True)
    assert type(contiguous) is (expected if expected is not Box else type(contiguous))
    assert not isinstance(contiguous, Box)
    check(index, contiguous, 100)


@given(
    mask=st.lists(st.booleans(), min_size=1, max_size=90),
    width=st.sampled_from([1, 3, 8, 16]),
    threads=st.integers(1, 5),
)
def test_any_mask(mask, width, threads):
    entries = torch.tensor(mask).repeat_interleave(width)
    index = entries.nonzero().squeeze(1)
    if not len(index):
        return
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for dtype in DTYPES:
            check(index, place(index, contiguous=False), len(entries), dtype)
            check(index, place(index, contiguous=True), len(entries), dtype)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", DTYPES)
def test_large_tensors_are_written_to_the_bit(dtype):
    """Also where nothing is selected: NaN with a payload, negative zero and infinities stay what they are."""
    torch.manual_seed(0)
    size = torch.empty(0, dtype=dtype).element_size()
    words = {2: torch.int16, 4: torch.int32, 8: torch.int64}[size]
    bits = torch.randint(-(2**15), 2**15, (LARGE + 3,), dtype=words) << (8 * size - 16)
    tensor = bits.clone().view(dtype)
    index = (torch.rand(len(tensor)) < 0.5).nonzero().squeeze(1)
    where = place(index, contiguous=True)
    assert isinstance(where, Scattered)
    values = where.read(tensor).clone()
    where.write(tensor, torch.flip(values, [0]))
    expected = bits.clone()
    expected[index] = torch.flip(bits[index], [0])
    assert torch.equal(tensor.view(words), expected)
