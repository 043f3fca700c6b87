"""What the tools share: the one place for runtime settings, kinds of options, and access to finished runs and rows."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number
from process import Failure, run

__all__ = ["Failure", "run"]

if TYPE_CHECKING:  # torch takes seconds to import: not before the arguments are known to be good
    from cyclopts import Token
    from torch import Tensor, nn

    from mnas import SearchSpace, Supernet
    from mnas.checkpoint import RunDirectory
    from mnas.data import Data, Split
    from mnas.evaluate import Score
    from mnas.files import Folder


def _integer(_: Any, tokens: Sequence[Token]) -> int:
    """Whole numbers alone: cyclopts by itself rounds 1.5 to 2."""
    try:
        return int(tokens[0].value)
    except ValueError:
        raise ValueError(f'"{tokens[0].value}" is no whole number') from None


def _path(_: Any, tokens: Sequence[Token]) -> Path:
    """~ is the home directory wherever it stands: no shell expands it behind --out=."""
    try:
        path = Path(tokens[0].value).expanduser()
    except RuntimeError as error:
        raise ValueError(f'"{tokens[0].value}": {error}') from None
    longest = max((len(os.fsencode(part)) for part in path.parts), default=0)
    if longest > LONGEST_NAME:
        raise ValueError(f"a name in the path has {longest} bytes, expected {LONGEST_NAME} at most")
    return path


LONGEST_NAME = 255  # bytes, of a file on Linux, macOS and Windows

Count = Annotated[int, Parameter(converter=_integer, validator=Number(gt=0, lte=2**31))]
Seed = Annotated[int, Parameter(converter=_integer, validator=Number(gte=0, lt=2**63))]
UserPath = Annotated[Path, Parameter(converter=_path)]
Positive = Annotated[float, Parameter(validator=Number(gt=0, lte=1e6))]
COLUMNS = ("arch", "val top-1 %", "test top-1 %", "test loss", "params", "MACs")


@contextlib.contextmanager
def user_input(kind: type[ValueError] = ValueError) -> Iterator[None]:
    """Where the library judges what the user gave: its ValueError is the user's mistake, not ours. kind: FolderError
    alone, where much else is done beside judging files."""
    try:
        yield
    except kind as error:
        raise Failure(str(error), status=2) from error


@contextlib.contextmanager
def writing(directory: Path) -> Iterator[None]:
    """Where a run writes: a full disk or a lost permission stops it, and what was written before stays."""
    try:
        yield
    except OSError as error:
        raise Failure(f"cannot write to {directory} ({error.strerror}); what it held before is intact") from error


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
        space = make()
        shape = "x".join(map(str, space.input_shape))
        lines.append(f"{name:12} {space.size:>6,} networks on {shape}: {space.about}")
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
    if not loaded.verified:
        print(f"note: {dataset} in {root} is not known to be the published data set", file=sys.stderr)
    splits = loaded.train.first(limit_train), loaded.validation, loaded.test.first(limit_test)
    splits = (for_training(split, channels_last) for split in splits)
    return data.Data(*splits, verified=loaded.verified, sha256=loaded.sha256)


def table(paths: list[dict[str, Any]]) -> str:
    """The `paths` of a summary as people read them."""
    from tabulate import tabulate

    rows = [
        (p["arch"], 100 * p["val_top1"], 100 * p["test_top1"], p["test_loss"], p["params"], p["macs"]) for p in paths
    ]
    return tabulate(rows, COLUMNS, floatfmt=("", ".2f", ".2f", ".4f"), intfmt=",")


@dataclass(frozen=True)
class SavedRun:
    """A run directory opened for evaluation or export, finished or not."""

    directory: RunDirectory
    config: dict[str, Any]
    space: SearchSpace
    weights: dict[str, dict[str, Any]]

    def say_if_unfinished(self) -> None:
        if not self.directory.finished:
            print(f"note: {self.directory.path} is not finished; its weights are those so far", file=sys.stderr)

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
        except (AttributeError, RuntimeError, TypeError, ValueError) as error:
            raise Failure(f"the checkpoint in {self.directory.path} does not fit {self.space.name}", 2) from error


def open_run(path: Path) -> SavedRun:
    """A run directory, or the checkpoint.pt in it."""
    from mnas import spaces
    from mnas.checkpoint import RunDirectory

    with user_input():
        directory = RunDirectory(path.parent if path.name == "checkpoint.pt" else path)
        config = directory.config()
        state = directory.load()
        if state is None:
            raise Failure(f"{directory.path} has no checkpoint yet; continue it with --resume", status=2)
        weights = state.get("weights")
        expected = {"supernet"} if config["mode"] == "supernet" else None
        if not isinstance(weights, dict) or not weights or (expected and set(weights) != expected):
            raise Failure(f"{directory.path} does not hold the weights of a {config['mode']} run; restore it", 2)
        return SavedRun(directory, config, spaces.get(config["space"]), weights)


def resume_command(directory: Path) -> str:
    """What to add to the command to continue a run, as a shell takes it."""
    return f"--resume --out {shlex.quote(str(directory))}"


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


def rows_folder(out: Path) -> Folder:
    """Where measured rows are kept, with the digests of their files."""
    from mnas.files import Folder

    return Folder(out, "mnas-rows-1")


def record(out: Path, part: str, rows: list[dict[str, Any]], /, **settings: Any) -> None:
    """Measured rows, OUT/<part>.jsonl, and beside them how they were measured."""
    from mnas import files
    from mnas.checkpoint import environment

    about = files.dumps({**settings, "environment": environment()}, indent=2) + "\n"
    with writing(out), user_input():
        out.mkdir(parents=True, exist_ok=True)
        folder = rows_folder(out)
        with folder.lock():
            folder.write({f"{part}.jsonl": files.lines(rows), f"{part}-config.json": about}, settle=True)


def recorded(out: Path, part: str) -> list[dict[str, Any]]:
    """The rows of OUT/<part>.jsonl."""
    from mnas import files

    try:
        return files.parse_lines(rows_folder(out).read(f"{part}.jsonl"), dict, out / f"{part}.jsonl")
    except ValueError as error:
        reason = str(error).removesuffix("; restore it")
        raise Failure(f"{reason}; restore it, or measure its rows again", status=2) from error


def publish(page: Path, part: str, text: str) -> None:
    """Bring the table of a part on a page up to date."""
    from mnas.files import write_atomically

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


def cores() -> int:
    """Those that this process may use, by its affinity and by the quota of its container."""
    from joblib.externals.loky import cpu_count

    return cpu_count()


def default_threads() -> int:
    """As many as there are cores, and not more than OMP_NUM_THREADS says."""
    wanted = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return min(cores(), int(wanted)) if wanted.isdecimal() and int(wanted) > 0 else cores()
