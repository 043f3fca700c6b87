"""Scores of many networks of a supernet, in a folder that is continued where it was stopped."""

from __future__ import annotations

import io
import time
import zipfile
from collections.abc import Callable, Container, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
from msgspec import Meta, Struct
from numpy.typing import NDArray

from mnas.networks.cost import cost, shared_macs
from mnas.networks.evaluate import divergence, evaluate_paths, everything
from mnas.storage import strict_json
from mnas.storage.files import Folder
from mnas.storage.strict_json import FolderError

if TYPE_CHECKING:
    from torch import Tensor

    from mnas.space.supernet import Supernet
    from mnas.training.data import Split

FORMAT = "mnas-scores-1"
CHUNK = 81  # paths that are scored together: four decisions of three, whose beginning is shared
CORRECT = "correct.npz"
Bits = NDArray[np.bool_]
NotNegative = Annotated[float, Meta(ge=0)]


class Settings(Struct):
    """What readers of a folder need of its settings.json, which has more."""

    space: str
    networks: Annotated[int, Meta(ge=1)]
    resolution: Annotated[int, Meta(ge=1, le=4096)] | None
    images: int | None = None
    bn_images: int | None = None
    average: int | None = None


class Row(Struct, forbid_unknown_fields=True):
    """A path. val_loss in nats; val_top1 a share, 0 to 1. val_kl: the symmetric divergence from the
    network with all candidates on, in nats; None where their outputs have no sum, and not there in
    rows from before it was kept."""

    arch: str
    val_loss: float | None
    val_top1: Annotated[float, Meta(ge=0, le=1)]
    params: int
    macs: int
    val_kl: float | None = None


class Chunk(Struct, forbid_unknown_fields=True):
    """What a number of paths took. macs: multiply-accumulates x images of scoring and
    recalibration, with what paths share counted once; macs_alone: of each path by itself."""

    paths: int
    seconds: NotNegative
    macs: NotNegative
    macs_alone: NotNegative


def begun(folder: Folder, settings: dict[str, Any], unknown: Container[str] = ()) -> bool:
    """Whether a folder has scores already, to go on from. Raises FolderError where they are with
    other settings, and for what is no new directory. unknown: settings that are not known yet."""
    path = folder.path
    if "settings.json" in folder.names():
        known = strict_json.parse(folder.read("settings.json"), dict, path)
        for key in [*known, *settings]:
            if key not in unknown and known.get(key) != settings.get(key):
                raise FolderError(
                    f"{path} has scores with {key}={known.get(key)!r}, not "
                    f"{settings.get(key)!r}; give another --out"
                )
        return True
    if path.exists() and not path.is_dir():
        raise FolderError(f"{path} is a file; give --out a directory")
    others = path.exists() and any(not file.name.startswith(".") for file in path.iterdir())
    if others and not folder.unwritten():  # what a kill leaves of the first write
        raise FolderError(f"{path} holds other files; give another --out")
    return False


class Scores:
    """rows.jsonl has a row for each path so far, in the order of paths; chunks.jsonl what they
    took; correct.npz which images each path was right on, except in folders from before it did.
    settings.json: what must be the same to go on; raises FolderError where it is not."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path, self._folder = path, Folder(path, FORMAT)
        self.rows: list[dict[str, Any]] = []
        self.chunks: list[dict[str, Any]] = []
        self.correct: list[Bits] | None = []
        if begun(self._folder, settings):
            self.rows, self.chunks = self._read("rows", Row), self._read("chunks", Chunk)
            found = read_correct(self._folder, len(self.rows))
            self.correct = None if found is None else list(found)
        self.settings = settings

    def _read(self, name: str, kind: type) -> list[dict[str, Any]]:
        file = f"{name}.jsonl"
        return strict_json.parse_lines(self._folder.read(file), kind, self.path / file)

    def _write(self) -> None:
        bits = {} if self.correct is None else {CORRECT: _packed(self.correct)}
        self._folder.write(
            {
                **bits,
                "settings.json": strict_json.dumps(self.settings, indent=2) + "\n",
                "rows.jsonl": strict_json.lines(self.rows),
                "chunks.jsonl": strict_json.lines(self.chunks),
            },
            settle=True,
        )

    def score(
        self,
        net: Supernet,
        paths: Sequence[tuple[int, ...]],
        split: Split,
        bn_images: Tensor | None,
        progress: Callable[[int], Any] = lambda _: None,
    ) -> None:
        """Score what is still missing of paths (in lexicographic order, so that neighbours share
        most), and write it down chunk by chunk. progress: is told of images, each path's counted.

        Raises FolderError where rows are of other paths."""
        space = net.space
        names = [space.format(path) for path in paths]
        if [row["arch"] for row in self.rows] != names[: len(self.rows)]:
            raise FolderError(f"{self.path / 'rows.jsonl'} is of other networks; restore it")
        keeps_kl = not self.rows or "val_kl" in self.rows[0]
        whole = _everything(net, split.images) if keeps_kl and len(self.rows) < len(paths) else None
        images = len(split) + (0 if bn_images is None else len(bn_images))
        progress(len(self.rows) * len(split))
        for some in _chunks(paths, len(self.rows)):
            began = time.monotonic()
            seen = _Seen(len(some))
            scores = evaluate_paths(
                net,
                some,
                split.images,
                split.labels,
                bn_images=bn_images,
                progress=progress,
                see=seen.add,
            )
            seconds = time.monotonic() - began
            if self.correct is not None:
                self.correct += list(seen.predicted() == split.labels.cpu().numpy())
            costs = [cost(space, path) for path in some]
            for number, (path, score) in enumerate(zip(some, scores, strict=True)):
                row = {"arch": space.format(path), "val_loss": score.loss, "val_top1": score.top1}
                kl = {"val_kl": seen.divergence(number, whole)} if keeps_kl else {}
                self.rows.append({**row, **costs[number]._asdict(), **kl})
            macs = shared_macs(space, some) * images
            alone = sum(of_path.macs for of_path in costs) * images
            self.chunks.append(
                {"paths": len(some), "seconds": seconds, "macs": macs, "macs_alone": alone}
            )
            self._write()

    def keep(self, name: str, text: str) -> None:
        """A further file beside the rows."""
        self._folder.write({name: text}, settle=True)

    def cost(self) -> dict[str, float]:
        """The sums over chunks."""
        return summed(self.chunks)


def _everything(net: Supernet, images: Tensor) -> Tensor | None:
    try:
        return everything(net, images).float().cpu()
    except (RuntimeError, ValueError):
        return None


class _Seen:
    """What a number of paths put out, image after image."""

    def __init__(self, paths: int) -> None:
        self.logits: list[list[Tensor]] = [[] for _ in range(paths)]

    def add(self, path: int, logits: Tensor) -> None:
        self.logits[path].append(logits.float().cpu())

    def divergence(self, path: int, whole: Tensor | None) -> float | None:
        """Of a path from other logits (images, classes), mean over images."""
        if whole is None:
            return None
        return float(divergence(torch.cat(self.logits[path]), whole).double().mean())

    def predicted(self) -> NDArray[np.int64]:
        """Classes (paths, images)."""
        return np.stack([np.concatenate([x.argmax(1) for x in of]) for of in self.logits])


def _packed(correct: Sequence[Bits]) -> bytes:
    buffer = io.BytesIO()
    bits = np.packbits(np.stack(correct), axis=1)
    np.savez_compressed(buffer, bits=bits, images=len(correct[0]))
    return buffer.getvalue()


def read_correct(folder: Folder, paths: int) -> Bits | None:
    """Whether each path was right on each image (paths, images), in the order of rows.jsonl and of
    the validation images; None where that was not kept. Raises FolderError for a damaged file."""
    if CORRECT not in folder.listed():
        return None if paths else np.empty((0, 0), bool)
    try:
        with np.load(io.BytesIO(folder.read(CORRECT)), allow_pickle=False) as file:
            correct = np.unpackbits(file["bits"], axis=1, count=int(file["images"])).astype(bool)
    except (KeyError, OSError, TypeError, zipfile.BadZipFile) as error:
        raise FolderError(f"{folder.path / CORRECT} is damaged ({error}); restore it") from error
    if len(correct) != paths:
        raise FolderError(
            f"{folder.path / CORRECT} is of {len(correct)} paths, not {paths}; restore it"
        )
    return correct


def summed(chunks: Sequence[dict[str, Any]]) -> dict[str, float]:
    """What all chunks took."""
    return {key: float(sum(chunk[key] for chunk in chunks)) for key in Chunk.__struct_fields__}


def _chunks(paths: Sequence[tuple[int, ...]], done: int) -> Iterator[Sequence[tuple[int, ...]]]:
    while done < len(paths):
        end = min(len(paths), (done // CHUNK + 1) * CHUNK)
        yield paths[done:end]
        done = end


def drawn(paths: Sequence[tuple[int, ...]], number: int | None, seed: int) -> list[tuple[int, ...]]:
    """So many of the paths, drawn without replacement, in lexicographic order; None: all."""
    ordered = sorted(paths)
    if number is None or number >= len(ordered):
        return ordered
    some = np.random.default_rng(seed).choice(len(ordered), number, replace=False)
    return [ordered[i] for i in sorted(some)]
