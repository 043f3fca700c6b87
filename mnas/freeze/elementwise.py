"""Which optimizers work element by element, so that a part of a tensor can be stepped by itself."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

_OPTIM = torch.optim
ELEMENTWISE: tuple[type[torch.optim.Optimizer], ...] = (
    _OPTIM.SGD,
    _OPTIM.Adam,
    _OPTIM.AdamW,
    _OPTIM.NAdam,
    _OPTIM.RAdam,
    _OPTIM.Adamax,
    _OPTIM.Adadelta,
    _OPTIM.Adagrad,
    _OPTIM.ASGD,
    _OPTIM.RMSprop,
    _OPTIM.Rprop,
)
"""Exact. Their update of an entry depends on that entry and on a step count alone."""

REFUSED = {
    "LBFGS": (
        "its direction and line search couple all parameters, so no part of them can be left out "
        "exactly"
    ),
    "Muon": (
        "it orthogonalises the momentum of a whole matrix, so an entry's update depends on every "
        "other entry"
    ),
    "Adafactor": (
        "its second moments are means over rows and columns, so frozen entries would act on "
        "active ones"
    ),
    "SparseAdam": (
        "it wants sparse gradients, and masked ones are dense; Adam with a mask on the rows is "
        "exact"
    ),
}
"""Optimizers of torch.optim that do not work element by element, and why."""


def check_class(optimizer_class: Any, elementwise: bool) -> None:
    names = ", ".join(known.__name__ for known in ELEMENTWISE)
    if not (
        isinstance(optimizer_class, type) and issubclass(optimizer_class, torch.optim.Optimizer)
    ):
        raise ValueError(
            f"{optimizer_class!r} is no optimizer class; expected one such as torch.optim.SGD "
            f"({names})"
        )
    name = optimizer_class.__name__
    if name in REFUSED and optimizer_class is getattr(torch.optim, name, None):
        raise ValueError(f"{name} cannot be masked exactly: {REFUSED[name]}; use one of {names}")
    if optimizer_class not in ELEMENTWISE and not elementwise:
        raise ValueError(
            f"{name} is not known to work element by element, as {names} do; if its update of an "
            "entry depends on that entry and on scalars alone, say so with elementwise=True"
        )


@torch.no_grad()
def try_halves(optimizer_class: type[torch.optim.Optimizer], options: dict[str, Any]) -> None:
    """Raise ValueError if half of a tensor, as a matrix or flat, moves otherwise by itself than in
    the whole, or if its state is none of single entries."""
    # Some begin to look at other entries after several steps.
    start, *grads = torch.randn(13, 4, 6, generator=torch.Generator().manual_seed(0))
    for shape in ((2, 6), (12,)):
        whole, half = nn.Parameter(start.clone()), nn.Parameter(start[:2].clone().view(shape))
        try:
            optimizers = [optimizer_class([t], **copy.deepcopy(options)) for t in (whole, half)]
            for grad in grads:
                # Copies: some change gradients in place.
                whole.grad, half.grad = grad.clone(), grad[:2].reshape(shape).clone()
                for optimizer in optimizers:
                    optimizer.step()
        except Exception:  # it wants a closure, another shape, an option: it is as vouched
            continue
        difference = float((whole[:2].flatten() - half.flatten()).abs().max())
        if not difference < 1e-4:
            raise ValueError(
                f"{optimizer_class.__name__} does not work element by element: half of a tensor "
                f"moves by up to {difference:.1g} otherwise than in the whole; use one of "
                f"{', '.join(known.__name__ for known in ELEMENTWISE)}"
            )
        for key, value in optimizers[0].state[whole].items():
            shape = tuple(value.shape) if isinstance(value, Tensor) else ()
            if shape not in ((), (4, 6)) or isinstance(value, (dict, list, tuple)):
                raise ValueError(
                    f"{optimizer_class.__name__} keeps {key!r} of shape {shape} for a parameter of "
                    "shape (4, 6), which cannot be divided; use one of "
                    f"{', '.join(known.__name__ for known in ELEMENTWISE)}"
                )
