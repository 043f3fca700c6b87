"""Rules of `mnas.convert`: which layers of a model become a choice, and of what.

select: a pattern of the layers' names, as "layer1.*.conv2", where * also stands for dots; or a
class, as nn.Conv2d, subclasses included."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from mnas.space.hidden import CONVOLUTIONS, hidden, narrow
from mnas.space.skeleton import is_hooked


class Match(NamedTuple):
    """A layer that a rule has selected. another: gives one more of it, in modules of its own.
    given: whether its weights are what candidates begin with; else all begin at random."""

    layer: nn.Module
    another: Callable[[], nn.Module]
    given: bool


@dataclass(frozen=True)
class Rule:
    """candidates: of a match the candidates by name, the layer as it is first; None where the rule
    does not apply. nested: as in `mnas.Choice`. takes: what it applies to, in words."""

    select: str | type[nn.Module]
    candidates: Callable[[Match], Mapping[str, nn.Module] | None]
    nested: bool = False
    takes: str = "layers"

    def __post_init__(self) -> None:
        kind = isinstance(self.select, type) and issubclass(self.select, nn.Module)
        if not kind and not isinstance(self.select, str):
            raise ValueError(
                f"a rule selects {self.select!r}; expected a pattern of names, as 'layer1.*', or a "
                "class, as nn.Conv2d"
            )

    def selects(self, name: str, layer: nn.Module) -> bool:
        if isinstance(self.select, str):
            return fnmatchcase(name, self.select)
        return isinstance(layer, self.select)


def kernels(
    select: str | type[nn.Module],
    sizes: Iterable[int],
    *,
    nested: bool = False,
    depthwise: bool = False,
) -> Rule:
    """Convolutions with a kernel of one of these sizes get all of them; the others selected stay as
    they are. Padding grows with the kernel, so that outputs keep their size.

    All begin with the given weights: a smaller kernel is the centre of the given one, a larger one
    has zeros around it and computes the same. nested: they share what they have in common.
    depthwise: those with a group for each channel alone. Candidates are called k3, k5, ..."""
    sizes = _whole(sizes, "sizes", least=1)
    kind = "depthwise convolutions" if depthwise else "convolutions"
    takes = f"{kind} of torch.nn, without hooks, with a kernel of {' or '.join(map(str, sizes))}"
    return Rule(select, partial(_kernels, sizes, depthwise), nested, takes)


def _kernels(sizes: tuple[int, ...], depthwise: bool, match: Match) -> dict[str, nn.Module] | None:
    layer = match.layer
    if type(layer) not in CONVOLUTIONS or is_hooked(layer):
        return None
    if depthwise and layer.groups != layer.in_channels:
        return None
    given = layer.kernel_size[0]
    if given not in sizes or set(layer.kernel_size) != {given}:
        return None
    others = [size for size in sizes if size != given]
    return {f"k{given}": layer, **{f"k{size}": _resized(match, size) for size in others}}


def repeats(select: str | type[nn.Module], times: Iterable[int]) -> Rule:
    """Blocks are left out (0), there once as given (1) or several times, one behind the other; the
    first is shared, and the others begin as copies of it. A block takes one tensor and returns one
    of its shape. Candidates are called x0, x1, ..."""
    times = _whole(times, "times", least=0)
    if 1 not in times:
        raise ValueError(f"times={times}; expected 1 among them, for the block as it is given")
    return Rule(select, partial(_repeats, times), max(times) > 1, "blocks")


def _repeats(times: tuple[int, ...], match: Match) -> dict[str, nn.Module]:
    made: dict[str, nn.Module] = {}
    for count in (1, *(count for count in times if count != 1)):
        blocks = [match.layer, *(match.another() for _ in range(count - 1))][:count]
        # In a sequence the first block has the same names, however many there are.
        module = nn.Sequential(*blocks) if max(times) > 1 else match.layer
        made[f"x{count}"] = module if count else nn.Identity()
        made[f"x{count}"].training = match.layer.training
    return made


def widths(select: str | type[nn.Module], shares: Iterable[float]) -> Rule:
    """Blocks with their hidden widths as given, and at shares of them, below 1: the first channels
    of the same weights (nested). A width is hidden if torch.fx can follow it from a linear layer or
    convolution, over BatchNorm, activations and depthwise convolutions, to layers of the same kind
    in the block alone (`mnas/space/hidden.py`). All hidden widths of a block change together.
    Candidates are called w64, w32, ... after the first of them."""
    given = shares
    shares = tuple(shares) if isinstance(shares, Iterable) else ()
    if not shares or not all(type(s) is float and 0 < s < 1 for s in shares):
        raise ValueError(f"shares={given!r}; expected numbers between 0 and 1, as (0.5, 0.75)")
    takes = "blocks with two or more linear layers or convolutions"
    return Rule(select, partial(_widths, shares), True, takes)


def _widths(shares: tuple[float, ...], match: Match) -> dict[str, nn.Module] | None:
    found = hidden(match.layer)
    if not found:
        return None
    makers = [match.layer.get_submodule(width.maker) for width in found]
    full = [len(maker.weight) for maker in makers]
    made = {f"w{full[0]}": match.layer}
    for share in shares:
        channels = [max(1, round(share * width)) for width in full]
        name = f"w{channels[0]}"
        if name in made:
            raise ValueError(
                f"a share of {share} of {full[0]} channels is {channels[0]}, which is there "
                "already; give shares that differ by a channel at least"
            )
        made[name] = narrow(match.another(), list(zip(found, channels, strict=True)))
    return made


def candidates(
    select: str | type[nn.Module],
    make: Callable[[nn.Module], Mapping[str, nn.Module]],
    *,
    nested: bool = False,
) -> Rule:
    """Whatever you like in the place of a layer: make(layer) returns the other candidates, by name;
    the layer as it is comes first and is called "given". nested: as in `mnas.Choice`; the given
    layer must then be the largest."""

    return Rule(select, partial(_candidates, make), nested)


def _candidates(
    make: Callable[[nn.Module], Mapping[str, nn.Module]], match: Match
) -> dict[str, nn.Module]:
    others: Any = make(match.layer)
    if not isinstance(others, Mapping) or "given" in others:
        raise ValueError(
            f"{getattr(make, '__name__', make)} returns {others!r}; expected a dict of the other "
            "candidates, none of which is called 'given'"
        )
    for module in others.values():
        if isinstance(module, nn.Module):
            _as_given(match.layer, module)
    return {"given": match.layer, **others}


def _as_given(layer: nn.Module, made: nn.Module) -> nn.Module:
    """In the mode of a layer; what has the same name in it, as a BatchNorm that is kept in
    evaluation mode, in the mode of that."""
    modes = {name: module.training for name, module in layer.named_modules()}
    own = set(layer.modules())
    for name, module in made.named_modules():
        if module not in own:
            module.training = modes.get(name, layer.training)
    return made


def _whole(values: Iterable[int], what: str, least: int) -> tuple[int, ...]:
    given = values
    values = tuple(values) if isinstance(values, Iterable) else ()
    good = all(type(value) is int and value >= least for value in values)
    if not good or len(values) < 2 or len(set(values)) < len(values):
        raise ValueError(
            f"{what}={given!r}; expected two or more different whole numbers from {least} up"
        )
    return values


def _resized(match: Match, size: int) -> nn.Module:
    """A convolution of another kernel size with the same output size."""
    layer = match.layer
    more = size - layer.kernel_size[0]
    grown = [d * more for d in layer.dilation]
    padding = layer.padding
    if padding == "valid":
        padding = (0,) * len(grown)
    if not isinstance(padding, str):
        padding = tuple(p + more // 2 for p, more in zip(padding, grown, strict=True))
    # By an odd number no kernel is in the middle of another, whatever the output size.
    if more % 2 or (not isinstance(padding, str) and min(padding) < 0):
        raise ValueError(
            f"{layer} has no candidate of kernel size {size} with the same centre and output size; "
            "use sizes that differ by even numbers and are not below what its padding allows"
        )
    settings: dict[str, Any] = {
        "stride": layer.stride,
        "padding": padding,
        "dilation": layer.dilation,
        "groups": layer.groups,
        "bias": layer.bias is not None,
        "padding_mode": layer.padding_mode,
        "dtype": layer.weight.dtype,
        "device": layer.weight.device,
    }
    shape = layer.in_channels, layer.out_channels, size
    if not match.given:
        return _as_given(layer, type(layer)(*shape, **settings))
    resized = nn.utils.skip_init(type(layer), *shape, **settings)
    with torch.no_grad():
        resized.weight.copy_(_centred(layer.weight, size))
        if layer.bias is not None:
            resized.bias.copy_(layer.bias)
    return _as_given(layer, resized)


def _centred(weight: torch.Tensor, size: int) -> torch.Tensor:
    """Kernels with their border cut off, or with zeros around them."""
    more = (size - weight.shape[-1]) // 2  # negative padding cuts
    return nn.functional.pad(weight, (more, more) * (weight.ndim - 2))
