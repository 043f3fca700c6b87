"""The whole experiment for a space and a data set, in one command: train supernets, read the
accuracy of their networks, train the same networks from scratch, compare, and write a report.

- `mnas study`: one seed of mil4 on MNIST, about two minutes on 2 cores
- `mnas study --seeds 10 --variants`: ten seeds, and what the analyses compare with
- `mnas study --seeds 3 --rules fair sandwich`: training rules beside each other

Finished runs are kept: the same command continues a study that was stopped, tries again what
failed, and adds seeds if it asks for more. OUT gets rows.jsonl, one network and run a line, the
rows of the other analyses, and by tools/report.py README.md, summary.json and figures. Weights stay
in runs/."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter

from mnas.commands import settings
from mnas.commands.options import Backend, Count, Device, Positive, Seed, UserPath, list_spaces
from mnas.errors import Failure, check_extra, make, user_input, writing
from mnas.studies.plans import FINE_TUNING, RECIPES, Plan, of_rules, step_costs
from mnas.studies.results import Study, TooEarly, study_folder
from mnas.training import cluster, runtime

if TYPE_CHECKING:
    from distributed import Client

    from mnas import SearchSpace
    from mnas.training.data import Data
    from mnas.training.one_run import Run

Row = dict[str, Any]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Options:
    space: str = "mil4"
    "Search space; help lists them. path/to/file.py:function: what a function of your own returns."
    dataset: str = "mnist"
    """mnist (embedded), fashion-mnist, kmnist, qmnist, emnist-digits or cifar10; folder: images in
    {train,test}/CLASS/ below --data-root."""
    data_root: UserPath = Path("data")
    "Where the data sets other than mnist are, or are downloaded to."
    recipe: Literal["short", "long"] = "short"
    "short: minutes; long: trained longer (docs/method.md)."
    seeds: Count = 1
    "Supernets, and runs from scratch of each network."
    variants: Annotated[bool, Parameter(negative=())] = False
    """Also train what the further analyses compare: budgets, samplers, stock optimizer, cheap
    estimates, fine-tuning."""
    rules: Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative=())] = ()
    """Training rules to compare with the supernet of one path a step, at equal seconds: names, with
    =COST where a step costs other than measured (docs/method.md)."""
    epochs: Positive | None = None
    "Epochs of the supernet; arms of rules have less by what a step costs. [default: the recipe's]"
    truth: UserPath | None = None
    """A finished study of the same networks and data, whose runs from scratch are compared with;
    none is trained."""
    networks: Count = 16
    "Networks to compare, drawn by --seed, if the space has more."
    seed: Seed = 0
    "Draws those networks."
    jobs: Count | None = None
    """Runs at a time, each in a process of its own. [default: all cores, on a cluster as many as it
    takes]"""
    backend: Backend = "local"
    "Where they are trained; dask: on the workers of a cluster (docs/processes.md)."
    scheduler: str | None = None
    """dask: the address of its scheduler, as tcp://10.0.0.1:8786, or its scheduler file. [default:
    DASK_SCHEDULER_ADDRESS]"""
    device: Device = "cpu"
    "Where to train; auto is a GPU if there is one, cpu repeats to the last bit."
    threads: Count | None = None
    "Threads of each run. [default: all cores divided by --jobs, at least 1; on a cluster 1]"
    out: UserPath | None = None
    "Directory of the study. [default: results/SPACE_DATASET_nSEEDS]"
    runs: UserPath | None = None
    "Directory of its training runs. [default: runs/SPACE_DATASET]"
    limit_train: Count | None = None
    "Use only the first N training images."
    limit_test: Count | None = None
    "Use only the first N test images."
    log: Literal["tensorboard"] | None = None
    "tensorboard: also scalars of every run that is trained, in tensorboard/ of its directory."


ABOUT = (
    "space",
    "dataset",
    "recipe",
    "seeds",
    "variants",
    "rules",
    "epochs",
    "networks",
    "seed",
    "limit_train",
    "limit_test",
)


def arms(
    options: Options,
    images: int,
    networks: int,
    threads: int,
    costs: dict[str, float] | None = None,
    device: str = "cpu",
) -> list[Plan]:
    """The two that every study has, without runs from scratch if they are another's, the variants
    of the further analyses, and rules, by the costs of their steps."""
    from mnas.training.one_run import DEFAULTS, named_space

    recipe = RECIPES.get((options.space, options.recipe), RECIPES["mil4", options.recipe])
    given = {**named_space(options.space), "dataset": options.dataset, "threads": threads}
    given |= {"limit_train": options.limit_train, "limit_test": options.limit_test}
    given |= {"device": device} if device != "cpu" else {}
    supernet, scratch = (
        {**DEFAULTS[kind], **given, **recipe[kind]} for kind in ("supernet", "scratch")
    )
    if options.epochs:
        supernet["epochs"] = options.epochs
    found = [Plan("supernet", "supernet", supernet)]
    if not options.truth:
        found.append(Plan("scratch", "scratch", scratch))
    found += of_rules(costs or {}, supernet)
    if options.variants:
        other = {"uniform": "fair", "fair": "uniform"}[supernet["sampler"]]
        eighth = {**scratch, "epochs": scratch["epochs"] / 8}
        found += [
            Plan(
                "supernet-equal-updates",
                "supernet",
                {**supernet, "epochs": scratch["epochs"] * networks},
            ),
            Plan(
                "scratch-equal-total",
                "scratch",
                {**scratch, "epochs": supernet["epochs"] / networks},
            ),
            Plan(f"supernet-{other}", "supernet", {**supernet, "sampler": other}),
            Plan("supernet-stock-optimizer", "supernet", {**supernet, "policy": "torch"}),
            Plan("scratch-eighth-of-epochs", "scratch", eighth),
            Plan(
                "scratch-eighth-of-data", "scratch", {**scratch, "limit_train": max(1, images // 8)}
            ),
            Plan("fine-tuned", "scratch", {**eighth, **FINE_TUNING}, after="supernet"),
        ]
    return found


app = App(help=__doc__, help_format="markdown", version_flags=())


@app.default
def main(options: Options | None = None) -> None:
    options = options or Options()
    if options.space == "help":
        print(list_spaces())
        return
    if options.log:
        check_extra("log", options.log)
    with cluster.chosen(options.backend, options.scheduler) as client:
        _main(options, client)


def _main(options: Options, client: Client | None) -> None:
    from mnas.storage.strict_json import FolderError
    from mnas.training import one_run
    from mnas.training.run_directory import RunDirectory

    device = runtime.device(options.device)
    jobs = options.jobs or (None if client else runtime.default_threads())
    threads = options.threads or (1 if client else settings.threads(jobs))
    parts = [options.space.rpartition(":")[2], options.dataset.split("-")[0]]
    parts += ["long"] * (options.recipe == "long") + ["rules"] * bool(options.rules)
    name = "_".join(parts)
    out = options.out or Path("results") / f"{name}_n{options.seeds}"
    root = options.runs or Path("runs") / name
    with user_input():
        space = one_run.space_of(one_run.named_space(options.space))
        costs = step_costs(options.rules, space)
    archs = networks(space, options)
    if len(archs) < 2:
        raise Failure(
            f"{len(archs)} network is nothing to compare; expected 2 at least: raise --networks",
            status=2,
        )
    data = runtime.load_data(
        options.dataset, options.data_root, options.limit_train, options.limit_test
    )
    with user_input():
        space.check_images(data.train.images, options.dataset)
    for flag, path in (("--out", out), ("--runs", root)):
        _check_writable(flag, path)
    truth = reference(options, archs) if options.truth else None
    planned = arms(options, len(data.train), len(archs), threads, costs, device)
    runs = {arm: arm.runs(root, archs, options.seeds) for arm in planned}
    with user_input():
        one_run.check_start(space, *(run.config for of_arm in runs.values() for run in of_arm))
    try:  # before anything is trained: no run of other settings or data counts
        for run in (run for of_arm in runs.values() for run in of_arm):
            if (directory := RunDirectory(run.path)).begun:
                directory.check_config(run.config)
                directory.check_data(options.dataset, data.found)
    except ValueError as error:
        raise Failure(f"{error}: --runs", status=2) from error
    number = f"{sum(map(len, runs.values()))} runs, {jobs or 'all'} at a time"
    scalars = f"; scalars: tensorboard --logdir {root}" if options.log else ""
    line = f"study of {space.name} on {options.dataset}: {number}; report in {out}{scalars}"
    print(line, flush=True)
    with user_input(FolderError), _own(out), _own(root):
        drawn = space.size > options.networks
        _study(options, planned, runs, data, out, root, drawn, truth, jobs, client)


def reference(options: Options, archs: list[str]) -> Study:
    """The study of --truth. Raises Failure where its runs from scratch are not those of the same
    networks and data."""
    study = Study(options.truth)
    wanted = {k: getattr(options, k) for k in ("space", "dataset", "limit_train", "limit_test")}
    for key, value in wanted.items():
        if study.about[key] != value:
            flag = "--" + key.replace("_", "-")
            raise Failure(f"--truth {options.truth} has {flag} {study.about[key]}, not {value}", 2)
    if set(study.archs) != set(archs):
        raise Failure(
            f"--truth {options.truth} compares other networks than these {len(archs)}; expected "
            "the same --networks and --seed",
            2,
        )
    return study


@contextlib.contextmanager
def _own(directory: Path) -> Iterator[None]:
    """Nobody else makes a study there meanwhile."""
    make(directory)
    with writing(directory):
        lock = study_folder(directory).lock()
    with lock:
        yield


def _study(
    options: Options,
    planned: list[Plan],
    runs: dict[Plan, list[Run]],
    data: Data,
    out: Path,
    root: Path,
    drawn: bool,
    truth: Study | None,
    jobs: int | None,
    client: Client | None,
) -> None:
    """Train what has not been, and write rows and report."""
    from mnas.commands import report
    from mnas.training import sweep

    outcomes: dict[Path, Any] = {}
    stopped = False
    for after in (False, True):  # fine-tuning begins with the supernets
        now = [run for arm, of_arm in runs.items() for run in of_arm if bool(arm.after) is after]
        ended = sweep.train(
            now, jobs, options.data_root, checkpoint_every=500, log=options.log, client=client
        )
        outcomes |= {run.path: outcome for run, outcome in zip(now, ended, strict=True)}
        stopped = any(isinstance(outcome, Failure) and outcome.status > 128 for outcome in ended)
        if stopped:
            break
    rows, failed = collected(runs, outcomes, len(data.train))
    if options.variants and not stopped:
        from mnas.studies import drift

        rows["drift"] = drift.kept(root, planned[0].config, data, min(3, options.seeds))
    if truth:
        rows["rows"] += truth.arms["scratch"].rows
        rows["curves"] += [row for row in truth.curves if row["kind"] == "scratch"]
    record(out, options, runs, rows, failed, drawn, len(data.test), truth)
    began = [run for of_arm in runs.values() for run in of_arm if run.path in outcomes]
    try:
        print(report.write(out))
    except TooEarly:
        sweep.check(
            began, [outcomes[run.path] for run in began], "the same command"
        )  # says more, if a run failed
        raise
    sweep.check(began, [outcomes[run.path] for run in began], "the same command")


def networks(space: SearchSpace, options: Options) -> list[str]:
    """All of a small space, or as many as were asked for."""
    import torch

    if space.size <= options.networks:
        return [space.format(path) for path in space.paths()]
    generator, drawn = torch.Generator().manual_seed(options.seed), set()
    while len(drawn) < options.networks:
        drawn.add(space.sample(generator))
    return [space.format(path) for path in sorted(drawn)]


def _check_writable(flag: str, directory: Path) -> None:
    """The directory, or what it is to be made in, can be written to; makes nothing."""
    existing = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    if not (existing.is_dir() and os.access(existing, os.W_OK)):
        raise Failure(
            f"cannot write to {flag} {directory}: {existing} is no writable directory; give "
            "another",
            2,
        )


def collected(
    runs: dict[Plan, list[Run]], outcomes: dict[Path, Any], images: int
) -> tuple[dict[str, list[Row]], list[Row]]:
    """The raw rows of the study by file: those of its two arms, of the variants, and of the curves
    of validation; and which runs failed."""
    from mnas.training.run_directory import RunDirectory

    files: dict[str, list[Row]] = {"rows": [], "variants": [], "curves": [], "drift": []}
    failed = []
    for arm, of_arm in runs.items():
        for run in of_arm:
            outcome, labels = outcomes.get(run.path), {"kind": arm.kind, "seed": run.config["seed"]}
            if not isinstance(outcome, dict):
                reason = str(outcome or "not begun")
                failed.append(
                    {"run": run.name, "arm": arm.name, "seed": run.config["seed"], "reason": reason}
                )
                continue
            main = arm.name == arm.kind
            labels = labels if main else {"variant": arm.name, **labels}
            batch = min(run.config["batch_size"], run.config["limit_train"] or images, images)
            try:
                about = {"steps": outcome["steps"], "seconds": outcome["train_seconds"]}
                about["images"] = about["steps"] * batch
                about |= RunDirectory(run.path).provenance()
                files["rows" if main else "variants"] += [
                    {**labels, **path, **about} for path in outcome["paths"]
                ]
                for row in RunDirectory(run.path).rows() if main else []:
                    files["curves"].append(
                        {**labels, **{key: row[key] for key in ("arch", "epoch", "val_top1")}}
                    )
            except (KeyError, OSError, TypeError, ValueError) as error:
                raise Failure(
                    f"{run.path} is damaged ({error!r}); remove it to train it again", status=2
                ) from error
    return files, failed


def record(
    out: Path,
    options: Options,
    runs: dict[Plan, list[Run]],
    rows: dict[str, list[Row]],
    failed: list[Row],
    drawn: bool,
    test_images: int,
    truth: Study | None = None,
) -> None:
    """A file of rows each, none of an earlier study left; study.json says how they were made and
    what failed."""
    from mnas.storage import files, strict_json
    from mnas.training.environment import environment
    from mnas.training.run_directory import RunDirectory

    about = {key: getattr(options, key) for key in ABOUT}
    about |= {"rules": list(options.rules), "truth": str(truth.path) if truth else None}
    arms = {arm.name: arm.about for arm in runs}
    if truth:
        arms["scratch"] = truth.about["arms"]["scratch"]
    first = RunDirectory(next(iter(runs.values()))[0].path)
    trained_in = first.environment() if first.finished else environment()
    about |= {
        "drawn": drawn,
        "test_images": test_images,
        "failed": failed,
        "arms": arms,
        "environment": trained_in,
    }
    kept = {
        f"{name}.jsonl": strict_json.lines(those)
        for name, those in rows.items()
        if those or name == "rows"
    }
    kept["study.json"] = strict_json.dumps(about, indent=2) + "\n"
    with writing(out), user_input(files.FolderError):
        study_folder(out).write(
            kept, remove={f"{name}.jsonl" for name in rows} - kept.keys(), settle=True
        )
