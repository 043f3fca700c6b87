"""Finished and unfinished runs, opened for evaluation or export."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnas.errors import Failure, user_input
from mnas.training import runtime

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mnas.networks.evaluate import Score
    from mnas.space.search_space import SearchSpace
    from mnas.space.supernet import Supernet
    from mnas.training.data import Data, Split
    from mnas.training.run_directory import RunDirectory


@dataclass(frozen=True)
class SavedRun:
    """A run directory opened for evaluation or export, finished or not."""

    directory: RunDirectory
    config: dict[str, Any]
    space: SearchSpace
    weights: dict[str, dict[str, Any]]

    def say_if_unfinished(self) -> None:
        if not self.directory.finished:
            print(
                f"note: {self.directory.path} is not finished; its weights are those so far",
                file=sys.stderr,
            )

    def data(self, root: Path, device: str = "cpu") -> Data:
        """The images that the run was trained with. Raises Failure for others: its networks would
        be recalibrated and scored on what they have not been trained for."""
        config = self.config
        found = runtime.load_data(
            config["dataset"],
            root,
            config.get("limit_train"),
            device=device,
            resolution=config.get("resolution"),
        )
        with user_input():
            self.directory.check_data(config["dataset"], found.found)
        return found

    def archs(self, wanted: str, seed: int) -> list[str]:
        """The architectures that `all`, `random` or a name stands for in this run."""
        import torch

        from mnas.space.search_space import MANY

        supernet, generator = self.config["mode"] == "supernet", torch.Generator().manual_seed(seed)
        if wanted == "random" and supernet and self.space.size > MANY:
            return [self.space.format(self.space.sample(generator))]
        if wanted in ("all", "random"):
            with user_input():
                trained = None if supernet else sorted(self.weights, key=self.space.parse)
                available = trained or self.space.names()
            if wanted == "all":
                return available
            return [available[int(torch.randint(len(available), (), generator=generator))]]
        with user_input():
            arch = self.space.format(self.space.parse(wanted))
        if not supernet and arch not in self.weights:
            raise Failure(
                f"{arch} was not trained in {self.directory.path}; it holds "
                f"{', '.join(self.weights)}",
                status=2,
            )
        return [arch]

    def scores(
        self,
        archs: list[str],
        split: Split,
        bn_images: Tensor | None,
        progress: Callable[[int], Any],
    ) -> list[Score]:
        """The scores of the architectures, computed where the images are; those of a supernet
        compute what they share once."""
        import mnas

        if self.config["mode"] == "supernet":
            paths = [self.space.parse(arch) for arch in archs]
            return mnas.evaluate_paths(
                self.supernet().to(split.images.device),
                paths,
                split.images,
                split.labels,
                bn_images=bn_images,
                progress=progress,
            )
        scores = []
        for arch in archs:
            network = self.network(arch).to(split.images.device)
            network = network if bn_images is None else mnas.recalibrate(network, bn_images)
            scores.append(mnas.evaluate(network, split.images, split.labels))
            progress(len(split))
        return scores

    def averaged(self, number: int) -> SavedRun:
        """The supernet's weights as their mean over so many of its last epochs (`mean`). Raises
        Failure where it has not kept as many."""
        if not self.directory.finished:
            raise Failure(
                f"{self.directory.path} is not finished; expected the last epochs of a finished "
                "run: continue it with --resume",
                status=2,
            )
        with user_input():
            kept = self.directory.kept()
            if number > len(kept):
                raise Failure(
                    f"{self.directory.path} has kept the weights of {len(kept)} epochs, not "
                    f"{number}; expected a run with --keep-checkpoints {number} at least",
                    status=2,
                )
            states = [self.directory.load(name) for name in kept[-number:]]
        weights = mean([state["weights"]["supernet"] for state in states if state])
        return replace(self, weights={"supernet": weights})

    def supernet(self, execution: str = "sliced") -> Supernet:
        """The trained supernet, in evaluation mode."""
        import mnas

        with user_input():
            net = mnas.Supernet(self.space, execution)
            self._fill(net, self.weights["supernet"])
            return net.eval()

    def network(self, arch: str, execution: str = "sliced") -> nn.Module:
        """The architecture with its trained weights, in evaluation mode: a supernet's path on the
        supernet's own tensors, or the network that was trained from scratch."""
        import mnas

        path = self.space.parse(arch)
        if self.config["mode"] == "supernet":
            return self.supernet(execution).subnet(path)
        with user_input():
            module = mnas.export(mnas.Supernet(self.space), path)  # however it began
            self._fill(module, self.weights[arch])
            return module.eval()

    def _fill(self, module: nn.Module, weights: dict[str, Any]) -> None:
        try:
            module.load_state_dict(weights)
        except (AttributeError, RuntimeError, TypeError, ValueError) as error:
            raise Failure(
                f"the checkpoint in {self.directory.path} does not fit {self.space.name}", 2
            ) from error


def mean(states: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Of state dicts of one module, the last one the newest: each entry of each tensor by itself,
    added up in float64; of whole numbers, which count, the newest (Izmailov et al., UAI 2018,
    average weights so). Merged tensors need nothing more: an atom is a tensor of its own, and where
    a path did not reach an entry, it is what it was an epoch before."""
    import torch

    return {
        name: torch.stack([state[name].double() for state in states]).mean(0).to(newest.dtype)
        if newest.is_floating_point()
        else newest
        for name, newest in states[-1].items()
    }


def open_run(path: Path, space: str | None = None) -> SavedRun:
    """A run directory, or the checkpoint.pt in it. space: as the user has named it. A directory may
    come from anybody, so a file that it names is not run: whoever opens the run names the file,
    and its content must be what the run was begun with."""
    from mnas.training.run_directory import RunDirectory

    with user_input():
        directory = RunDirectory(path.parent if path.name == "checkpoint.pt" else path)
        config = directory.config()
        state = directory.load()
        if state is None:
            raise Failure(
                f"{directory.path} has no checkpoint yet; continue it with --resume", status=2
            )
        weights = state.get("weights")
        expected = {"supernet"} if config["mode"] == "supernet" else None
        if not isinstance(weights, dict) or not weights or (expected and set(weights) != expected):
            raise Failure(
                f"{directory.path} does not hold the weights of a {config['mode']} run; restore it",
                2,
            )
        return SavedRun(directory, config, _space(directory, config, space), weights)


def _space(directory: RunDirectory, config: dict[str, Any], given: str | None) -> SearchSpace:
    from mnas import spaces
    from mnas.spaces import own

    stored, digest = config["space"], config.get("space_sha256")
    if digest is None:
        if given not in (None, stored):
            raise Failure(
                f"{directory.path} is a run of space {stored}, not {given}; leave out --space", 2
            )
        return grouped(spaces.get(stored, config.get("resolution")), config)
    if given is None or not own.is_own(given):
        raise Failure(
            f"{directory.path} has a space of its own, which was in {stored}; a run directory "
            "runs no file by itself: name the file with --space path/to/file.py:function",
            status=2,
        )
    space = own.load(given, digest)
    return grouped(space.at(config["resolution"]) if config.get("resolution") else space, config)


def grouped(space: SearchSpace, config: dict[str, Any]) -> SearchSpace:
    """The space, or the part of it that a sub-supernet is trained on: `group` has decisions with a
    value each, as choice0=conv5x5. Raises ValueError."""
    values: dict[str, str] = {}
    for word in config.get("group") or ():
        decision, equals, value = word.partition("=")
        if not equals or decision in values:
            raise ValueError(
                f"--group {word}; expected DECISION=VALUE, each decision once, of "
                f"{', '.join(decision.name for decision in space.decisions)}"
            )
        values[decision] = value
    return space.restricted(values) if values else space


def resume_command(directory: Path, config: dict[str, Any], data_root: Path) -> str:
    """What to add to the command to continue a run of these settings, as a shell takes it."""
    said = f"--resume --out {shlex.quote(str(directory))}"
    if config.get("space_sha256"):
        said += f" --space {shlex.quote(config['space'])}"
    if config["dataset"] != "mnist" and data_root != Path("data"):
        said += f" --data-root {shlex.quote(str(data_root))}"
    return said
