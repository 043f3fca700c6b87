"""Supernet: all networks of a space on merged parameters; `net(x, path)` runs one of them."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mnas import masking, prefix
from mnas.choice import EXECUTIONS, Choice, substitute
from mnas.space import Path, SearchSpace, choices_of


class Supernet(nn.Module):
    """All networks of a space with shared weights.

    execution: "sliced" computes on the active regions only; "masked" is the literal form, the enclosing operation on
    `W * mask`. The random start is the model's own: `torch.manual_seed` decides it.

    Raises ValueError for what is no space, for an unknown execution, or for masked where no candidate
    encloses the others, or where one computes something else behind its mask; every candidate is tried
    once, in float64 on random numbers.
    """

    def __init__(self, space: SearchSpace, execution: str = "sliced") -> None:
        super().__init__()
        if not isinstance(space, SearchSpace):
            raise ValueError(f"space is a {type(space).__name__}; expected a mnas.SearchSpace, as mnas.spaces.mil4()")
        if execution not in EXECUTIONS:
            raise ValueError(f"execution {execution!r} is unknown; expected one of {', '.join(EXECUTIONS)}")
        self.space = space
        self.execution = execution
        self.model = space.build()
        self._choices = tuple(choices_of(self.model))
        if execution == "masked":
            for choice in self._choices:
                _ = choice.enclosing  # raises where there is none
            self._try_masks()

    @torch.no_grad()
    def _try_masks(self) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            twin = copy.deepcopy(self).double().eval()
            x = torch.randn(4, *self.space.input_shape, dtype=torch.float64)
            for position, names in enumerate(self.space.choices):
                for index, name in enumerate(names):
                    path = tuple(index if i == position else 0 for i in range(len(self.space.choices)))
                    try:
                        sliced, masked = (twin.subnet(path, execution)(x) for execution in EXECUTIONS)
                        same = sliced.shape == masked.shape and torch.allclose(sliced, masked, 1e-9, 1e-12)
                    except RuntimeError:
                        same = False
                    if not same:
                        raise ValueError(
                            f"{name!r} of choice {position} does not compute the same behind a mask as by itself, "
                            'because zeros in an unused part change its result; use execution="sliced"'
                        )

    def forward(self, x: Tensor, path: Path | Sequence[int | Tensor]) -> Tensor:
        """Logits (B, classes) of one path for a batch x (B, C, H, W).

        In place of an index, a choice may be given a weight for each candidate, a tensor (candidates,): then it
        computes the weighted sum of their outputs as one layer with the weighted sum of their parameters (Liu et al.,
        ICLR 2019, section 2.2, at the cost of one). Raises ValueError where that is not the same.
        """
        return self.subnet(path)(x)

    def forward_paths(self, x: Tensor, paths: Sequence[Path]) -> list[Tensor]:
        """Logits (B, classes) of each path for the same batch, in the order of the paths.

        Equal, bit for bit, to one `net(x, path)` after the other, and differentiable: several paths in one training
        step. What paths have in common up to their first difference is computed once if the model is a (nested)
        nn.Sequential, whose layers are taken to be functions of their input; shared ones update running statistics and
        draw random numbers once, too. Results may share memory, those of equal paths do. Without gradients, memory
        grows with the depth of the model and not with the number of paths.
        """
        paths = [self.space.check(path) for path in paths]
        root = prefix.tree(self.model, paths, lambda choice, index: choice.candidate(index, self.execution))
        found = dict(prefix.walk(root, x))
        return [found[number] for number in range(len(paths))]

    def subnet(self, path: Path | Sequence[int | Tensor], execution: str | None = None) -> nn.Module:
        """The path as a module: the model with every choice replaced by its candidate (or a mixture), on the shared
        tensors.

        Its views belong to the autograd graph of this moment, so take a new one for every forward pass; to keep a
        network, `mnas.export` it.
        """
        mixed = isinstance(path, (tuple, list)) and any(isinstance(entry, Tensor) for entry in path)
        self.space.check(tuple(0 if isinstance(entry, Tensor) else entry for entry in path) if mixed else path)
        execution = execution or self.execution
        candidates = [
            choice.mixture(entry) if isinstance(entry, Tensor) else choice.candidate(entry, execution)
            for choice, entry in zip(self._choices, path, strict=True)
        ]
        return substitute(self.model, dict(zip(self._choices, candidates, strict=True)))

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As in torch, but a state with other candidates in one of its choices changes nothing at all.

        Raises RuntimeError, as torch does, that names what differs. strict=False also takes a state that
        does not say which candidates it is of, as one of an older mnas.
        """
        if not isinstance(state_dict, Mapping):
            return super().load_state_dict(state_dict, strict, assign)  # raises
        choices = {f"{name}.": module for name, module in self.named_modules() if isinstance(module, Choice)}
        problems = [reason for p, choice in choices.items() if (reason := choice.other_content(state_dict, p))]
        silent = [prefix[:-1] for prefix in choices if f"{prefix}_extra_state" not in state_dict]
        if strict and silent:
            problems.append(
                f"the state does not name the candidates of {', '.join(silent)}, as one of an older mnas; "
                "if they are the same in the same order, load it with strict=False"
            )
        if problems:
            reasons = "".join(f"\n\t{problem}" for problem in problems)
            raise RuntimeError(f"Error(s) in loading state_dict for {type(self).__name__}:{reasons}")
        return super().load_state_dict(state_dict, strict, assign)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset gradients, and with them what is active."""
        masking.zero_grad(self.parameters(), set_to_none)
