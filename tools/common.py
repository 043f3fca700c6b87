"""What the tools share: the one place for runtime settings, the way errors end, and access to finished runs."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, CycloptsError, Parameter
from cyclopts.validators import Number

if TYPE_CHECKING:  # torch takes seconds to import: not before the arguments are known to be good
    from torch import Tensor, nn

    from mnas import SearchSpace, Supernet
    from mnas.checkpoint import RunDirectory
    from mnas.data import Data, Split
    from mnas.evaluate import Score

Count = Annotated[int, Parameter(validator=Number(gt=0, lte=2**31))]
Seed = Annotated[int, Parameter(validator=Number(gte=0, lt=2**63))]
Positive = Annotated[float, Parameter(validator=Number(gt=0, lte=1e6))]
COLUMNS = ("arch", "val top-1 %", "test top-1 %", "test loss", "params", "MACs")


class Failure(Exception):
    """Ends a tool with one line on stderr. status: 2 for a user's mistake, 1 for a run that failed."""

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(" ".join(message.split()))
        self.status = status


@contextlib.contextmanager
def user_input() -> Iterator[None]:
    """Where the library judges what the user gave: its ValueError is the user's mistake, not ours."""
    try:
        yield
    except ValueError as error:
        raise Failure(str(error), status=2) from error


@contextlib.contextmanager
def writing(directory: Path) -> Iterator[None]:
    """Where a run writes: a full disk or a lost permission stops it, and what was written before stays."""
    try:
        yield
    except OSError as error:
        raise Failure(f"cannot write to {directory} ({error.strerror}); what it held before is intact") from error


def run(app: App) -> None:
    """The tool: parse, act, and turn what goes wrong into an exit status and one line."""
    try:
        app(sys.argv[1:], exit_on_error=False, print_error=False)
    except CycloptsError as error:
        message, status = f"{' '.join(str(error).split())} See --help.", 2
    except Failure as failure:
        message, status = str(failure), failure.status
    except KeyboardInterrupt:
        message, status = "interrupted", 130
    else:
        return
    print(f"error: {message}", file=sys.stderr)
    sys.exit(status)


def configure_runtime(threads: int | None, keep_memory: bool = True) -> None:
    """Threads, and an allocator that keeps freed memory instead of giving its pages back after every operation:
    mapping them anew costs about as much as the arithmetic of a small network. Keeping memory changes no result."""
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    if keep_memory and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        m_trim_threshold, m_mmap_threshold = -1, -3  # malloc.h
        libc.mallopt(m_mmap_threshold, 1 << 30)
        libc.mallopt(m_trim_threshold, (1 << 31) - 1)


def in_memory_order(images: Tensor, channels_last: bool = True) -> Tensor:
    """The pictures in channels_last order unless switched off; the values stay. To torch, pictures of one channel are
    in it already."""
    import torch

    return images.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def for_training(split: Split, channels_last: bool = True) -> Split:
    return type(split)(in_memory_order(split.images, channels_last), split.labels)


def list_spaces() -> str:
    """The named spaces, as `--space help` shows them."""
    from mnas import spaces

    lines = []
    for name, make in spaces.SPACES.items():
        space, (about, *_) = make(), make.__doc__.split("\n\n")
        shape = "x".join(map(str, space.input_shape))
        lines.append(f"{name:12} {space.size:>6,} networks on {shape}: {' '.join(about.split())}")
    return "\n".join(lines)


def load_data(
    dataset: str,
    root: Path,
    limit_train: int | None = None,
    limit_test: int | None = None,
    channels_last: bool = True,
) -> Data:
    from mnas import data

    with user_input():
        loaded = data.load(dataset, root)
    splits = loaded.train.first(limit_train), loaded.validation, loaded.test.first(limit_test)
    return data.Data(*(for_training(split, channels_last) for split in splits))


def table(paths: list[dict[str, Any]]) -> str:
    """The `paths` of a summary as people read them."""
    from tabulate import tabulate

    rows = [
        (p["arch"], 100 * p["val_top1"], 100 * p["test_top1"], p["test_loss"], p["params"], p["macs"]) for p in paths
    ]
    return tabulate(rows, COLUMNS, floatfmt=("", ".2f", ".2f", ".4f"), intfmt=",")


@dataclass(frozen=True)
class FinishedRun:
    """A run directory opened for evaluation or export."""

    directory: RunDirectory
    config: dict[str, Any]
    space: SearchSpace
    weights: dict[str, dict[str, Any]]

    def archs(self, wanted: str, seed: int) -> list[str]:
        """The architectures that `all`, `random` or a name stands for in this run."""
        import torch

        available = [self.space.format(p) for p in self.space.paths()]
        if self.config["mode"] == "scratch":
            available = [arch for arch in available if arch in self.weights]
        if wanted == "all":
            return available
        if wanted == "random":
            return [available[int(torch.randint(len(available), (), generator=torch.Generator().manual_seed(seed)))]]
        with user_input():
            arch = self.space.format(self.space.parse(wanted))
        if arch not in available:
            raise Failure(f"{arch} was not trained in {self.directory.path}; it holds {', '.join(available)}", status=2)
        return [arch]

    def scores(
        self, archs: list[str], split: Split, bn_images: Tensor | None, progress: Callable[[int], Any]
    ) -> list[Score]:
        """The scores of the architectures; those of a supernet compute what they share once."""
        import mnas

        if self.config["mode"] == "supernet":
            paths = [self.space.parse(arch) for arch in archs]
            return mnas.evaluate_paths(
                self.supernet(), paths, split.images, split.labels, bn_images=bn_images, progress=progress
            )
        scores = []
        for arch in archs:
            network = self.network(arch)
            network = network if bn_images is None else mnas.recalibrate(network, bn_images)
            scores.append(mnas.evaluate(network, split.images, split.labels))
            progress(len(split))
        return scores

    def supernet(self, execution: str = "sliced") -> Supernet:
        """The trained supernet, in evaluation mode."""
        import mnas

        with user_input():
            net = mnas.Supernet(self.space, execution)
            self._fill(net, self.weights["supernet"])
            return net.eval()

    def network(self, arch: str, execution: str = "sliced") -> nn.Module:
        """The architecture with its trained weights, in evaluation mode: a supernet's path on the supernet's own
        tensors, or the network that was trained from scratch."""
        import mnas

        path = self.space.parse(arch)
        if self.config["mode"] == "supernet":
            return self.supernet(execution).subnet(path)
        with user_input():
            module = mnas.standalone(self.space, path)
            self._fill(module, self.weights[arch])
            return module.eval()

    def _fill(self, module: nn.Module, weights: dict[str, Any]) -> None:
        try:
            module.load_state_dict(weights)
        except RuntimeError as error:
            raise Failure(f"the checkpoint in {self.directory.path} does not fit {self.space.name}", 2) from error


def open_run(path: Path) -> FinishedRun:
    """A run directory, or the checkpoint.pt in it."""
    from mnas import spaces
    from mnas.checkpoint import RunDirectory

    with user_input():
        directory = RunDirectory(path.parent if path.name == "checkpoint.pt" else path)
        config = directory.config()
        state = directory.load()
        if state is None:
            raise Failure(f"{directory.path} has no checkpoint yet; continue it with --resume", status=2)
        if not {"mode", "space", "dataset"} <= set(config) or not isinstance(state.get("weights"), dict):
            raise Failure(f"{directory.path} is not the directory of a run", status=2)
        return FinishedRun(directory, config, spaces.get(config["space"]), state["weights"])


def _marks(part: str) -> tuple[str, str]:
    return f"<!-- {part} -->\n", f"<!-- end of {part} -->"


def check_page(page: Path, parts: tuple[str, ...], flag: str = "--page", like: str = "docs/freezing.md") -> None:
    """Before anything is measured: the page can take the tables of these parts."""
    try:
        text = page.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise Failure(f"{flag} {page} is no file of text; expected one with marks, as {like}", status=2) from error
    for part in parts:
        begin, end = _marks(part)
        if begin not in text or end not in text:
            raise Failure(f"{flag} {page} lacks the marks {begin.strip()} and {end}; restore them", status=2)


def record(out: Path, part: str, rows: list[dict[str, Any]], /, **settings: Any) -> None:
    """Measured rows, OUT/<part>.jsonl, and beside them how they were measured."""
    import json

    from mnas.checkpoint import environment, write_atomically, write_json

    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(out / f"{part}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        write_json(out / f"{part}-config.json", {**settings, "environment": environment()})


def recorded(out: Path, part: str) -> list[dict[str, Any]]:
    """The rows of OUT/<part>.jsonl."""
    import json

    file = out / f"{part}.jsonl"
    try:
        return [json.loads(line) for line in file.read_text().splitlines()]
    except OSError as error:
        raise Failure(f"{file} cannot be read ({error.strerror}); measure its rows first", status=2) from error
    except ValueError as error:
        raise Failure(f"{file} is damaged ({error}); restore it, or measure its rows again", status=2) from error


def publish(page: Path, part: str, text: str) -> None:
    """Bring the table of a part on a page up to date."""
    from mnas.checkpoint import write_atomically

    with writing(page):
        write_atomically(page, replaced(page.read_text(), part, text))


def replaced(page: str, part: str, text: str) -> str:
    """The page with a new table between the marks of a part."""
    begin, end = _marks(part)
    before, rest = page.split(begin, 1)
    return f"{before}{begin}{text}\n{end}{rest.split(end, 1)[1]}"


def markdown(body: list[list[str]], headers: list[str]) -> str:
    from tabulate import tabulate

    return tabulate(body, headers, tablefmt="github", disable_numparse=True)


def default_threads() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
