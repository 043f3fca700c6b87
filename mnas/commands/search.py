"""Search a trained supernet for networks of a high validation accuracy at a low cost.

- `mnas search --checkpoint runs/supernet-mil9-mnist-seed0 --max-macs 2000000`
- `mnas search --checkpoint DIR --aims score --max-macs 2000000`: draws towards the best one within
  the budget alone
- `mnas search --checkpoint DIR --sampler tpe --storage search.log`: goes on after it was stopped
- `mnas search --checkpoint DIR --by latency --max-latency 2.5`: milliseconds of exported networks,
  measured here
- `mnas search --checkpoint DIR --out front.jsonl`: also the rows of the table, and `front.png`

Needs `pip install 'mnas[search]'`. Each network is scored once, with the supernet's weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter
from cyclopts.validators import Number

from mnas.commands.options import Count, Positive, Seed, UserPath, _integer
from mnas.errors import Failure, check_extra, user_input, writing
from mnas.training import runtime
from mnas.training.saved import open_run

Batch = Annotated[int, Parameter(converter=_integer, validator=Number(gte=2, lte=2**16))]
Budget = Annotated[int, Parameter(converter=_integer, validator=Number(gt=0, lt=2**62))]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Options:
    checkpoint: UserPath
    "Run directory of tools/train.py --mode supernet."
    space: str | None = None
    "Needed for a run with a space of your own: path/to/file.py:function, as it was trained with."
    sampler: Literal["random", "tpe", "nsga2"] = "nsga2"
    "How networks are drawn."
    trials: Count = 200
    "How many are drawn; those over a budget or drawn before count, and are not scored."
    aims: Literal["score,cost", "score"] = "score,cost"
    "The front of both, or the best network within the budgets, whatever else it costs."
    by: Literal["macs", "params", "latency"] = "macs"
    "The cost of the front."
    max_macs: Budget | None = None
    "Budget of multiply-accumulates an image. [default: none]"
    max_params: Budget | None = None
    "Budget of parameters. [default: none]"
    max_latency: Positive | None = None
    "Budget of milliseconds of a forward pass of the exported network. [default: none]"
    latency_images: Count = 1
    "Images of that forward pass."
    batch: Batch = 16
    "Networks drawn at a time, which compute what they share once; a generation of nsga2."
    seed: Seed = 0
    "Of the sampler."
    bn: Literal["recalibrate", "stored"] | None = None
    "Running statistics. [default: as the run had it]"
    data_root: UserPath = Path("data")
    "Where the data sets other than mnist are."
    limit_validation: Count | None = None
    "Score on the first N validation images. [default: all]"
    storage: UserPath | None = None
    "A file that keeps the search; the same command goes on with it. [default: none is kept]"
    out: UserPath | None = None
    "Also write the front here, one JSON object a line, and its picture beside it; a new file."
    threads: Count | None = None
    "Threads. [default: all cores]"


app = App(help=__doc__, help_format="markdown", version_flags=())


@app.default
def main(options: Options) -> None:
    check_extra("search", "optuna")
    for name in ("out", "storage"):
        file = getattr(options, name)
        if file is not None and not file.parent.is_dir():
            raise Failure(
                f"{file.parent} is no directory; give --{name} a file in an existing one", status=2
            )
    picture = options.out and options.out.with_suffix(".png")
    if options.out is not None and picture is not None:
        check_extra("report", "matplotlib")
        for file in (options.out, picture):
            if file.exists():
                raise Failure(f"{file} exists; give --out a new file", status=2)
            if file == options.storage:
                raise Failure(
                    f"--out and --storage are both {file}, and the front would be written over the "
                    "search; give them two files",
                    status=2,
                )
        if options.out == picture:
            raise Failure(f"--out {picture} is the picture; give rows another ending", status=2)

    from tabulate import tabulate
    from tqdm import tqdm

    import mnas
    from mnas.networks import Latency
    from mnas.storage import files, strict_json
    from mnas.training.trainer import BN_IMAGES

    runtime.configure_runtime(options.threads or runtime.default_threads())
    run = open_run(options.checkpoint, options.space)
    run.say_if_unfinished()
    if run.config["mode"] != "supernet":
        raise Failure(
            f"{options.checkpoint} holds networks trained from scratch; search a supernet, as of "
            "mnas train --mode supernet",
            status=2,
        )
    bn = options.bn or run.config.get("bn", "stored")
    data = run.data(options.data_root)
    split = data.validation.first(options.limit_validation)
    bn_images = data.train.images[:BN_IMAGES] if bn == "recalibrate" else None
    net = run.supernet()

    def score(paths: list[tuple[int, ...]]) -> list[float]:
        scores = mnas.evaluate_paths(net, paths, split.images, split.labels, bn_images=bn_images)
        return [s.top1 for s in scores]

    latency = None
    if options.by == "latency" or options.max_latency is not None:
        latency = Latency(net, split.images[: options.latency_images])
    # Of other weights, images or statistics the scores are others.
    weights = files.Version.of((run.directory.path / "checkpoint.pt").read_bytes()).sha256
    name = f"{run.space.name} {weights[:16]} {bn} {len(split)}"
    with tqdm(total=options.trials, unit="network", disable=None) as bar, user_input():
        found = mnas.search(
            run.space,
            score,
            trials=options.trials,
            sampler=options.sampler,
            aims=options.aims,
            by=options.by,
            max_macs=options.max_macs,
            max_params=options.max_params,
            max_latency=options.max_latency,
            latency=latency,
            batch=options.batch,
            seed=options.seed,
            storage=options.storage,
            name=name,
            progress=bar.update,
        )
    if not found.networks:
        raise Failure(
            f"none of {found.trials} networks drawn is within the budget; raise --max-macs, "
            "--max-params, --max-latency or --trials",
            status=2,
        )
    print(
        f"{len(found.networks)} of {run.space.size} networks scored on {len(split)} validation "
        f"images; {len(found.front)} are on the front of accuracy and {options.by}, the best last"
    )
    rows = [
        {"arch": n.arch, "val_top1": n.score, "params": n.params, "macs": n.macs}
        | ({} if n.latency is None else {"latency_ms": n.latency})
        for n in found.front
    ]
    headers = ("arch", "val top-1 %", "params", "MACs", "ms")[: len(rows[0])]
    shown = [(arch, 100 * top1, *costs) for arch, top1, *costs in (row.values() for row in rows)]
    print(tabulate(shown, headers, floatfmt=("", ".2f", "", "", ".3f"), intfmt=","))
    if options.out is not None and picture is not None:
        from mnas.studies import fronts

        with writing(options.out):
            files.write_atomically(options.out, strict_json.lines(rows))
            fronts.picture(picture, found, options.by)
        print(f"wrote {options.out} and {picture}")
