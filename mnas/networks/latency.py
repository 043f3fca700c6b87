"""Latency of networks of a supernet: measured, on this machine, as they would be exported."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mnas.networks.export import export
from mnas.space.coupling import Path
from mnas.space.inputs import Inputs, called, examples
from mnas.space.supernet import Supernet

REPEATS, WARM = 15, 3


class Latency:
    """Milliseconds of a forward pass of exported networks on given images (B, C, H, W), or what
    else they take (as of `evaluate`), where the supernet is, with the threads that torch has. A
    network is measured once and then known.

    Networks that are asked for together are measured in turns, in an order drawn anew in each of
    the `repeats` rounds, so that what else the machine does meets all of them; the latency of each
    is its median. Networks that are asked for later may meet another machine load."""

    def __init__(self, net: Supernet, images: Any, repeats: int = REPEATS) -> None:
        if type(repeats) is not int or repeats < 1:
            raise ValueError(f"repeats={repeats!r}; expected a whole number above 0")
        self.net, self.repeats = net, repeats
        self.given, _ = examples("images", images)
        self.known: dict[Path, float] = {}

    @torch.inference_mode()
    def __call__(self, paths: Sequence[Path]) -> list[float]:
        """Of each path, in their order."""
        canonical = [self.net.space.canonical(path) for path in paths]
        new = [path for path in dict.fromkeys(canonical) if path not in self.known]
        with torch.inference_mode(False):
            networks = {path: export(self.net, path).eval() for path in new}
        device = next(self.net.parameters()).device
        given = self.given.to(device)
        for network in networks.values():
            for _ in range(WARM):
                called(network, given)
        seconds: dict[Path, list[float]] = {path: [] for path in new}
        order, draw = list(new), random.Random(0)
        for _ in range(self.repeats):
            draw.shuffle(order)
            for path in order:
                seconds[path].append(_seconds(networks[path], given, device))
        self.known |= {path: 1000 * statistics.median(took) for path, took in seconds.items()}
        return [self.known[path] for path in canonical]


def _seconds(network: torch.nn.Module, given: Tensor | Inputs, device: torch.device) -> float:
    """Of one forward pass, to its end on a GPU, too."""
    _wait(device)
    begun = time.perf_counter()
    called(network, given)
    _wait(device)
    return time.perf_counter() - begun


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
