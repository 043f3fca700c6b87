"""Scores of thousands of networks of a supernet on validation images, beside published
accuracies.

- `mnas rank --checkpoint RUN --data-root DIR`: all networks that have a published accuracy
- `mnas rank --checkpoint RUN --networks 600`: so many paths, drawn by the seed
- `mnas rank alone --score synflow`: networks by themselves, before or after a short training
- `mnas rank compare rankings/* --out DIR`: several supernets beside each other, with a figure

The same command continues what was stopped. Comparisons are of the half of the networks that
recipes are chosen on, unless --half says otherwise (docs/protocol-ranking.md).
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, Parameter

from mnas.commands import alone, compare
from mnas.commands.options import Count, Seed, UserPath
from mnas.errors import Failure, make, user_input, writing
from mnas.training import runtime
from mnas.training.saved import open_run

if TYPE_CHECKING:
    from mnas.reference import Table
    from mnas.training.saved import SavedRun


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Options:
    checkpoint: UserPath
    "Run directory of a supernet, from tools/train.py."
    space: str | None = None
    "Needed for a run with a space of your own: path/to/file.py:function, as it was trained with."
    networks: Annotated[str, Parameter(show_default=True)] = "all"
    "all, or how many paths, drawn by --seed."
    images: Count = 2_000
    "Validation images to score on, the first ones."
    bn: Literal["recalibrate", "stored"] = "recalibrate"
    "Running statistics: of --bn-images for each network, or as stored."
    bn_images: Count = 500
    "Training images that statistics are recalibrated on."
    average: Count = 1
    """Score the mean of the weights after each of the last N epochs, which mnas train
    --keep-checkpoints N keeps."""
    half: Literal["choosing", "reporting", "both"] = "choosing"
    "The networks to compare: those that recipes are chosen on, or those that are reported."
    seed: Seed = 0
    "For --networks N."
    data_root: UserPath = Path("data")
    "Where the data sets other than mnist are; of folder, the folder."
    threads: Count | None = None
    "Threads. [default: all cores]"
    out: UserPath | None = None
    "Where scores and tables are written. [default: rankings/ and the name of the run]"


app = App(help=__doc__, help_format="markdown", version_flags=())
app.command(alone.app)
app.command(compare.app)


@app.default
def main(options: Options) -> None:
    number = number_of(options.networks)
    import hashlib

    from tqdm.auto import tqdm

    from mnas import reference
    from mnas.storage import files, strict_json
    from mnas.studies import compared, compute, scored

    if options.average > 1 and options.bn == "stored":
        raise Failure(
            f"--average {options.average} with --bn stored; expected recalibrate: no network with "
            "averaged weights has stored statistics",
            status=2,
        )
    threads = options.threads or runtime.default_threads()
    runtime.configure_runtime(threads)
    run = open_run(options.checkpoint, options.space)
    if run.config["mode"] != "supernet":
        raise Failure(
            f"{run.directory.path} is a run of networks from scratch; expected a supernet", 2
        )
    run.say_if_unfinished()
    if options.average > 1:
        run = run.averaged(options.average)
    name = run.config["space"]
    table = reference.get(name) if name in reference.TABLES else None
    paths = scored.drawn(_available(run, table), number, options.seed)
    out = options.out or Path("rankings") / run.directory.path.resolve().name
    with files.open_regular(run.directory.path / "checkpoint.pt") as weights:
        digest = hashlib.file_digest(weights, "sha256").hexdigest()
    settings = {
        "space": name,
        "dataset": run.config["dataset"],
        "resolution": run.config.get("resolution"),
        "checkpoint_sha256": digest,
        "networks": len(paths),
        "seed": options.seed if number else None,
        "images": options.images,
        "bn_images": options.bn_images if options.bn == "recalibrate" else None,
        "average": options.average if options.average > 1 else None,
        "threads": threads,
    }
    with user_input(files.FolderError):
        scored.Scores(out, settings)  # before data are loaded
    data = run.data(options.data_root)
    with user_input():
        run.space.check_images(data.train.images, run.config["dataset"])
    split = runtime.for_training(data.validation.first(options.images))
    bn_images = None
    if options.bn == "recalibrate":
        bn_images = runtime.in_memory_order(data.train.images[: options.bn_images])
    make(out)
    with user_input(files.FolderError), files.Folder(out, scored.FORMAT).lock():
        scores = scored.Scores(out, settings)
        total = len(paths) * len(split)
        with (
            writing(out),
            user_input(),
            contextlib.closing(tqdm(total=total, unit="img", unit_scale=True, disable=None)) as bar,
        ):
            scores.score(run.supernet(), paths, split, bn_images, bar.update)
        training = compute.of_run(run)
        with writing(out):
            scores.keep("supernet.json", strict_json.dumps(training, indent=2) + "\n")
        if table is None:
            print(f"{len(paths)} paths in {out}/rows.jsonl; no accuracies of {name} are published")
            return
        with user_input():
            rows = compared.compare(
                table, compared.of_paths(table, scores.rows, paths), options.half
            )
        title = f"{name} on {run.config['dataset']}: a supernet beside published accuracies"
        costs = compute.shown(training, scores.cost(), threads, compute.full_training(table))
        page = compared.page(title, rows, costs)
        with writing(out):
            scores.keep(f"{options.half}.jsonl", strict_json.lines(rows))
            scores.keep(f"{options.half}.md", page)
    print(page, end="")


def number_of(text: str) -> int | None:
    """None for all. Raises Failure for what is no number of networks."""
    if text == "all":
        return None
    if not text.isdecimal() or len(text) > 10 or not 0 < int(text) < 2**31:
        raise Failure(f"--networks {text!r}; expected all, or a whole number above 0", status=2)
    return int(text)


def _available(run: SavedRun, table: Table | None) -> list[tuple[int, ...]]:
    """The paths that have a published accuracy, or all of a small space; of a sub-supernet those of
    its group."""
    from mnas.space.search_space import MANY

    if table is not None:
        return [path for path in map(tuple, table.paths.tolist()) if path in run.space]
    if run.space.size > MANY:
        raise Failure(
            f"space {run.space.name} has {run.space.size:,} networks and no published accuracies; "
            f"expected {MANY:,} networks at most, or a space that has them",
            status=2,
        )
    return list(run.space.paths())
