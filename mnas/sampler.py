"""Samplers of paths for training: endless iterators whose state can be saved and restored."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from mnas.space import Path, SearchSpace


class Sampler(Protocol):
    """What training asks of a sampler."""

    def __next__(self) -> Path: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class UniformSampler:
    """Every path equally likely, each draw by itself (Guo et al., ECCV 2020, section 3.2)."""

    def __init__(self, space: SearchSpace, seed: int) -> None:
        self.space = space
        self.generator = torch.Generator().manual_seed(seed)

    def __iter__(self) -> UniformSampler:
        return self

    def __next__(self) -> Path:
        return self.space.sample(self.generator)

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.set_state(state["generator"])


class FairSampler:
    """Every candidate of a choice equally often: each choice deals its candidates in random order, without
    replacement, and shuffles anew when all have been used, as strict fairness draws a round (Chu et al., ICCV 2021).
    They add up the gradients of a round; here each path is a step of the optimizer.
    """

    def __init__(self, space: SearchSpace, seed: int) -> None:
        self.space = space
        self.generator = torch.Generator().manual_seed(seed)
        self.left: list[list[int]] = [[] for _ in space.choices]  # candidates not yet dealt, a list per choice

    def __iter__(self) -> FairSampler:
        return self

    def __next__(self) -> Path:
        for left, names in zip(self.left, self.space.choices, strict=True):
            if not left:
                left += torch.randperm(len(names), generator=self.generator).tolist()
        return tuple(left.pop() for left in self.left)

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self.generator.get_state(), "left": [list(left) for left in self.left]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.set_state(state["generator"])
        self.left = [list(left) for left in state["left"]]


class FixedSampler:
    """Always the same path: training one network."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __iter__(self) -> FixedSampler:
        return self

    def __next__(self) -> Path:
        return self.path

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


SAMPLERS = {"uniform": UniformSampler, "fair": FairSampler}
