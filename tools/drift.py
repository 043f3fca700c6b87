"""How far weights move that no step meant to move: frozen, and under stock momentum and decay."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import one_run

if TYPE_CHECKING:
    from mnas.data import Data

POLICIES = ("frozen", "torch")
EVERY = 10  # steps a row


def measure(config: dict[str, Any], data: Data, seeds: int, epochs: float = 1) -> list[dict[str, Any]]:
    """Rows of the mean length of a step (root mean square over entries) in what the sampled path uses and in what it
    does not, over EVERY steps of one epoch at full learning rate. config: of a supernet run."""
    rows = []
    for seed in range(seeds):
        for policy in POLICIES:
            rows += _measure({**config, "mode": "supernet", "seed": seed, "policy": policy, "epochs": epochs}, data)
    return rows


def _measure(config: dict[str, Any], data: Data) -> list[dict[str, Any]]:
    import torch

    from mnas.masking import ActiveSet, Region

    trainer = one_run.trainer_of(config, data)
    merged = [p for p in trainer.module.parameters() if ActiveSet.of(p) and ActiveSet.of(p).regions]
    rows, lengths = [], {"active": 0.0, "inactive": 0.0}
    while not trainer.finished:
        before = [p.detach().clone() for p in merged]
        trainer.advance()
        squares, numbers = {"active": 0.0, "inactive": 0.0}, {"active": 0, "inactive": 0}
        for parameter, old in zip(merged, before, strict=True):
            active_set = ActiveSet.of(parameter)
            owned, used = torch.zeros_like(old, dtype=torch.bool), torch.zeros_like(old, dtype=torch.bool)
            for region in active_set.regions:
                region.view(owned).fill_(True)
            for region in {s for record in active_set.snapshot().records for s in record if isinstance(s, Region)}:
                region.view(used).fill_(True)
            moved = (parameter.detach() - old).double().square()
            for name, where in (("active", used), ("inactive", owned & ~used)):
                squares[name] += float(moved[where].sum())
                numbers[name] += int(where.sum())
        for name in lengths:
            lengths[name] += (squares[name] / max(1, numbers[name])) ** 0.5 / EVERY
        if trainer.step % EVERY == 0:
            rows.append({"policy": config["policy"], "seed": config["seed"], "step": trainer.step, **lengths})
            lengths = dict.fromkeys(lengths, 0.0)
    return rows
