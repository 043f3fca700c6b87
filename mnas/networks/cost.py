"""What a network costs: parameters and multiply-accumulates, counted on the network itself."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mnas.networks.export import baked
from mnas.space.choice import choices_of
from mnas.space.coupling import Path
from mnas.space.given import GivenPath
from mnas.space.inputs import Inputs, called
from mnas.space.search_space import SearchSpace
from mnas.space.trial import Form, Runner, floating_type


class Cost(NamedTuple):
    """params: numbers in parameters. macs: multiply-accumulates of one image through convolutions,
    linear and recurrent layers and attention; biases and normalisation not counted."""

    params: int
    macs: int


def cost(space: SearchSpace, path: GivenPath, example: Any = None) -> Cost:
    """The cost of a path's standalone network for one image of `space.input_shape`, or for the
    space's example; example: for other inputs, as at another resolution.

    Counted once for each candidate and size of its input if the model is a sequence, else for each
    network anew."""
    inputs = None if example is None else Inputs.of(example)
    counters = _COUNTERS.setdefault(space, {})
    form = inputs and Form((inputs.args, inputs.kwargs))
    if form not in counters:
        counters[form] = _Counter(space, inputs)
    return counters[form].count(space.key(path))


class _Counter:
    """Counts the parts of a sequence once, and adds them up for each network."""

    def __init__(self, space: SearchSpace, inputs: Inputs | None) -> None:
        with torch.random.fork_rng(devices=[]):  # counting must not change what is drawn next
            model = space.build().eval()
        inputs = inputs or space.inputs(1, floating_type(model))
        choices = choices_of(model)
        space.check_build(choices)
        self.runner = Runner(model, choices, inputs, _measure)

    def count(self, key: tuple[int, ...]) -> Cost:
        counted = list(self.runner.run(key))
        return Cost(sum(c.params for c in counted), sum(c.macs for c in counted))


def shared_macs(space: SearchSpace, paths: Sequence[Path]) -> int:
    """Multiply-accumulates of one image through all of the paths where what they share up to a
    stage is computed once, as `evaluate_paths` does; the sum of their costs in a model that is no
    sequence."""
    cost(space, paths[0])
    runner = _COUNTERS[space][None].runner
    known = {
        (number, prefix): measured.macs
        for path in paths
        for number, (prefix, measured) in enumerate(runner.prefixes(space.key(path)))
    }
    return sum(known.values())


_COUNTERS: weakref.WeakKeyDictionary[SearchSpace, dict[Form | None, _Counter]] = (
    weakref.WeakKeyDictionary()
)
"""By the form of the inputs, None for the space's own."""


def _recurrent(x: Any, weight_ih: Any, weight_hh: Any, *_: Any, out_shape: Any, **__: Any) -> int:
    """Twice the multiply-accumulates of a layer and direction of an LSTM; shapes, x (T, B, in)."""
    return 2 * x[0] * x[1] * (prod(weight_ih) + prod(weight_hh))


def _by_vector(matrix: Any, *_: Any, **__: Any) -> int:
    return 2 * prod(matrix)


_MORE = {
    torch.ops.aten.mkldnn_rnn_layer: _recurrent,
    torch.ops.aten.mv: _by_vector,
    torch.ops.aten.dot: _by_vector,
}
"""What torch counts nothing for."""


def _measure(module: nn.Module, inputs: Inputs) -> tuple[Cost, Any]:
    """The cost of a module, and what it puts out."""
    module = baked(module)
    params = sum(p.numel() for p in module.parameters())
    # Torch counts nothing for fused kernels on a CPU: by the products that they are made of.
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with (
            sdpa_kernel(SDPBackend.MATH),
            FlopCounterMode(display=False, custom_mapping=_MORE) as counter,
        ):
            output = called(module, inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return Cost(params, counter.get_total_flops() // 2), output


def size(space: SearchSpace, path: Path, by: str = "macs") -> tuple[int, int]:
    """What networks are ordered by: one of their costs, and then the other. by: "macs" or
    "params"."""
    found = cost(space, path)
    return (found.macs, found.params) if by == "macs" else (found.params, found.macs)


EXACT = 1_000
"""Networks; of a larger space, the extremes are climbed to."""


class Extremes(NamedTuple):
    smallest: Path
    largest: Path


def extremes(space: SearchSpace, by: str = "macs") -> Extremes:
    """The cheapest and the dearest network, by their canonical paths; the first of equal ones.

    by: "macs", and parameters where these are equal; or "params", and then multiply-accumulates. Of
    more than 1,000 networks by coordinate ascent: one decision at a time goes to its best value,
    until none changes. That is exact where each decision adds a cost of its own, whatever the
    others are; else no single decision improves on what is found. Computed once.

    Raises ValueError for another cost."""
    if by not in Cost._fields:
        raise ValueError(f"by={by!r} is unknown; expected one of {', '.join(Cost._fields)}")
    known = _EXTREMES.setdefault(space, {})
    if by not in known:
        of = partial(size, space, by=by)
        if space.size <= EXACT:
            sizes = {path: of(path) for path in space.paths()}
            known[by] = Extremes(min(sizes, key=sizes.get), max(sizes, key=sizes.get))
        else:
            known[by] = Extremes(_climbed(space, of, min), _climbed(space, of, max))
    return known[by]


_EXTREMES: weakref.WeakKeyDictionary[SearchSpace, dict[str, Extremes]] = weakref.WeakKeyDictionary()


def _climbed(space: SearchSpace, size: Callable[[Path], Any], best: Callable[..., Path]) -> Path:
    """A path that no change of a single decision improves."""
    path = tuple(indices[0] for indices in space.indices)
    while True:
        before = size(path)
        for position, indices in enumerate(space.indices):
            others = [(*path[:position], i, *path[position + 1 :]) for i in indices]
            path = best([path, *others], key=size)
        if size(path) == before:
            return space.canonical(path)
