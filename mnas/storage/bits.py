"""One bit an image in a line of JSON: which images a network has right."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def packed(values: Sequence[bool]) -> str:
    """Booleans (N,) as base64, eight a byte, the first in the highest bit; the last byte is filled
    with 0."""
    import numpy as np

    return base64.b64encode(np.packbits(np.asarray(values, bool)).tobytes()).decode()


def unpacked(text: str, number: int) -> NDArray[np.bool_]:
    """The booleans (number,) again. Raises ValueError for a text of another number."""
    import numpy as np

    try:
        raw = np.frombuffer(base64.b64decode(text, validate=True), np.uint8)
    except ValueError as error:
        raise ValueError(f"bits of images are {text[:20]!r}, expected base64") from error
    if len(raw) != -(-number // 8) or np.unpackbits(raw)[number:].any():
        raise ValueError(f"{len(raw)} bytes of bits, expected those of {number} images")
    return np.unpackbits(raw, count=number).astype(bool)
