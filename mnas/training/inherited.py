"""What a run takes over from finished ones: weights to begin with, and a teacher."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnas.errors import Failure
from mnas.training.saved import SavedRun, open_run

if TYPE_CHECKING:
    from torch import nn

    from mnas.space.search_space import SearchSpace
    from mnas.training.data import Data


def teacher(run: Path, data: Data | None = None, own_space: str | None = None) -> nn.Module:
    """The network of a finished run, in evaluation mode; of several the dearest. own_space: as of
    `open_run`."""
    import mnas
    from mnas.networks.cost import extremes, size
    from mnas.networks.export import compact
    from mnas.training.trainer import BN_IMAGES

    finished = _finished("--teacher", run, own_space)
    space = finished.space
    if finished.config["mode"] == "supernet":
        path = extremes(space).largest
    else:
        path = max(map(space.parse, finished.weights), key=lambda p: size(space, p))
    network = compact(finished.network(space.format(path)))
    if data is not None:
        network = network.to(data.train.images.device)
    if finished.config.get("bn") == "recalibrate" and data is not None:
        network = mnas.recalibrate(network, data.train.images[:BN_IMAGES])
    return network.eval()


def digest(network: nn.Module) -> str:
    """Of the weights and statistics of a network."""
    found = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        found.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def exported(run: Path, space: str, arch: str, own_space: str | None = None) -> dict[str, Any]:
    """The state dict of a network as a finished run holds it. own_space: as of `open_run`."""
    from mnas.networks.export import compact

    finished = _start(run, space, own_space)
    (arch,) = finished.archs(arch, seed=0)
    return compact(finished.network(arch)).state_dict()


def supernet(run: Path, space: SearchSpace, own_space: str | None = None) -> dict[str, Any]:
    """The state dict of the supernet of a finished run of the space, which may be restricted.
    own_space: as of `open_run`."""
    finished = _start(run, space.name, own_space)
    if finished.config["mode"] != "supernet":
        raise Failure(
            f"--start {run} holds networks from scratch; expected the run of a supernet", status=2
        )
    lacking = [value for value in finished.space.group if value not in space.group]
    if lacking:
        raise Failure(
            f"--start {run} has trained the networks with {' '.join(finished.space.group)} alone; "
            f"expected --group with {' '.join(lacking)}, too",
            status=2,
        )
    return finished.supernet().state_dict()


def _start(run: Path, space: str, own_space: str | None) -> SavedRun:
    finished = _finished("--start", run, own_space)
    if finished.space.name != space:
        raise Failure(f"--start {run} is a run of {finished.space.name}, not of {space}", status=2)
    return finished


def _finished(flag: str, run: Path, own_space: str | None) -> SavedRun:
    finished = open_run(run, own_space)
    if not finished.directory.finished:
        raise Failure(
            f"{flag} {run} is not finished; continue it with --resume --out {run} first", status=2
        )
    return finished
