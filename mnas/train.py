"""One training loop, for a supernet and for a network trained from scratch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mnas.data import Split, shifted
from mnas.evaluate import Score, evaluate, evaluate_paths
from mnas.export import standalone
from mnas.optim import MaskedOptimizer
from mnas.sampler import SAMPLERS, FixedSampler, Sampler
from mnas.space import Path, SearchSpace
from mnas.supernet import Supernet

WATCHED = 16  # networks of a larger space that are validated and tested: as many, drawn by the seed
BN_IMAGES = 2_000  # the first training images, for recalibrated statistics


@dataclass(frozen=True)
class Recipe:
    """SGD with Nesterov momentum under a one-cycle learning rate (Smith and Topin, 2019) that peaks at `lr`.

    epochs: may end within one, as in 0.25. precision: "fp32", or "bf16" for bfloat16 in the forward and backward pass
    with weights and loss in float32. augment: "none", or "shift" for pictures moved by up to two pixels, each its own
    way. validate_every: epochs between validations; there is one at the end in any case.
    """

    epochs: float
    batch_size: int = 128
    lr: float = 0.08
    momentum: float = 0.9
    weight_decay: float = 5e-4
    precision: str = "fp32"
    augment: str = "none"
    validate_every: int = 1


class DivergedError(ArithmeticError):
    """The loss became NaN or infinite."""


class Trainer:
    """Trains `module`, one optimizer step and one sampled path at a time, and validates after every epoch.

    forward: logits of a batch along a path. score: the scores of the networks to watch, by architecture, on the
    pictures of a split. The state between two steps is complete: a loaded copy continues bit for bit.
    """

    def __init__(
        self,
        space: SearchSpace,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        sampler: Sampler,
        forward: Callable[[Tensor, Path], Tensor],
        score: Callable[[Split], dict[str, Score]],
        train: Split,
        validation: Split,
        recipe: Recipe,
        shuffle_seed: int,
    ) -> None:
        self.space, self.module, self.optimizer, self.sampler = space, module, optimizer, sampler
        self.forward, self.score, self.train, self.validation = forward, score, train, validation
        self.recipe = recipe
        self.batch_size = min(recipe.batch_size, len(train))
        self.steps_per_epoch = len(train) // self.batch_size  # the rest of an epoch's shuffle is left out
        self.total_steps = max(1, round(recipe.epochs * self.steps_per_epoch))
        self.scheduler = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=recipe.lr, total_steps=self.total_steps, cycle_momentum=False
        )
        self.step = 0
        self.rows: list[dict[str, Any]] = []
        self._shuffler = torch.Generator().manual_seed(shuffle_seed)
        self._epoch_start = self._shuffler.get_state()
        self._order = torch.empty(0, dtype=torch.int64)
        self._loss_sums: dict[str, float] = {}  # since the last validation, by architecture
        self._updates: dict[str, int] = {}  # since the start, by architecture
        self._updates_before: dict[str, int] = {}  # those before the last validation

    @property
    def epoch(self) -> float:
        """Epochs so far; whole ones as an int."""
        whole, rest = divmod(self.step, self.steps_per_epoch)
        return whole + round(rest / self.steps_per_epoch, 4) if rest else whole

    @property
    def due(self) -> bool:
        """Whether an epoch has just ended, or the training."""
        return self.step > 0 and (self.finished or self.step % self.steps_per_epoch == 0)

    @property
    def finished(self) -> bool:
        return self.step == self.total_steps

    def advance(self) -> float:
        """One optimizer step; when a validation is due also one row of metrics per network. Returns the loss.

        Raises DivergedError, before anything is changed, if the loss is not finite.
        """
        position = self.step % self.steps_per_epoch
        if position == 0:
            self._begin_epoch()
        batch = self._order[position * self.batch_size : (position + 1) * self.batch_size]
        path = next(self.sampler)
        self.module.train()
        self.optimizer.zero_grad()
        images = self.train.images[batch]
        if self.recipe.augment == "shift":
            images = shifted(images)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.recipe.precision == "bf16"):
            logits = self.forward(images, path)
        loss = F.cross_entropy(logits.float(), self.train.labels[batch])
        value = loss.item()
        arch = self.space.format(path)
        if not math.isfinite(value):
            raise DivergedError(f"loss is {value} at step {self.step + 1} on path {arch}; lower --lr (another --out)")
        loss.backward()
        self.optimizer.step()
        self.scheduler.step()
        self.step += 1
        self._loss_sums[arch] = self._loss_sums.get(arch, 0.0) + value
        self._updates[arch] = self._updates.get(arch, 0) + 1
        if self.due:
            self._end_epoch()
        return value

    def state_dict(self) -> dict[str, Any]:
        return {
            "weights": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "sampler": self.sampler.state_dict(),
            "epoch_start": self._epoch_start,
            "random": torch.get_rng_state(),
            "step": self.step,
            "rows": self.rows,
            "loss_sums": self._loss_sums,
            "updates": self._updates,
            "updates_before": self._updates_before,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where the state was taken. The trainer must have been made with the same arguments."""
        self.module.load_state_dict(state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.sampler.load_state_dict(state["sampler"])
        self.step, self.rows = state["step"], list(state["rows"])
        self._loss_sums = dict(state["loss_sums"])
        self._updates, self._updates_before = dict(state["updates"]), dict(state["updates_before"])
        self._epoch_start = state["epoch_start"]
        self._shuffler.set_state(self._epoch_start)
        if self.step % self.steps_per_epoch:
            self._begin_epoch()
        torch.set_rng_state(state["random"])

    def _begin_epoch(self) -> None:
        self._epoch_start = self._shuffler.get_state()
        self._order = torch.randperm(len(self.train), generator=self._shuffler)

    def _end_epoch(self) -> None:
        if self.step % self.steps_per_epoch == 0:
            self._epoch_start = self._shuffler.get_state()
        if self.epoch % self.recipe.validate_every and not self.finished:
            return
        for arch, score in self.score(self.validation).items():
            steps = self._updates.get(arch, 0) - self._updates_before.get(arch, 0)
            self.rows.append(
                {
                    "epoch": self.epoch,
                    "step": self.step,
                    "arch": arch,
                    "updates": self._updates.get(arch, 0),
                    "train_loss": self._loss_sums[arch] / steps if steps else None,
                    "val_top1": score.top1,
                    "val_loss": score.loss,
                }
            )
        self._loss_sums, self._updates_before = {}, dict(self._updates)


def supernet_trainer(
    space: SearchSpace,
    train: Split,
    validation: Split,
    recipe: Recipe,
    seed: int,
    execution: str = "sliced",
    sampler: str = "uniform",
    bn: str = "stored",
    policy: str = "frozen",
    watched: list[Path] | None = None,
) -> Trainer:
    """Single-path one-shot training: a path is sampled for each step, and only what it uses is updated.

    bn: the running statistics that networks are scored with, "stored" in the supernet or "recalibrate"d for each.
    policy: of the MaskedOptimizer; under "torch", stock momentum and decay go on in what a step does not use. watched:
    the networks to score; by default all, or 16 of a larger space.
    """
    init_seed, sampler_seed, shuffle_seed = _seeds(seed)
    torch.manual_seed(init_seed)
    net = Supernet(space, execution)
    optimizer = MaskedOptimizer(torch.optim.SGD, net, policy=policy, **_options(recipe))
    if watched is None:
        watched = list(space.paths()) if space.size <= WATCHED else _draw(space, WATCHED, sampler_seed)

    def score(split: Split) -> dict[str, Score]:
        bn_images = train.images[:BN_IMAGES] if bn == "recalibrate" else None
        scores = evaluate_paths(net, watched, split.images, split.labels, bn_images=bn_images)
        return dict(zip(map(space.format, watched), scores, strict=True))

    paths = SAMPLERS[sampler](space, sampler_seed)
    return Trainer(space, net, optimizer, paths, net, score, train, validation, recipe, shuffle_seed)


def scratch_trainer(
    space: SearchSpace,
    path: Path,
    train: Split,
    validation: Split,
    recipe: Recipe,
    seed: int,
    start: dict[str, Tensor] | None = None,
) -> Trainer:
    """One network of the space by itself, with the stock optimizer: no mnas in the loop.

    start: the state dict that it begins with, as that of an exported network; by default a random start.
    """
    init_seed, _, shuffle_seed = _seeds(seed)
    torch.manual_seed(init_seed)
    network = standalone(space, path)
    if start is not None:
        network.load_state_dict(start)
    optimizer = torch.optim.SGD(network.parameters(), **_options(recipe))

    def score(split: Split) -> dict[str, Score]:
        return {space.format(path): evaluate(network, split.images, split.labels)}

    def forward(x: Tensor, _: Path) -> Tensor:
        return network(x)

    sampler = FixedSampler(path)
    return Trainer(space, network, optimizer, sampler, forward, score, train, validation, recipe, shuffle_seed)


def _draw(space: SearchSpace, number: int, seed: int) -> list[Path]:
    """So many different paths, in order."""
    generator = torch.Generator().manual_seed(seed)
    paths: set[Path] = set()
    while len(paths) < number:
        paths.add(space.sample(generator))
    return sorted(paths)


def _seeds(seed: int) -> list[int]:
    """Independent seeds for the random start, the sampler and the shuffling."""
    return [int(s) for s in np.random.SeedSequence(seed).generate_state(3)]


def _options(recipe: Recipe) -> dict[str, Any]:
    return {"lr": recipe.lr, "momentum": recipe.momentum, "weight_decay": recipe.weight_decay, "nesterov": True}
