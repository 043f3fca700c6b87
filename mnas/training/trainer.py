"""One training loop, for a supernet and for a network trained from scratch."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mnas.freeze.optimizer import MaskedOptimizer
from mnas.networks.evaluate import Score, evaluate, evaluate_paths
from mnas.networks.export import export, standalone
from mnas.space.sampler import SAMPLERS, FixedSampler, Sampler
from mnas.space.search_space import Path, SearchSpace
from mnas.space.supernet import Supernet
from mnas.training.batches import Batches, InMemory, batches_of
from mnas.training.checks import DivergedError, agreed, check_splits, check_state, checked_paths
from mnas.training.data import Split
from mnas.training.loop import USUAL, Loop
from mnas.training.processes import ALONE, Processes, state_of
from mnas.training.recipe import Recipe, one_of, setting
from mnas.training.registry import RULES, Bound, bound
from mnas.training.rules import Report, Step

__all__ = ["DivergedError", "Recipe", "Trainer", "scratch_trainer", "supernet_trainer"]
WATCHED = 16  # networks of a larger space that are validated and tested: as many, drawn by the seed
BN_IMAGES = 2_000  # the first training images, for recalibrated statistics


class Trainer:
    """Trains `module`, one optimizer step at a time, and validates after every epoch.

    forward: logits of a batch along a path. score: the scores of the networks to watch, by
    architecture, on the images of a split. train: images in memory, or batches that are loaded.
    rule: which paths a step runs, and what it learns from them. loop: the schedule, the loss, and
    what is called on the way. The state between two steps is complete: a loaded copy continues bit
    for bit. The module is where the validation split is, on any device; shuffling and sampling draw
    on the CPU. processes: those that share every batch; each makes a trainer with the same
    arguments, and calls the same methods at the same time.

    Raises ValueError for a batch that the processes cannot share equally.
    """

    def __init__(
        self,
        space: SearchSpace,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        sampler: Sampler,
        forward: Callable[[Tensor, Path], Tensor],
        score: Callable[[Split], dict[str, Score]],
        train: Split | Batches,
        validation: Split,
        recipe: Recipe,
        shuffle_seed: int,
        rule: Bound | None = None,
        processes: Processes = ALONE,
        loop: Loop = USUAL,
    ) -> None:
        self.rule = rule or bound("single_path", space)
        self.space, self.module, self.optimizer, self.sampler = space, module, optimizer, sampler
        self.forward, self.score, self.train, self.validation = forward, score, train, validation
        self.recipe, self.processes, self.loop = recipe, processes, loop
        self.batches = batches_of(train, recipe, shuffle_seed, validation.images.device)
        if isinstance(self.batches, InMemory):
            processes.check_share(self.batches.batch_size)
        processes.equal(state_of(module), patient=True)
        self.steps_per_epoch = self.batches.number
        self.total_steps = max(1, round(recipe.epochs * self.steps_per_epoch))
        self.scheduler = loop.schedule_of(optimizer, self.total_steps)
        self.step = 0
        self.loss = math.nan
        """The mean of the paths of the last step."""
        self.rows: list[dict[str, Any]] = []
        self._loss_sums: dict[str, float] = {}  # since the last validation, by architecture
        self._updates: dict[str, int] = {}  # since the start, by architecture
        self._updates_before: dict[str, int] = {}  # those before the last validation

    @property
    def _on_gpu(self) -> bool:
        """Whether random numbers of the network's own, as of dropout, come from a GPU."""
        return self.validation.images.is_cuda

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
    def epochs_left(self) -> int:
        """That have not ended; the last one may be a part."""
        return math.ceil((self.total_steps - self.step) / self.steps_per_epoch)

    @property
    def finished(self) -> bool:
        return self.step == self.total_steps

    def advance(self) -> float:
        """One optimizer step; when a validation is due also one row of metrics per network. Returns
        the mean loss of the paths that were trained.

        Raises DivergedError, before any weight is changed, if a loss is not finite.
        """
        images, labels = self.batches.batch(self._position)
        self.processes.check_share(len(images))
        self.module.train()
        self.optimizer.zero_grad()
        report = self.rule(
            Step(
                self.module,
                self.processes.share(images),
                self.processes.share(labels),
                self.sampler,
                self.loop.loss,
                self.step / self.total_steps,
                self.forward,
                self.recipe.precision == "bf16",
            )
        )
        losses, total, lr = agreed(
            report, self.space, self.processes, self.rule.name, self.step + 1
        )
        self.processes.average(p for g in self.optimizer.param_groups for p in g["params"])
        self.processes.equal(self.module.buffers())  # as DistributedDataParallel does
        for callback in self.loop.callbacks:
            callback.before_step(self)
        with report._replace(lr=lr).scaled(self.optimizer):
            self.optimizer.step()
        self.scheduler.step()
        self.step += 1
        for arch, value in losses:
            self._loss_sums[arch] = self._loss_sums.get(arch, 0.0) + value
            self._updates[arch] = self._updates.get(arch, 0) + 1
        self.loss = sum(v for _, v in losses) / len(losses) if losses else total
        for callback in self.loop.callbacks:
            callback.after_step(self, dict(losses))
        if self.due:
            self._end_epoch()
        return self.loss

    @property
    def _position(self) -> int:
        """Of the next batch in its epoch."""
        return self.step % self.steps_per_epoch

    @property
    def _paths(self) -> int | None:
        """As many are trained in a step, by all processes together; None if that is unknown."""
        each = self.rule.paths
        return each and each * (self.processes.world if self.processes.own_paths else 1)

    def state_dict(self) -> dict[str, Any]:
        return {
            "weights": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "sampler": self._samplers(),
            **self.batches.state_dict(self._position),
            "random": torch.get_rng_state(),
            **({"random_cuda": torch.cuda.get_rng_state()} if self._on_gpu else {}),
            "step": self.step,
            "rows": self.rows,
            "loss_sums": self._loss_sums,
            "updates": self._updates,
            "updates_before": self._updates_before,
            **({"callbacks": called} if any(called := self._callbacks()) else {}),
        }

    def _callbacks(self) -> list[dict[str, Any]]:
        return [callback.state_dict() for callback in self.loop.callbacks]

    def _samplers(self) -> dict[str, Any]:
        """The state of the sampler; of several by the process that draws from it."""
        own = self.sampler.state_dict()
        if not self.processes.own_paths:
            return own
        return {str(rank): state for rank, state in enumerate(self.processes.gathered(own))}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where the state was taken. The trainer must have been made with the same
        arguments.

        Raises ValueError for a state that cannot be its own; then the trainer is as it was.
        """
        before = copy.deepcopy(self.state_dict())
        try:
            check_state(state, self.state_dict(), self._paths, self.total_steps)
            self._load(state)
        except Exception as error:  # whatever torch, a sampler or a damaged value raise
            self._load(before)
            reason = " ".join(str(error).split())
            raise ValueError(
                f"the state is not of this training: {reason}; give it the same arguments"
            ) from error

    def _load(self, state: Mapping[str, Any]) -> None:
        self.module.load_state_dict(state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        own = self.processes.own_paths
        sampler = state["sampler"][str(self.processes.rank)] if own else state["sampler"]
        self.sampler.load_state_dict(sampler)
        self.step, self.rows = state["step"], list(state["rows"])
        self._loss_sums = dict(state["loss_sums"])
        self._updates, self._updates_before = dict(state["updates"]), dict(state["updates_before"])
        self.batches.load_state_dict(state, self._position)
        if "callbacks" in state:
            for callback, its in zip(self.loop.callbacks, state["callbacks"], strict=True):
                callback.load_state_dict(its)
        torch.set_rng_state(state["random"])
        if self._on_gpu:
            torch.cuda.set_rng_state(state["random_cuda"])

    def _end_epoch(self) -> None:
        if self.epoch % self.recipe.validate_every and not self.finished:
            return
        scores = self.score(self.validation) if self.processes.first else None
        before = len(self.rows)
        for arch, score in self.processes.of_first(scores).items():
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
        for callback in self.loop.callbacks:
            callback.after_validation(self, self.rows[before:])


def supernet_trainer(
    space: SearchSpace,
    train: Split | Batches,
    validation: Split,
    recipe: Recipe,
    seed: int,
    execution: str = "sliced",
    sampler: str | None = None,
    bn: str = "stored",
    policy: str = "frozen",
    watched: list[Path] | None = None,
    rule: str | Callable[[Step], Report] = "single_path",
    rule_options: Mapping[str, Any] | None = None,
    processes: Processes = ALONE,
    start: dict[str, Tensor] | None = None,
    loop: Loop = USUAL,
) -> Trainer:
    """One-shot training: by default a path is sampled for each step, and only what it uses is
    updated. Of a restricted space, that is a sub-supernet (`SearchSpace.restricted`).

    sampler: by default the one that the rule is made for, else "uniform". bn: the running
    statistics that networks are scored with, "stored" in the supernet or "recalibrate"d for each.
    policy: of the MaskedOptimizer; under "torch", stock momentum and decay go on in what a step
    does not use. watched: the networks to score; by default all, or 16 of a larger space. rule: a
    name (`mnas.training.registry.RULES`), or a function of a `Step` of your own. rule_options: of a
    named one. processes: that share each batch. start: the state dict of a supernet of the same
    space that it begins with; by default a random start. loop: an optimizer, a schedule or a loss
    of your own, and callbacks. train: images in memory, or a loader of batches (`Batches`); then
    the network is where the validation split is.

    Raises ValueError for arguments that do not fit.
    """
    check_splits(space, train, validation)
    one_of("bn", bn, ("stored", "recalibrate"))
    if sampler is None:
        own = RULES.get(rule) if isinstance(rule, str) else None
        sampler = (own and own.sampler) or "uniform"
    one_of("sampler", sampler, SAMPLERS)
    rule = bound(rule, space, sampler, rule_options)
    watched = None if watched is None else checked_paths(space, watched)
    init_seed, sampler_seed, shuffle_seed = _seeds(seed)
    torch.manual_seed(init_seed)
    net = Supernet(space, execution)
    _begin(net, start, f"a supernet of space {space.name}")
    net.to(validation.images.device)
    options = _options(recipe)
    optimizer = loop.optimizer_of(
        net, lambda: MaskedOptimizer(torch.optim.SGD, net, policy=policy, **options)
    )
    if watched is None:
        watched = (
            list(space.paths()) if space.size <= WATCHED else _draw(space, WATCHED, sampler_seed)
        )

    bn_images: Tensor | None = None

    def score(split: Split) -> dict[str, Score]:
        scores = evaluate_paths(net, watched, split.images, split.labels, bn_images=bn_images)
        return dict(zip(map(space.format, watched), scores, strict=True))

    if processes.own_paths and not processes.first:
        sampler_seed = _seeds(seed, processes.rank)[1]
    paths = SAMPLERS[sampler](space, sampler_seed)
    splits, last = (train, validation), (recipe, shuffle_seed, rule, processes, loop)
    trainer = Trainer(space, net, optimizer, paths, net, score, *splits, *last)
    if bn == "recalibrate":
        bn_images = trainer.batches.first(BN_IMAGES)
    return trainer


def scratch_trainer(
    space: SearchSpace,
    path: Path,
    train: Split | Batches,
    validation: Split,
    recipe: Recipe,
    seed: int,
    start: dict[str, Tensor] | None = None,
    rule: str | Callable[[Step], Report] = "single_path",
    rule_options: Mapping[str, Any] | None = None,
    processes: Processes = ALONE,
    loop: Loop = USUAL,
) -> Trainer:
    """One network of the space by itself, with the stock optimizer: no mnas in the loop.

    start: the state dict that it begins with, as that of an exported network; by default a random
    start. rule: as of `supernet_trainer`, of those that train one path. processes, loop, train: as
    there.

    Raises ValueError for arguments that do not fit.
    """
    check_splits(space, train, validation)
    path = space.check(path)
    rule = bound(rule, space, None, rule_options, alone=True)
    init_seed, _, shuffle_seed = _seeds(seed)
    torch.manual_seed(init_seed)
    # With a start it makes no difference how the network would begin.
    network = standalone(space, path) if start is None else export(Supernet(space), path)
    _begin(network, start, space.format(path))
    network.to(validation.images.device)  # before the optimizer, whose state follows its parameters
    options = _options(recipe)
    optimizer = loop.optimizer_of(network, lambda: torch.optim.SGD(network.parameters(), **options))

    def score(split: Split) -> dict[str, Score]:
        return {space.format(path): evaluate(network, split.images, split.labels)}

    def forward(x: Tensor, _: Path) -> Tensor:
        return network(x)

    sampler = FixedSampler(path)
    splits, last = (train, validation), (recipe, shuffle_seed, rule, processes, loop)
    return Trainer(space, network, optimizer, sampler, forward, score, *splits, *last)


def _begin(module: nn.Module, start: dict[str, Tensor] | None, what: str) -> None:
    """With these weights, if there are any. Raises ValueError where they do not fit."""
    try:
        if start is not None:
            module.load_state_dict(start)
    except (AttributeError, RuntimeError, TypeError) as error:
        raise ValueError(f"start does not fit {what}: {' '.join(str(error).split())}") from error


def _draw(space: SearchSpace, number: int, seed: int) -> list[Path]:
    """So many different paths, in order."""
    generator = torch.Generator().manual_seed(seed)
    paths: set[Path] = set()
    while len(paths) < number:
        paths.add(space.sample(generator))
    return sorted(paths)


def _seeds(seed: int, rank: int = 0) -> list[int]:
    """Independent seeds for the random start, the sampler and the shuffling. rank: another process,
    for a sampler of its own."""
    seed = setting("seed", seed, int, "a whole number, 0 or above", lambda v: v >= 0)
    return [
        int(s) for s in np.random.SeedSequence([seed, rank] if rank else seed).generate_state(3)
    ]


def _options(recipe: Recipe) -> dict[str, Any]:
    if not isinstance(recipe, Recipe):
        raise ValueError(f"recipe is a {type(recipe).__name__}; expected a mnas.train.Recipe")
    nesterov = recipe.momentum > 0  # torch refuses it without momentum, where it changes nothing
    return {
        "lr": recipe.lr,
        "momentum": recipe.momentum,
        "weight_decay": recipe.weight_decay,
        "nesterov": nesterov,
    }
