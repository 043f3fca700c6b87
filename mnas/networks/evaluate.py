"""Accuracy of networks: one by itself, or many paths of a supernet with what they share computed
once."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from mnas.networks.export import compact, export
from mnas.networks.recalibrate import batches, pool, recalibrate, statistics_of
from mnas.space import prefix
from mnas.space.given import GivenPath
from mnas.space.inputs import Inputs, called, divided, examples
from mnas.space.supernet import Supernet

BATCH = (
    500  # images a forward pass; fixes the arithmetic, so a number is the same whoever asks for it
)


class _Means(NamedTuple):
    top1: float
    loss: float


class Score(_Means):
    """top1: share of correct predictions, 0 to 1. loss: mean cross-entropy in nats. Two numbers, as
    a tuple; `correct` beside them says of which images (N,), boolean, on the CPU."""

    correct: Tensor

    def __new__(cls, top1: float, loss: float, correct: Tensor) -> Score:
        score = super().__new__(cls, top1, loss)
        score.correct = correct
        return score

    def __reduce__(self) -> tuple[type[Score], tuple[float, float, Tensor]]:
        return Score, (*self, self.correct)


class _Sums:
    """Correct predictions and loss so far."""

    def __init__(self) -> None:
        self.correct: list[Tensor] = []
        self.loss = 0.0

    def add(self, logits: Tensor, labels: Tensor) -> None:
        if logits.ndim != 2 or labels.max() >= logits.shape[1]:
            raise ValueError(
                f"logits are {tuple(logits.shape)}, the largest label is {int(labels.max())}; "
                "expected (B, classes) and labels below the number of classes"
            )
        self.correct.append((logits.argmax(1) == labels).cpu())
        self.loss += float(F.cross_entropy(logits, labels, reduction="sum"))

    def score(self) -> Score:
        correct = torch.cat(self.correct)
        number = len(correct)
        return Score(int(correct.sum()) / number, self.loss / number, correct)


@torch.no_grad()
def evaluate(model: nn.Module, images: Any, labels: Tensor) -> Score:
    """Score of a network in evaluation mode on images (N, C, H, W) and labels (N,).

    In place of images a tuple of what the network is called with, or a dict of it by name, as
    `example` of a space; each tensor has a row for each label. The network returns logits
    (B, classes), or a dict that has them as "logits". Its mode is as before afterwards. For paths
    of a supernet: `evaluate_paths`.

    Raises ValueError for images and labels that do not fit together.
    """
    if isinstance(model, Supernet):
        raise ValueError(
            "evaluate got a Supernet; expected one network, as from mnas.export, or call "
            "evaluate_paths"
        )
    return _evaluate(model, _checked(images, labels), labels)


def _evaluate(
    model: nn.Module,
    given: Tensor | Inputs,
    labels: Tensor,
    see: Callable[[Tensor], Any] = lambda _: None,
) -> Score:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    sums = _Sums()
    try:
        for x, y in zip(divided(given, _split), labels.split(BATCH), strict=True):
            logits = _logits(called(model, x))
            sums.add(logits, y)
            see(logits)
    finally:
        for module, training in modes.items():
            module.training = training
    return sums.score()


@torch.no_grad()
def evaluate_paths(
    net: Supernet,
    paths: Sequence[GivenPath],
    images: Any,
    labels: Tensor,
    *,
    bn_images: Any = None,
    progress: Callable[[int], Any] = lambda _: None,
    see: Callable[[int, Tensor], Any] = lambda *_: None,
) -> list[Score]:
    """Scores of paths of a supernet on images (N, C, H, W) and labels (N,), in the order of the
    paths. In place of images what else the networks take, as of `evaluate`.

    Equal to `evaluate(export(net, path), ...)`, or with `bn_images` (training images) to
    `evaluate(recalibrate(export(net, path), bn_images), ...)`, one path after the other; what they
    share is computed once, the recalibration included. progress: is told how many images have been
    scored since the last call, each path's counted. see: is given the number of a path and its
    logits (B, classes) of the next images. The supernet is not changed.

    Raises ValueError for images and labels that do not fit together.
    """
    if not isinstance(net, Supernet):
        raise ValueError(f"evaluate_paths got a {type(net).__name__}; expected a mnas.Supernet")
    given = _checked(images, labels)
    paths = [net.space.check(path) for path in paths]
    model = compact(net.model)
    if bn_images is not None and _uses_layers_twice(
        model
    ):  # their statistics depend on all of the path
        scores = []
        for number, path in enumerate(paths):
            network = recalibrate(export(net, path), bn_images)
            scores.append(_evaluate(network, given, labels, partial(see, number)))
            progress(len(labels))
        return scores
    keys = [net.space.key(path) for path in paths]
    root = prefix.tree(model, keys, lambda choice, index: choice.candidate(index))
    for module in root.distinct():
        module.eval()
    statistics = {} if bn_images is None else _recalibrate(root, bn_images)

    def step(node: prefix.Node, x: Any) -> Any:
        for layer, mean, variance in statistics.get(node, ()):
            layer.running_mean, layer.running_var = mean, variance
        return prefix.run(node, x)

    sums = [_Sums() for _ in paths]
    for x, y in zip(divided(given, _split), labels.split(BATCH), strict=True):
        for number, output in prefix.walk(root, x, step):
            logits = _logits(output)
            sums[number].add(logits, y)
            see(number, logits)
            progress(len(y))
    return [of_path.score() for of_path in sums]


def _split(tensor: Tensor) -> Sequence[Tensor]:
    return tensor.split(BATCH)


def _logits(output: Any) -> Tensor:
    """(B, classes), of what a network returns."""
    found = output.get("logits") if isinstance(output, Mapping) else output
    if not isinstance(found, Tensor):
        raise ValueError(
            f"the network returned a {type(output).__name__}; expected logits (B, classes), or a "
            'dict that has them as "logits"'
        )
    return found


def _checked(images: Any, labels: Tensor) -> Tensor | Inputs:
    given, number = examples("images", images)
    if not isinstance(labels, Tensor):
        raise ValueError(f"labels are a {type(labels).__name__}; expected a torch.Tensor")
    if not number:
        raise ValueError("there are no images to score on; give at least one")
    if labels.shape != (number,) or labels.dtype != torch.int64:
        raise ValueError(
            f"labels are {labels.dtype} of shape {tuple(labels.shape)}; expected torch.int64 of "
            f"({number},), one for each image"
        )
    if labels.min() < 0:  # torch leaves out the label -100 in silence
        raise ValueError(f"labels have {int(labels.min())}; expected 0 or above")
    return given


def _uses_layers_twice(model: nn.Module) -> bool:
    layers = [module for stage in prefix.stages(model) for module in stage.modules()]
    return len(layers) != len(set(layers))


Statistics = dict[prefix.Node, list[tuple[nn.Module, Tensor, Tensor]]]


def _recalibrate(root: prefix.Node, images: Any) -> Statistics:
    """The running mean and variance of each BatchNorm at each node, for what comes before it
    there."""
    inputs, statistics = batches(images), {}
    layers = [layer for module in root.distinct() for layer in statistics_of(module)]
    if not layers:
        return statistics
    stored = {layer: (layer.running_mean.clone(), layer.running_var.clone()) for layer in layers}

    def step(node: prefix.Node, inputs: list[Any]) -> list[Any]:
        layers = [layer for module in node.modules for layer in statistics_of(module)]
        for layer in layers:  # a layer out of reach keeps its own, not those of another node
            mean, variance = stored[layer]
            layer.running_mean.copy_(mean)
            layer.running_var.copy_(variance)
        for module in node.modules:
            inputs = pool(module, inputs)
        statistics[node] = [
            (layer, layer.running_mean.clone(), layer.running_var.clone()) for layer in layers
        ]
        return inputs

    for _ in prefix.walk(root, inputs, step):
        pass
    return statistics


@torch.no_grad()
def agreement(
    net: Supernet, paths: Sequence[GivenPath], images: Tensor, batch_size: int = 64
) -> list[float]:
    """How far each path's predictions are from those of the network with all candidates on, in
    nats: the symmetric Kullback-Leibler divergence of the two softmaxes, a mean over images (N, C,
    H, W). The smaller the better (Bender et al., ICML 2018, whose reference has most candidates on:
    a few are dropped at random). No labels are needed: a few batches of training images do.

    It is meant for supernets of which all candidates have been trained together (`path_dropout`).
    BatchNorm has the statistics of each batch, all other layers are in evaluation mode. The
    supernet is not changed.

    Raises ValueError without images, and where outputs of candidates have no sum."""
    if not isinstance(net, Supernet):
        raise ValueError(f"agreement got a {type(net).__name__}; expected a mnas.Supernet")
    parts = batches(images, batch_size)
    twin = _in_batches(net)
    sums = [0.0] * len(paths)
    for x in parts:
        whole = _all_on(twin, x)
        for number, logits in enumerate(twin.forward_paths(x, paths)):
            sums[number] += float(divergence(logits, whole).sum())
    return [total / len(images) for total in sums]


def _in_batches(net: Supernet) -> Supernet:
    """A copy whose BatchNorm has the statistics of each batch; evaluation mode else."""
    twin = copy.deepcopy(net).eval()
    for layer in twin.modules():
        if isinstance(layer, _BatchNorm):
            layer.train()
    return twin


def _all_on(twin: Supernet, x: Tensor) -> Tensor:
    return twin(x, twin.space.everything())


@torch.no_grad()
def everything(net: Supernet, images: Tensor) -> Tensor:
    """Logits (N, classes) of the network with all candidates on, their outputs summed, for images
    (N, C, H, W); BatchNorm has the statistics of batches of 500. The supernet is not changed.

    Raises ValueError or RuntimeError where outputs of candidates have no sum."""
    twin = _in_batches(net)
    return torch.cat([_all_on(twin, x) for x in images.split(BATCH)])


def divergence(logits: Tensor, others: Tensor) -> Tensor:
    """The symmetric Kullback-Leibler divergence of the softmax of logits (B, classes) and of those
    of others, in nats (B,)."""
    own, whole = F.log_softmax(logits, 1), F.log_softmax(others, 1)
    return ((own.exp() - whole.exp()) * (own - whole)).sum(1)
