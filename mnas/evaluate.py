"""Accuracy of networks."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BATCH = 500  # pictures a forward pass; also fixes the arithmetic, so a number does not depend on who asked for it


class Score(NamedTuple):
    """top1: share of correct predictions, 0 to 1. loss: mean cross-entropy in nats."""

    top1: float
    loss: float


@torch.no_grad()
def evaluate(model: nn.Module, images: Tensor, labels: Tensor) -> Score:
    """Score of a network in evaluation mode on images (N, C, H, W) and labels (N,).

    The model's mode is as before afterwards. For a path of a supernet: `evaluate(mnas.export(net, path), ...)`.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        batches = [(model(x), y) for x, y in zip(images.split(BATCH), labels.split(BATCH), strict=True)]
    finally:
        for module, training in modes.items():
            module.training = training
    correct = sum(int((logits.argmax(1) == y).sum()) for logits, y in batches)
    loss = sum(float(F.cross_entropy(logits, y, reduction="sum")) for logits, y in batches)
    return Score(correct / len(labels), loss / len(labels))
