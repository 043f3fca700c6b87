"""Scores of a network at its random start, as their papers define them; higher is better.

A network is a plain module, as `mnas.standalone` gives it, and is not changed. BatchNorm has the
statistics of the batch, but in `synflow`, where it is left out."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

Shape = tuple[int, ...]


def synflow(network: nn.Module, shape: Shape) -> float:
    """The logarithm of SynFlow (Tanaka et al., NeurIPS 2020, "Pruning neural networks without any
    data by iteratively conserving synaptic flow"), summed over parameters as a score of networks
    (Abdelfattah et al., ICLR 2021, "Zero-cost proxies for lightweight NAS").

    R is the sum of the outputs for an image of ones under absolute parameters; a parameter's
    saliency is |w| dR/d|w|. BatchNorm would take away the scale that is looked for: it hands on its
    input, and its parameters have no saliency. In float64, which R does not overflow. The published
    code of the score sums over weights of convolutions and linear layers alone, here biases count,
    too. shape: of an image, (C, H, W)."""
    twin = copy.deepcopy(network).double().eval()
    weights = []
    with torch.no_grad():
        for module in twin.modules():
            if isinstance(module, _BatchNorm):
                module.register_forward_hook(_handed_on)
                continue
            weights += [weight.abs_() for weight in module.parameters(recurse=False)]
    flow = twin(torch.ones(1, *shape, dtype=torch.float64)).sum()
    gradients = torch.autograd.grad(flow, weights, allow_unused=True)
    total = sum(
        float((weight.detach() * gradient).sum())
        for weight, gradient in zip(weights, gradients, strict=True)
        if gradient is not None
    )
    return math.log(total) if total > 0 else -math.inf


def _handed_on(_: nn.Module, inputs: tuple[Any, ...], __: Tensor) -> Any:
    return inputs[0]


def zico(network: nn.Module, batches: Sequence[tuple[Tensor, Tensor]]) -> float:
    """ZiCo (Li et al., ICLR 2023, "ZiCo: Zero-shot NAS via inverse coefficient of variation on
    gradients", section 3.4, equation 15): over convolutions and linear layers, the sum of log of
    the sum over weights of the mean of the absolute gradient over batches, divided by its
    deviation.

    batches: images (B, C, H, W) and labels (B,), two at least. Deviations are of the population
    and, as in the equation, of the absolute gradient; the authors' code takes those of the gradient
    with its sign. It also draws weights of its own, and here the network is as it is given. A
    weight whose gradient is the same in all batches is left out, as is a layer of such weights.
    Gradients are of the mean cross-entropy."""
    twin = copy.deepcopy(network).train()
    kinds = (nn.modules.conv._ConvNd, nn.Linear)
    weights = [layer.weight for layer in twin.modules() if isinstance(layer, kinds)]
    found = []
    for images, labels in batches:
        loss = F.cross_entropy(twin(images), labels)
        found.append([g.abs().double() for g in torch.autograd.grad(loss, weights)])
    total = 0.0
    for of_layer in zip(*found, strict=True):
        size = torch.stack(of_layer)  # (batches, *weight)
        mean, deviation = size.mean(0), size.std(0, correction=0)
        moves = deviation > 0
        if moves.any():
            total += float((mean[moves] / deviation[moves]).sum().log())
    return total


class Traits(NamedTuple):
    """Of AZ-NAS, but for complexity, which is the network's multiply-accumulates."""

    expressivity: float
    progressivity: float
    trainability: float


def az_nas(
    network: nn.Module, blocks: Sequence[str], shape: Shape, images: int, seed: int
) -> Traits:
    """What AZ-NAS assembles (Lee and Ham, CVPR 2024, "AZ-NAS: Assembling zero-cost proxies for
    network architecture search", section 3), on images of Gaussian noise of a shape (C, H, W).

    blocks: names of the modules between which features are looked at, in their order: their
    outputs, and the input of the first one where layers come before it. Expressivity: the entropy
    of the normalised eigenvalues of the covariance of channels, summed over features.
    Progressivity: the least growth of that entropy from a feature to the next. Trainability: the
    mean over blocks of 2 - s - 1/s, where s is the spectral norm of the block's Jacobian as a map
    between channels, estimated by one backward pass of random signs; pixels that a stride brings
    together count as channels. seed: of noise and signs.

    The authors' code first draws all weights anew (He et al.'s normal start, by inputs), and gives
    a block that hands on its input a trainability of minus infinity. Here the network is as it is
    given, and blocks are those of the caller."""
    twin = copy.deepcopy(network).train()
    generator = torch.Generator().manual_seed(seed)
    features: list[Tensor] = []

    def before(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        if inputs[0].requires_grad:
            features.append(inputs[0])

    def after(_: nn.Module, __: Any, output: Tensor) -> None:
        features.append(output)

    twin.get_submodule(blocks[0]).register_forward_pre_hook(before)
    for name in blocks:
        twin.get_submodule(name).register_forward_hook(after)
    twin(torch.randn(images, *shape, generator=generator))
    entropies = [_entropy(feature.detach()) for feature in features]
    growth = [after - before for before, after in pairwise(entropies)]
    passed = []
    for inside, outside in pairwise(features):
        signs = torch.randint(2, outside.shape, generator=generator) * 2.0 - 1
        (gradient,) = torch.autograd.grad(outside, inside, signs, retain_graph=True)
        norm = _norm(gradient, signs)
        passed.append(2 - norm - 1 / norm if norm > 0 else -math.inf)
    least = float(torch.tensor(growth, dtype=torch.float64).min())  # of NaN, too
    return Traits(sum(entropies), least, sum(passed) / len(passed))


def _entropy(feature: Tensor) -> float:
    """feature (N, C, H, W)."""
    rows = feature.movedim(1, -1).flatten(0, -2).double()  # (positions, C)
    rows = rows - rows.mean(0)
    values = torch.linalg.eigvalsh(rows.T @ rows / len(rows)).clamp(min=0)
    shares = values / values.sum()
    return float(-torch.xlogy(shares, shares).sum())


def _norm(gradient: Tensor, signs: Tensor) -> float:
    """The spectral norm of the mean over positions of gradient times signs: gradient (N, C, H, W)
    of a block's input, signs (N, C', H', W') for its output."""
    stride = gradient.shape[2] // signs.shape[2]
    cells = F.unfold(gradient, stride, stride=stride)  # (N, C stride^2, H' W')
    positions = signs.flatten(2)  # (N, C', H' W')
    jacobian = torch.einsum("nip,nop->io", cells, positions) / (len(signs) * positions.shape[2])
    return float(torch.linalg.matrix_norm(jacobian, 2))
