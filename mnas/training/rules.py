"""Training rules: what one step of the optimizer learns from.

A rule is a function of one `Step`. It runs paths on the batch, makes the backward passes, whose
gradients add up, and returns a `Report`. The trainer has reset the gradients before, and makes the
one step of the optimizer after it; it knows nothing else of a rule.

What rules of the field need, and where it is:
1. several paths in one step: `Step.logits`, and a backward pass of any sum of losses;
2. a loss that sees other paths: all logits and losses are at hand before the backward pass;
3. a learning rate of this step alone: `Report.lr`;
4. a key of optimizer state: `Report.state_key`;
5. feedback to the sampler: `Step.sampler`, whose state is a part of checkpoints."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mnas.freeze.optimizer import MaskedOptimizer
from mnas.networks.cost import cost, extremes, size
from mnas.space.sampler import Sampler
from mnas.space.search_space import Path, SearchSpace
from mnas.space.supernet import Supernet


@dataclass(frozen=True)
class Step:
    """What a rule is given. net: the supernet, in train mode, or one network. images (B, C, H, W),
    labels (B,). loss: of logits (B, classes) and labels, a mean over the batch. progress: the share
    of the training that is done, 0 in the first step and below 1 in the last. forward: logits of
    images along one path. bf16: whether that is computed in bfloat16."""

    net: nn.Module
    images: Tensor
    labels: Tensor
    sampler: Sampler
    loss: Callable[[Tensor, Tensor], Tensor]
    progress: float
    forward: Callable[[Tensor, Path], Tensor]
    bf16: bool = False

    def logits(self, paths: Sequence[Path]) -> list[Tensor]:
        """Of each path (B, classes), with gradients. What several have in common up to their first
        difference is computed once; a layer that they share updates its statistics once, too."""
        device = self.images.device.type
        with torch.autocast(device, torch.bfloat16) if self.bf16 else contextlib.nullcontext():
            if len(paths) == 1:
                found = [self.forward(self.images, paths[0])]
            else:
                found = self.net.forward_paths(self.images, paths)
        return [y.float() if y.dtype == torch.bfloat16 else y for y in found]


class Report(NamedTuple):
    """What a rule tells the trainer. losses: of each path that it trained, its loss on the labels,
    whatever else it learned from. total: of what the gradients are. lr: the learning rate of this
    step is so many times that of the schedule. state_key: momentum and other state of the optimizer
    are those of the steps with this key alone (`MaskedOptimizer.use_state`)."""

    losses: list[tuple[Path, Tensor]]
    total: Tensor
    lr: float = 1.0
    state_key: str | None = None

    @contextlib.contextmanager
    def scaled(self, optimizer: torch.optim.Optimizer) -> Iterator[None]:
        """The optimizer with its learning rates and state of this step.

        Raises ValueError for a key that the optimizer cannot have."""
        if isinstance(optimizer, MaskedOptimizer):
            optimizer.use_state(self.state_key)
        elif self.state_key is not None:
            raise ValueError(
                f"state_key={self.state_key!r} of a {type(optimizer).__name__}; expected a "
                "mnas.MaskedOptimizer"
            )
        rates = [group["lr"] for group in optimizer.param_groups]
        try:
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * self.lr
            yield
        finally:
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate


def single_path(step: Step) -> Report:
    """One path of the sampler (Guo et al., ECCV 2020)."""
    path = next(step.sampler)
    (logits,) = step.logits([path])
    loss = step.loss(logits, step.labels)
    loss.backward()
    return Report([(path, loss.detach())], loss.detach())


def fair(step: Step) -> Report:
    """Strict fairness (Chu et al., ICCV 2021, algorithm 1): as many paths of a fair
    sampler as the longest decision has values, so that each value of it is used once; gradients
    added up, one step of the optimizer.

    A shorter decision deals its values on and on: each is used in every step, some once more than
    the others, and all equally often over steps. One path is in memory at a time; none shares a
    prefix with another, for they part at the first choice."""
    losses = []
    for _ in range(max(map(len, step.net.space.indices))):
        path = next(step.sampler)
        (logits,) = step.logits([path])
        loss = step.loss(logits, step.labels)
        loss.backward()
        losses.append((path, loss.detach()))
    return Report(losses, torch.stack([loss for _, loss in losses]).sum())


def sandwich(step: Step, *, random_paths: int = 2) -> Report:
    """The largest network, the smallest and some at random (Yu and Huang, ICCV 2019, "The Sandwich
    Rule"): the largest learns from the labels, the others from its softmax, through which no
    gradient goes (there, "Inplace Distillation"; Yu et al., ECCV 2020, section 3). The sum of the
    losses; one step.

    Candidates are in no order of size: largest and smallest are the dearest and the cheapest
    network (`mnas.networks.extremes`). A random path may be one of them. The rule alone: BigNAS
    also regularises the largest network only, starts residual blocks at 0 and ends with a constant
    learning rate."""
    ran = _sandwich(step, random_paths)
    ran.total.backward()
    return ran.report()


class _Sandwich(NamedTuple):
    """paths: the largest, the smallest, the random ones. losses: of each on the labels."""

    paths: list[Path]
    losses: list[Tensor]
    total: Tensor

    def report(self, total: Tensor | None = None) -> Report:
        losses = [loss.detach() for loss in self.losses]
        total = self.total if total is None else total
        return Report(list(zip(self.paths, losses, strict=True)), total.detach())


def _sandwich(step: Step, random_paths: int) -> _Sandwich:
    smallest, largest = extremes(step.net.space)
    paths = [largest, smallest, *(next(step.sampler) for _ in range(random_paths))]
    of_largest, *others = step.logits(paths)
    losses = [step.loss(logits, step.labels) for logits in (of_largest, *others)]
    soft = [distance(logits, of_largest.detach()) for logits in others]
    return _Sandwich(paths, losses, losses[0] + torch.stack(soft).sum())


def distance(logits: Tensor, of_teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """The Kullback-Leibler divergence of the softmax of logits (B, classes) from that of the
    teacher's, a mean over the batch in nats, both at a temperature. Its gradient is that of the
    cross-entropy with the teacher's softmax, which papers write."""
    return F.kl_div(
        F.log_softmax(logits / temperature, 1),
        F.log_softmax(of_teacher / temperature, 1),
        reduction="batchmean",
        log_target=True,
    )


def distilled(
    step: Step, *, teacher: nn.Module, temperature: float = 1.0, distill_weight: float = 0.5
) -> Report:
    """One path of the sampler that learns from labels and from a teacher (Hinton et al., 2015,
    section 2): (1 - w) loss + w T^2 divergence at temperature T.

    teacher: images (B, C, H, W) to logits (B, classes), in evaluation mode. It is not trained."""
    path = next(step.sampler)
    (logits,) = step.logits([path])
    with torch.no_grad():
        taught = teacher(step.images)
    loss = step.loss(logits, step.labels)
    soft = temperature**2 * distance(logits, taught, temperature)
    total = (1 - distill_weight) * loss + distill_weight * soft
    total.backward()
    return Report([(path, loss.detach())], total.detach())


def path_dropout(step: Step, *, drop: float = 0.5, ghost: int = 32) -> Report:
    """All candidates at once, their outputs summed, each dropped with some probability (Bender et
    al., ICML 2018, on training the one-shot model): of k values of a decision each with r^(1/k), so
    that all of them would go with probability r, which rises linearly from 0 to `drop`; then one
    stays here. There the rate of a candidate itself rises linearly; here it is r^(1/k) all along,
    which rises faster at first.

    What is dropped does not run, and is not trained. The batch runs in parts of `ghost` images at
    most, each with a draw and with BatchNorm statistics of its own; gradients add up to those of
    the mean over the batch. A candidate that several values of its decisions give is added as often
    as they are kept. Draws come from the sampler's generator."""
    size, parts = len(step.labels), -(-len(step.labels) // ghost)
    total = torch.zeros((), device=step.labels.device)
    for images, labels in zip(
        step.images.tensor_split(parts), step.labels.tensor_split(parts), strict=True
    ):
        part = replace(step, images=images, labels=labels)
        (logits,) = part.logits([kept(step, drop * step.progress)])
        loss = step.loss(logits, labels) * (len(labels) / size)
        loss.backward()
        total = total + loss.detach()
    return Report([], total)


def kept(step: Step, rate: float) -> tuple[int | Tensor, ...]:
    """For each decision 1 for a value that stays, 0 for one that is dropped: the weights of a
    mixture. The index of the one that a restricted space leaves."""
    found: list[int | Tensor] = []
    space, generator = step.net.space, step.sampler.generator
    for position, decision in enumerate(space.decisions):
        if position in space.fixed:
            found.append(space.fixed[position])
            continue
        stays = torch.rand(len(decision), generator=generator) >= rate ** (1 / len(decision))
        if not stays.any():
            stays[torch.randint(len(decision), (), generator=generator)] = True
        found.append(stays.to(torch.get_default_dtype()))
    return tuple(found)


def mixes(space: SearchSpace) -> None:
    """Raise ValueError where the outputs of the candidates have no sum."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        inputs = space.inputs(2)
        try:
            Supernet(space).eval()(*inputs.args, path=space.everything(), **inputs.kwargs)
        except (RuntimeError, ValueError) as error:
            raise ValueError(
                f"space {space.name} cannot run all candidates at once "
                f"({' '.join(str(error).split())}); choose another rule"
            ) from error


def ranked(step: Step, *, random_paths: int = 2, rank_weight: float = 1.0) -> Report:
    """A sandwich whose first two random paths are also to be in the order that their cost lets one
    expect: the dearer is to have the smaller loss on the labels. Where it has not, relu(L_dearer -
    L_cheaper) is added, whose gradient lowers the one and raises the other, times a weight that
    rises linearly from 0 to `rank_weight`. Costs are those of `extremes`; equal ones have no order.

    The loss is that of Yu et al. (CVPR 2021, "Landmark Regularization"), beside other training:
    there it orders some tens of fixed networks of known accuracies, and in the authors' code its
    weight is constant or rises as a cosine. The order by cost is that of solutions of the CVPR 2022
    NAS competition, whose code lets no gradient through the cheaper one's loss."""
    ran = _sandwich(step, random_paths)
    first, second = (
        (size(step.net.space, path), loss)
        for path, loss in zip(ran.paths[2:4], ran.losses[2:4], strict=True)
    )
    total = ran.total
    if first[0] != second[0]:
        (_, cheaper), (_, dearer) = sorted((first, second), key=lambda pair: pair[0])
        total = total + rank_weight * step.progress * F.relu(dearer - cheaper)
    total.backward()
    return ran.report(total)


def dynamic(
    step: Step,
    *,
    decay_smallest: float = 4.0,
    decay_largest: float = 0.25,
    momentum_groups: int = 1,
) -> Report:
    """One path of the sampler, with a learning rate by its size: small networks, which learn fast,
    decay early, and large ones late (Jeon et al., CVPR 2025, "Subnet-Aware Dynamic Supernet
    Training"): there lr0 (1 - t)^g at progress t, with g linear in the logarithm of the number of
    parameters, from `decay_smallest` to `decay_largest`.

    Here the schedule is the recipe's, times (1 - t)^(g - 1): under a linear decay to 0 that is the
    same, and a path with g = 1 trains as without the rule.

    momentum_groups: momentum apart for so many groups of paths, equal parts of the range of that
    logarithm. There the groups are the candidates of one layer."""
    path = next(step.sampler)
    (logits,) = step.logits([path])
    loss = step.loss(logits, step.labels)
    loss.backward()
    space = step.net.space
    low, high, own = (
        math.log(max(1, cost(space, p).params)) for p in (*extremes(space, "params"), path)
    )
    share = min(1.0, max(0.0, (own - low) / (high - low))) if high > low else None
    power = 1.0 if share is None else decay_smallest + share * (decay_largest - decay_smallest)
    key = None
    if momentum_groups > 1:
        key = str(min(momentum_groups - 1, int((share or 0.0) * momentum_groups)))
    lr = (1 - step.progress) ** (power - 1)
    return Report([(path, loss.detach())], loss.detach(), lr, key)
