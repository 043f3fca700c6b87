"""Train chosen entries of any module: masks, active entries, and optimizers that leave the others
as they are.

Imports torch alone, and can be used alone: `GradientMask` with `MaskedOptimizer`.
"""

from mnas.freeze.gradient_mask import GradientMask
from mnas.freeze.optimizer import MaskedOptimizer

__all__ = ["GradientMask", "MaskedOptimizer"]
