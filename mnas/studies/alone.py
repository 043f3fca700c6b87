"""Scores of networks by themselves, without a supernet: before any training, or after a short one.

A folder has a row for each distinct network, and is continued where it was stopped."""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Callable, Container, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from msgspec import Meta, Struct
from numpy.typing import NDArray
from scipy import stats
from torch import nn

from mnas import spaces
from mnas.networks.cost import cost
from mnas.networks.export import export
from mnas.networks.untrained import Traits, az_nas, synflow, zico
from mnas.reference import Table
from mnas.space.choice import Choice
from mnas.space.search_space import SearchSpace
from mnas.space.supernet import Supernet
from mnas.storage import strict_json
from mnas.storage.files import Folder
from mnas.storage.strict_json import FolderError
from mnas.studies import scored
from mnas.studies.compute import TRAINING, full_training
from mnas.training import runtime
from mnas.training.checks import DivergedError
from mnas.training.data import Data
from mnas.training.recipe import Recipe
from mnas.training.trainer import scratch_trainer

FORMAT = "mnas-alone-1"
IMAGES = {"synflow": 1, "zico": 128, "az_nas": 64, "short": 2_000}  # short: of validation
BATCHES = 2  # of ZiCo
RECIPE = {"batch_size": 128, "lr": 0.1, "augment": "crop_flip"}  # of a short training
WRITE_EVERY = 2.0  # seconds
Path_ = tuple[int, ...]
Values = dict[str, float]
NotNegative = Annotated[float, Meta(ge=0)]


class Settings(Struct):
    """What readers of a folder need of its settings.json, which has more."""

    space: str
    score: Literal["synflow", "zico", "az_nas", "short"]
    networks: Annotated[int, Meta(ge=1)]
    start_seed: int
    resolution: Annotated[int, Meta(ge=1, le=4096)] | None
    some: Annotated[int, Meta(ge=1)] | None
    seed: Annotated[int, Meta(ge=0)] | None


class ShortSettings(Settings):
    """Of short trainings."""

    epochs: float


class Row(Struct, forbid_unknown_fields=True):
    """A network. values: what its score is made of; None for what is not finite. work:
    multiply-accumulates x images, a backward pass counted as two. seconds: of one thread of
    settings.json's number of jobs at a time."""

    arch: str
    params: int
    macs: int
    values: dict[str, float | None]
    work: NotNegative
    seconds: NotNegative


class Rows:
    """rows.jsonl has a row for each network so far, in the order of networks; settings.json what
    must be the same to go on; environment.json the machine and the commit that they were begun
    with. unknown: settings that are not known yet. Raises FolderError."""

    def __init__(self, path: Path, settings: dict[str, Any], unknown: Container[str] = ()) -> None:
        self.path, self.settings = path, settings
        self._folder = Folder(path, FORMAT)
        self.rows: list[dict[str, Any]] = []
        if scored.begun(self._folder, settings, unknown):
            self.rows = _lines(self._folder)

    def missing(self, archs: Sequence[str]) -> Sequence[str]:
        """Those without a row. Raises FolderError where rows are of others."""
        if [row["arch"] for row in self.rows] != list(archs[: len(self.rows)]):
            raise FolderError(f"{self.path / 'rows.jsonl'} is of other networks; restore it")
        return archs[len(self.rows) :]

    def add(
        self, rows: Iterable[dict[str, Any]], environment: dict[str, Any], done: Callable[[], Any]
    ) -> None:
        """Write down rows as they come, every two seconds at most. done: called after each."""
        if not self.rows:
            about = strict_json.dumps(environment, indent=2) + "\n"
            settings = strict_json.dumps(self.settings, indent=2) + "\n"
            self._folder.write(
                {"environment.json": about, "settings.json": settings, "rows.jsonl": ""}
            )
        last = time.monotonic()
        try:
            for row in rows:
                self.rows.append(row)
                done()
                if time.monotonic() - last > WRITE_EVERY:
                    self._write()
                    last = time.monotonic()
        finally:
            self._write()

    def _write(self) -> None:
        self._folder.write({"rows.jsonl": strict_json.lines(self.rows)}, settle=True)

    def keep(self, name: str, text: str) -> None:
        """A further file beside the rows."""
        self._folder.write({name: text}, settle=True)


def _lines(folder: Folder) -> list[dict[str, Any]]:
    return strict_json.parse_lines(folder.read("rows.jsonl"), Row, folder.path / "rows.jsonl")


def networks(table: Table, number: int | None, seed: int, some: int | None = None) -> list[Path_]:
    """The distinct networks of so many rows of a table, drawn as `mnas rank` draws paths, so that
    equal numbers and seeds are of the same networks: the first path of each. None: all. some: so
    many of these, drawn by the seed, too; more of them are the same and others."""
    drawn = scored.drawn([tuple(path) for path in table.paths.tolist()], number, seed)
    found = np.unique([table.network[table.rows[path]] for path in drawn])
    if some is not None:
        found = np.sort(np.random.default_rng(seed).permutation(found)[:some])
    return [tuple(path) for path in table.distinct.paths[found].tolist()]


def measured(settings: dict[str, Any], data_root: Path, arch: str) -> dict[str, Any]:
    """The row of a network. The same in whichever process."""
    runtime.configure_runtime(settings["threads"])
    space = _space(settings["space"], settings["resolution"])
    path, data = space.parse(arch), None
    if settings["dataset"] is not None:
        data = load(settings["dataset"], data_root, settings["resolution"])
        if data.sha256 != settings["data_sha256"]:
            raise FolderError(f"the images in {data_root} have changed; restore them")
    if settings["score"] != "short":
        _start(settings)  # its seconds are no network's
    params, macs = cost(space, path)
    begun = time.monotonic()
    values, images = SCORES[settings["score"]](settings, space, path, data)
    return {
        "arch": arch,
        "params": params,
        "macs": macs,
        "values": values,
        "work": float(macs * images),
        "seconds": time.monotonic() - begun,
    }


def load(dataset: str, data_root: Path, resolution: int | None) -> Data:
    """The same tensors for the next network of the process."""
    return _load(dataset, data_root, resolution)


@functools.lru_cache(maxsize=1)
def _load(dataset: str, data_root: Path, resolution: int | None) -> Data:
    return runtime.load_data(dataset, data_root, resolution=resolution)


@functools.lru_cache(maxsize=1)
def _space(name: str, resolution: int | None) -> SearchSpace:
    return spaces.get(name, resolution)


def _start(settings: dict[str, Any]) -> Supernet:
    """A supernet whose paths have the weights that `standalone` begins with after
    `torch.manual_seed`: made once, which takes longer than a cheap score."""
    return _started(settings["space"], settings["resolution"], settings["start_seed"])


@functools.lru_cache(maxsize=1)
def _started(name: str, resolution: int | None, seed: int) -> Supernet:
    torch.manual_seed(seed)
    return Supernet(_space(name, resolution).fresh())


Scored = tuple[Values, float]  # values, and the forward passes of an image that they cost


def _synflow(settings: dict[str, Any], space: SearchSpace, path: Path_, _: Data | None) -> Scored:
    network = export(_start(settings), path)
    return {"synflow": synflow(network, space.input_shape)}, TRAINING


def _zico(settings: dict[str, Any], space: SearchSpace, path: Path_, data: Data) -> Scored:
    some = data.train.first(settings["images"])
    parts = (tensor.chunk(BATCHES) for tensor in (some.images, some.labels))
    network = export(_start(settings), path)
    return {"zico": zico(network, list(zip(*parts, strict=True)))}, TRAINING * len(some)


def _az_nas(settings: dict[str, Any], space: SearchSpace, path: Path_, _: Data | None) -> Scored:
    net, images, seed = _start(settings), settings["images"], settings["start_seed"]
    network = export(net, path)
    traits = az_nas(network, blocks(net, network), space.input_shape, images, seed)
    return traits._asdict(), TRAINING * images


def blocks(net: Supernet, network: nn.Module) -> list[str]:
    """The places of choices that put out feature maps in a standalone network: what is absent, an
    identity, is no block, and a linear layer has no map."""
    places = [name for name, part in net.model.named_modules() if isinstance(part, Choice)]
    no_block = (nn.Identity, nn.Linear)
    return [name for name in places if not isinstance(network.get_submodule(name), no_block)]


def _short(settings: dict[str, Any], space: SearchSpace, path: Path_, data: Data) -> Scored:
    """A training that diverges ranks last."""
    validation = data.validation.first(settings["images"])
    recipe = Recipe(epochs=settings["epochs"], **RECIPE)
    trainer = scratch_trainer(space, path, data.train, validation, recipe, settings["start_seed"])
    last: dict[str, float] = {"val_loss": math.inf, "val_top1": 0.0, "train_loss": math.inf}
    with contextlib.suppress(DivergedError):
        while not trainer.finished:
            trainer.advance()
        last = {name: trainer.rows[-1][name] for name in last}
    trained = trainer.step * min(recipe.batch_size, len(data.train))
    return last, TRAINING * trained + len(validation)


SCORES: dict[str, Callable[..., Scored]] = {
    "synflow": _synflow,
    "zico": _zico,
    "az_nas": _az_nas,
    "short": _short,
}
READS_IMAGES = ("zico", "short")


def of_paths(
    table: Table, settings: dict[str, Any], rows: Sequence[dict[str, Any]], paths: Sequence[Path_]
) -> dict[str, NDArray[np.float64]]:
    """Scores of all rows of a table by name (n,), higher is better, NaN where there is none. What
    is not finite ranks last."""
    score, name = settings["score"], label(settings)
    if score == "short":
        losses, top1 = _column(rows, "val_loss", np.inf), _column(rows, "val_top1")
        columns = {f"{name}, loss": -losses, f"{name}, top-1": top1}
    elif score == "az_nas":
        parts = [_column(rows, trait) for trait in Traits._fields]
        columns = {name: assembled([*parts, np.array([row["macs"] for row in rows])])}
    else:
        columns = {name: _column(rows, score)}
    where = [table.rows[path] for path in paths]
    found = {name: np.full(len(table), np.nan) for name in columns}
    for column, values in columns.items():
        found[column][where] = np.clip(values, -1e100, 1e100)  # can be multiplied, to be rounded
    return found


NAMES = {"synflow": "SynFlow", "zico": "ZiCo", "az_nas": "AZ-NAS"}


def _column(
    rows: Sequence[dict[str, Any]], name: str, missing: float = -np.inf
) -> NDArray[np.float64]:
    values = (row["values"][name] for row in rows)
    return np.array([missing if value is None else value for value in values])


def assembled(parts: Sequence[NDArray[Any]]) -> NDArray[np.float64]:
    """AZ-NAS of networks (networks,): the sum over its four parts of log(rank / networks), the
    highest rank for the highest value, equal ones the mean of theirs (section 3 of its paper)."""
    ranks = [stats.rankdata(part) / len(part) for part in parts]
    return np.log(ranks).sum(0)


def label(settings: dict[str, Any]) -> str:
    """What readers call a score with these settings."""
    if settings["score"] == "short":
        name = f"{settings['epochs']:g} epochs from scratch"
    else:
        name = NAMES[settings["score"]]
    return f"{name}, {settings['resolution']} px" if settings["resolution"] else name


def costs(table: Table, rows: Sequence[dict[str, Any]]) -> str:
    """What the scores took, as Markdown."""
    work, seconds = (sum(row[key] for row in rows) for key in ("work", "seconds"))
    return (
        f"{len(rows):,} networks took {seconds:,.0f} s, {work:.3g} multiply-accumulates x images, "
        f"{work / full_training(table):.2g} full trainings. A training pass counts as {TRAINING} "
        "forward passes.\n"
    )
