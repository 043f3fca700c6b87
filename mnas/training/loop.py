"""What of a training is the user's own: its optimizer, schedule and loss, and what is called on the
way.

    loop = Loop(
        optimizer=lambda net: mnas.MaskedOptimizer(torch.optim.AdamW, net, lr=1e-3),
        schedule=torch.optim.lr_scheduler.CosineAnnealingLR,
        loss=nn.CrossEntropyLoss(label_smoothing=0.1),
    )
    trainer = supernet_trainer(space, train, validation, recipe, seed=0, loop=loop)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR, ReduceLROnPlateau

if TYPE_CHECKING:
    from mnas.training.trainer import Trainer


class Callback:
    """What is called on the way; each method does nothing unless it is overridden. It may look at
    all of the trainer, and change the module and the optimizer."""

    def before_step(self, trainer: Trainer) -> None:
        """Gradients are there, those of all processes together; to clip them, for example."""

    def after_step(self, trainer: Trainer, losses: dict[str, float]) -> None:
        """`trainer.step` counts this one. losses: of the networks that it has trained, by
        architecture."""

    def after_validation(self, trainer: Trainer, rows: list[dict[str, Any]]) -> None:
        """rows: one for each network that was scored: `epoch`, `step`, `arch`, `updates`,
        `train_loss`, `val_top1`, `val_loss`."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must have of it, in types that `torch.load(weights_only=True)` reads;
        empty for nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with what `state_dict` gave."""


def one_cycle(optimizer: torch.optim.Optimizer, steps: int) -> LRScheduler:
    """One cycle (Smith and Topin, 2019) that peaks at the optimizer's own learning rates."""
    peaks = [group["lr"] for group in optimizer.param_groups]
    return OneCycleLR(optimizer, max_lr=peaks, total_steps=steps, cycle_momentum=False)


@dataclass(frozen=True)
class Loop:
    """optimizer: makes one for the module to train, a supernet or one network; by default SGD as
    the recipe says, under masks for a supernet. schedule: makes one for an optimizer and the number
    of steps; it is stepped after each. loss: of logits (B, classes) and the labels of a batch, a
    mean over it. callbacks: called in this order."""

    optimizer: Callable[[nn.Module], torch.optim.Optimizer] | None = None
    schedule: Callable[[torch.optim.Optimizer, int], LRScheduler] = one_cycle
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy
    callbacks: Sequence[Callback] = ()

    def __post_init__(self) -> None:
        for name in ("optimizer", "schedule", "loss"):
            value = getattr(self, name)
            if not (callable(value) or (name == "optimizer" and value is None)):
                raise ValueError(f"{name} is a {type(value).__name__}; expected a function")
        for callback in self.callbacks:
            if not isinstance(callback, Callback):
                raise ValueError(
                    f"a callback is a {type(callback).__name__}; expected a "
                    "mnas.training.loop.Callback"
                )

    def optimizer_of(
        self, module: nn.Module, default: Callable[[], torch.optim.Optimizer]
    ) -> torch.optim.Optimizer:
        """Raises ValueError for what is none."""
        if self.optimizer is None:
            return default()
        made = self.optimizer(module)
        if not isinstance(made, torch.optim.Optimizer):
            raise ValueError(
                f"optimizer made a {type(made).__name__}; expected a torch.optim.Optimizer, as "
                "mnas.MaskedOptimizer(torch.optim.AdamW, net, lr=1e-3)"
            )
        return made

    def schedule_of(self, optimizer: torch.optim.Optimizer, steps: int) -> LRScheduler:
        """Raises ValueError for what is none, or needs to be told more than that a step is over."""
        made = self.schedule(optimizer, steps)
        if not isinstance(made, LRScheduler) or isinstance(made, ReduceLROnPlateau):
            raise ValueError(
                f"schedule made a {type(made).__name__}; expected a schedule of steps, as "
                "torch.optim.lr_scheduler.CosineAnnealingLR"
            )
        return made


USUAL = Loop()
"""What the commands train with."""
