"""Scores of networks by themselves, without a supernet, beside published accuracies.

- `mnas rank alone --score synflow`: before any training; or zico, az_nas
- `mnas rank alone --score short --networks 600 --some 100`: after a short training from scratch

Each distinct network among the paths that `mnas rank` draws with the same --networks and --seed has
a row. The same command continues what was stopped. No test image is read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter

from mnas.commands.options import Count, Positive, Seed, Side, UserPath
from mnas.commands.settings import threads as threads_of
from mnas.errors import Failure, make, user_input, writing
from mnas.training import runtime

if TYPE_CHECKING:
    from mnas.reference import Table


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Options:
    score: Literal["synflow", "zico", "az_nas", "short"]
    """What to compute of each network: synflow (no data), zico (two batches of 64 training images),
    az_nas (64 images of noise), or short, a training from scratch."""
    space: str = "nb_macro"
    "A space with published accuracies."
    dataset: str = "cifar10"
    "For zico and short: cifar10; folder: images in {train,test}/CLASS/ below --data-root."
    data_root: UserPath = Path("data")
    "Where the data set is; of folder, the folder."
    resolution: Side | None = None
    "Pixels a side that networks take. [default: as the space has them]"
    networks: Annotated[str, Parameter(show_default=True)] = "all"
    "all, or how many paths, drawn by --seed."
    seed: Seed = 0
    "For --networks N and --some N."
    some: Count | None = None
    "So many of the distinct networks among these, drawn by --seed. [default: all of them]"
    start_seed: Seed = 0
    "Decides the random start of every network, and the order of images."
    epochs: Positive | None = None
    "short: passes over the training images; may be a part of one. [default: 0.25]"
    half: Literal["choosing", "reporting", "both"] = "choosing"
    "The networks to compare: those that recipes are chosen on, or those that are reported."
    jobs: Count = 1
    "Networks at a time, each in a process of its own."
    threads: Count | None = None
    "Threads of each. [default: all cores divided by --jobs, at least 1]"
    out: UserPath | None = None
    "Where scores and tables are written. [default: a name of these settings, under rankings/]"


app = App(name="alone", help=__doc__, help_format="markdown", version_flags=())


@app.default
def main(options: Options) -> None:
    from mnas.commands.rank import number_of

    number = number_of(options.networks)
    if options.epochs is not None and options.score != "short":
        raise Failure(f"--epochs {options.epochs:g} is for --score short; leave it out", 2)
    from tqdm.auto import tqdm

    from mnas import reference, spaces
    from mnas.storage import files, strict_json
    from mnas.studies import alone, compared
    from mnas.training.environment import environment

    threads = options.threads or threads_of(options.jobs)
    runtime.configure_runtime(threads)
    with user_input():
        table = reference.get(options.space)
        space = spaces.get(options.space, options.resolution)
    drawn = alone.networks(table, number, options.seed, options.some)
    names = [space.format(path) for path in drawn]
    settings = _settings(options, table, number, threads)
    out = options.out or Path("rankings") / _name(settings)
    with user_input(files.FolderError):
        alone.Rows(out, settings, unknown={"data_sha256"})  # before data are loaded
    if settings["dataset"] is not None:
        with user_input():
            data = alone.load(options.dataset, options.data_root, options.resolution)
            space.check_images(data.train.images, options.dataset)
        settings["data_sha256"] = data.sha256
    make(out)
    with user_input(files.FolderError), files.Folder(out, alone.FORMAT).lock():
        rows = alone.Rows(out, settings)
        missing = rows.missing(names)
        with writing(out), tqdm(total=len(names), unit="network", disable=None) as bar:
            bar.update(len(names) - len(missing))
            measured = _measured(settings, options.data_root, missing, options.jobs)
            rows.add(measured, environment(), bar.update)
        with user_input():
            paths = [space.parse(name) for name in names]
            of_paths = alone.of_paths(table, settings, rows.rows, paths)
            found = compared.compare(table, of_paths, options.half, of="")
        title = f"{options.space}: {alone.label(settings)} beside published accuracies"
        page = compared.page(title, found, alone.costs(table, rows.rows))
        with writing(out):
            rows.keep(f"{options.half}.jsonl", strict_json.lines(found))
            rows.keep(f"{options.half}.md", page)
    print(page, end="")


def _settings(options: Options, table: Table, number: int | None, threads: int) -> dict[str, Any]:
    """What must be the same to go on."""
    from mnas.studies import alone

    reads = options.score in alone.READS_IMAGES
    short = options.score == "short"
    return {
        "space": options.space,
        "score": options.score,
        "resolution": options.resolution,
        "networks": len(table) if number is None else min(number, len(table)),
        "some": options.some,
        "seed": options.seed if number or options.some else None,
        "start_seed": options.start_seed,
        "dataset": options.dataset if reads else None,
        "images": alone.IMAGES[options.score],
        **({"epochs": options.epochs or 0.25, **alone.RECIPE} if short else {}),
        "threads": threads,
    }


def _name(settings: dict[str, Any]) -> str:
    parts = [settings["space"], settings["score"]]
    if "epochs" in settings:
        parts.append(f"{settings['epochs']:g}_epochs")
    if settings["resolution"]:
        parts.append(f"{settings['resolution']}px")
    return "_".join([*parts, f"seed{settings['start_seed']}"])


def _measured(
    settings: dict[str, Any], data_root: Path, archs: Sequence[str], jobs: int
) -> Iterator[dict[str, Any]]:
    """Rows in the order of networks."""
    from joblib import Parallel, delayed

    from mnas.studies import alone

    jobs = min(jobs, len(archs))
    if jobs <= 1:
        yield from (alone.measured(settings, data_root, arch) for arch in archs)
    else:
        parallel = Parallel(n_jobs=jobs, return_as="generator")
        yield from parallel(delayed(alone.measured)(settings, data_root, a) for a in archs)
