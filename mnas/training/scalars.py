"""Scalars of a run for TensorBoard, beside its metrics.jsonl."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnas.training.loop import Callback

if TYPE_CHECKING:
    from mnas.training.trainer import Trainer

FOLDER = "tensorboard"
"""In the run directory. It is no file of the run: nothing is read from it."""


class Scalars(Callback):
    """After every step `loss`, the mean of its networks, and `lr`; after every validation
    `seconds`, and `train_loss/ARCH`, `val_top1/ARCH`, `val_loss/ARCH` of each network that was
    scored. All by step.

    A run that goes on says from which step; what was written of later ones before a kill no longer
    counts (`purge_step` of TensorBoard's event files)."""

    def __init__(self, run: Path) -> None:
        self._folder = Path(run) / FOLDER
        self._seconds: Callable[[], float] = lambda: math.nan
        self._lr = math.nan

    def begin(self, step: int, seconds: Callable[[], float]) -> None:
        """step: so many are done. seconds: of training so far."""
        from torch.utils.tensorboard import SummaryWriter

        going_on = {"purge_step": step + 1} if self._folder.exists() else {}
        self._writer = SummaryWriter(self._folder, **going_on)
        self._seconds = seconds

    def before_step(self, trainer: Trainer) -> None:
        self._lr = trainer.optimizer.param_groups[0]["lr"]

    def after_step(self, trainer: Trainer, losses: dict[str, float]) -> None:
        self._writer.add_scalar("loss", trainer.loss, trainer.step)
        self._writer.add_scalar("lr", self._lr, trainer.step)

    def after_validation(self, trainer: Trainer, rows: list[dict[str, Any]]) -> None:
        self._writer.add_scalar("seconds", self._seconds(), trainer.step)
        for row in rows:
            for name in ("train_loss", "val_top1", "val_loss"):
                if row[name] is not None:
                    self._writer.add_scalar(f"{name}/{row['arch']}", row[name], row["step"])

    def flush(self) -> None:
        """Before a checkpoint, from which a run that is killed goes on."""
        self._writer.flush()

    def close(self) -> None:
        with contextlib.suppress(AttributeError):  # it has not begun
            self._writer.close()
