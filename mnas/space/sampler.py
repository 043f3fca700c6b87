"""Samplers of paths for training: endless iterators whose state can be saved and restored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch

from mnas.space.coupling import Path
from mnas.space.search_space import SearchSpace


class Sampler(Protocol):
    """What training asks of a sampler."""

    def __next__(self) -> Path: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class UniformSampler:
    """Every path equally likely, each draw by itself (Guo et al., ECCV 2020; there by default among
    paths within a range of costs)."""

    def __init__(self, space: SearchSpace, seed: int) -> None:
        self.space = space
        self.generator = torch.Generator().manual_seed(_whole(seed))

    def __iter__(self) -> UniformSampler:
        return self

    def __next__(self) -> Path:
        return self.space.sample(self.generator)

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises ValueError for the state of another kind of sampler; then nothing has changed."""
        _check_keys(state, self.state_dict())
        _restore(self.generator, state["generator"])


class FairSampler:
    """Every value of a decision equally often: each deals its values in random order,
    without replacement, and shuffles anew when all have been used, as strict fairness draws a round
    (Chu et al., ICCV 2021). They add up the gradients of a round, as the training rule `fair` does;
    under others each path is a step of the optimizer."""

    def __init__(self, space: SearchSpace, seed: int) -> None:
        self.space = space
        self.generator = torch.Generator().manual_seed(_whole(seed))
        self.left: list[list[int]] = [
            [] for _ in space.decisions
        ]  # values not yet dealt, a list per decision

    def __iter__(self) -> FairSampler:
        return self

    def __next__(self) -> Path:
        for left, values in zip(self.left, self.space.indices, strict=True):
            if not left:
                order = torch.randperm(len(values), generator=self.generator).tolist()
                left += [values[i] for i in order]
        return self.space.canonical(tuple(left.pop() for left in self.left))

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self.generator.get_state(), "left": [list(left) for left in self.left]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises ValueError for the state of another sampler or space; then nothing has changed."""
        _check_keys(state, self.state_dict())
        left, values = state["left"], self.space.indices
        fits = (
            isinstance(left, list)
            and len(left) == len(values)
            and all(isinstance(dealt, list) for dealt in left)
        )
        if not fits or any(set(dealt) - set(own) for dealt, own in zip(left, values, strict=True)):
            raise ValueError(
                f"candidates left are {left}; expected a list of indices for each of "
                f"{self.space.choices}"
            )
        _restore(self.generator, state["generator"])
        self.left = [list(dealt) for dealt in left]


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
        """Raises ValueError for the state of another kind of sampler."""
        _check_keys(state, self.state_dict())


def _whole(seed: Any) -> int:
    """A seed as an int. Raises ValueError for what is no whole number."""
    if not isinstance(seed, (int, np.integer)) or isinstance(seed, bool):
        raise ValueError(f"seed={seed!r}; expected a whole number")
    return int(seed)


def _check_keys(state: Any, own: Mapping[str, Any]) -> None:
    if not isinstance(state, Mapping) or state.keys() != own.keys():
        found = (
            sorted(map(str, state)) if isinstance(state, Mapping) else f"a {type(state).__name__}"
        )
        raise ValueError(
            f"the state of a sampler is {found}; expected {sorted(own)}, as of a sampler of this "
            "kind"
        )


def _restore(generator: torch.Generator, state: Any) -> None:
    try:
        generator.set_state(state)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"the state of a generator does not fit ({error}); expected what get_state gave"
        ) from error


SAMPLERS = {"uniform": UniformSampler, "fair": FairSampler}
