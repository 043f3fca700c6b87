"""Bits of images against a loop over them."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mnas.storage import bits


@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_bits_come_back_and_lie_as_said(values):
    text = bits.packed(values)
    assert bits.unpacked(text, len(values)).tolist() == values
    raw = base64.b64decode(text)
    assert [bool(raw[i // 8] >> (7 - i % 8) & 1) for i in range(len(values))] == values


@pytest.mark.parametrize("text", ["", "/w==", "//8=", "//////8=", "x", "ÿÿÿ="])
def test_bits_of_other_images_are_refused(text):
    with pytest.raises(ValueError, match="bits"):
        bits.unpacked(text, 9)
