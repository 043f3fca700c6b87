"""Every optimizer of torch, timm and pytorch_optimizer: equal to separate tensors under the stock
one, or refused by name; or it fails by itself, for it wants a closure, a module or a process
group."""

import inspect
import warnings

import pytest
import torch
from torch import nn

import mnas

timm = pytest.importorskip("timm.optim", reason="pip install timm")
others = pytest.importorskip("pytorch_optimizer", reason="pip install pytorch_optimizer")
pytestmark = pytest.mark.nightly

HALVES = tuple(
    torch.tensor([first, first, not first, not first])[:, None].expand(4, 6)
    for first in (True, False)
)
# Half of the weights, the other half, or all.
SCHEDULE = (0, 1, 1, 0, 2, 0, 2, 1, 2, 2, 0, 1)


def every():
    found = {}
    for name in dir(torch.optim):
        cls = getattr(torch.optim, name)
        if inspect.isclass(cls) and issubclass(cls, torch.optim.Optimizer):
            found[f"torch.{name}"] = cls
    for name in timm.list_optimizers():
        try:
            cls = timm.get_optimizer_class(name)
        except AssertionError:  # for accelerators
            continue
        cls = getattr(cls, "func", cls)
        found[f"timm.{cls.__name__}"] = cls
    for name in others.get_supported_optimizers():
        cls = others.load_optimizer(name)
        found[f"pytorch_optimizer.{cls.__name__}"] = cls
    found.pop("torch.Optimizer")
    return found


def stock(cls, options):
    """Separate tensors under the optimizer itself: the weights after each step."""
    torch.manual_seed(0)
    whole = nn.Linear(6, 4, bias=False).weight.detach()
    halves = [nn.Parameter(whole[:2].clone()), nn.Parameter(whole[2:].clone())]
    optimizer = cls(halves, **options)
    for trained in SCHEDULE:
        x = torch.randn(5, 6)
        weight = torch.cat(halves)
        (grad,) = torch.autograd.grad((x @ weight.T).square().mean(), weight)
        for number, half in enumerate(halves):
            part = grad[2 * number : 2 * number + 2].clone()
            half.grad = part if trained in (number, 2) else None
        optimizer.step()
        yield torch.cat(halves).detach()


def masked(cls, options):
    torch.manual_seed(0)
    layer = nn.Linear(6, 4, bias=False)
    optimizer = mnas.MaskedOptimizer(cls, layer, elementwise=True, **options)
    for trained in SCHEDULE:
        optimizer.zero_grad()
        masks = [HALVES[trained]] if trained < 2 else []
        in_force = [mnas.GradientMask(layer, {"weight": mask}) for mask in masks]
        layer(torch.randn(5, 6)).square().mean().backward()
        for mask in in_force:
            mask.remove()
        optimizer.step()
        yield layer.weight.detach().clone()


@pytest.mark.parametrize("name", sorted(every()))
def test_equal_or_refused(name):
    cls = every()[name]
    options = {"lr": 0.01} if "lr" in inspect.signature(cls.__init__).parameters else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            expected = list(stock(cls, options))
        except Exception as error:
            pytest.skip(f"not of tensors and gradients alone: {error}")
        try:
            found = list(masked(cls, options))
        except ValueError as error:
            if cls.__name__ not in str(error):
                raise
            return
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)
