"""Images changed anew each time that they are trained on; torch's generator of the CPU decides how,
wherever the images are, so that a resumed run goes on with the same."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F


def shifted(images: Tensor, most: int = 2) -> Tensor:
    """Images (N, C, H, W), each moved by up to so many pixels in both directions; torch's generator
    decides how far. What comes in from outside is as the border."""
    number, _, height, width = images.shape
    windows = F.pad(images, [most] * 4, mode="replicate").unfold(2, height, 1).unfold(3, width, 1)
    down, right = torch.randint(2 * most + 1, (2, number))
    return torch.empty_like(images).copy_(windows[torch.arange(number), :, down, right])


def cropped_and_flipped(images: Tensor) -> Tensor:
    """Images (N, C, H, W), each moved by up to an eighth of its side in both directions, and half
    of them mirrored, left to right (He et al., CVPR 2016, section 4.2: 4 pixels of 32).

    What comes in from outside is zero, the mean of normalised images. It is what a crop of a padded
    image is; torch's generator decides."""
    number, _, height, width = images.shape
    most = max(1, min(height, width) // 8)
    windows = F.pad(images, [most] * 4).unfold(2, height, 1).unfold(3, width, 1)
    down, right = torch.randint(2 * most + 1, (2, number))
    flip = torch.randint(2, (number, 1, 1, 1), dtype=torch.bool)
    moved = windows[torch.arange(number), :, down, right]
    chosen = torch.where(flip.to(images.device), moved.flip(3), moved)
    return torch.empty_like(images).copy_(chosen)


AUGMENT: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda images: images,
    "shift": shifted,
    "crop_flip": cropped_and_flipped,
}
"""What can be done to a batch of training images, by the names that recipes have."""
