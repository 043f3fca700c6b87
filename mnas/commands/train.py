"""Train a supernet by sampling a path at each step, or networks of the same space from scratch.

- `mnas train --mode supernet`: about 40 s on 2 cores; every path about 99.2 % on MNIST
- `mnas train --mode scratch --arch all`: about 60 s for the four networks, each about 99.1 %

Files are in the run directory. However a run was stopped, --resume continues it bit for bit.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter

from mnas.commands import directories, settings
from mnas.commands.options import (
    Backend,
    Count,
    Device,
    Positive,
    Seed,
    Share,
    Side,
    UserPath,
    Weight,
    list_spaces,
    table,
)
from mnas.errors import Failure, check_extra, user_input
from mnas.training import cluster, one_run, processes, runtime, sweep
from mnas.training.processes import LostError, Processes
from mnas.training.saved import resume_command

if TYPE_CHECKING:
    from distributed import Client

    from mnas import SearchSpace
    from mnas.training.data import Data
    from mnas.training.run_directory import RunDirectory


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Options:
    mode: Literal["supernet", "scratch"] | None = None
    """What to train: all networks of the space in one supernet, or single networks from random
    weights. [required]"""
    space: str | None = None
    """Search space; help lists them. path/to/file.py:function: what a function of your own returns.
    [default: mil4]"""
    arch: str | None = None
    "scratch: the network, as conv3x3-conv5x5; all: each of the space; random: one drawn by --seed."
    dataset: str | None = None
    """mnist (embedded), fashion-mnist, kmnist, qmnist, emnist-digits or cifar10; folder: images in
    {train,test}/CLASS/ below --data-root. [default: mnist]"""
    data_root: UserPath = Path("data")
    "Where the data sets other than mnist are, or are downloaded to."
    resolution: Side | None = None
    """Pixels a side that all images are resized to, and that the space then takes. [default: as
    they are]"""
    epochs: Positive | None = None
    """Passes over the training images; may end within one, as 0.5. [default: 4 for supernet, 2 for
    scratch]"""
    batch_size: Count | None = None
    "Images a step. [default: 128]"
    lr: Positive | None = None
    "Peak of the one-cycle learning rate. [default: 0.08]"
    seed: Seed | None = None
    "Decides the random start, the sampled paths and the shuffling. [default: 0]"
    sampler: Literal["uniform", "fair"] | None = None
    """supernet: paths at random, or every candidate equally often. [default: uniform; fair for
    --rule fair]"""
    rule: (
        Literal["single_path", "fair", "sandwich", "distilled", "path_dropout", "ranked", "dynamic"]
        | None
    ) = None
    """What a step learns from (docs/training-rules.md); of these, distilled alone is for scratch,
    too. [default: single_path]"""
    random_paths: Count | None = None
    "sandwich, ranked: paths at random beside the largest and the smallest. [default: 2]"
    teacher: UserPath | None = None
    "distilled: a finished run, whose network, of several the largest, is learned from."
    temperature: Positive | None = None
    "distilled: of both softmaxes. [default: 1]"
    distill_weight: Share | None = None
    "distilled: the teacher's share of the loss, 0 to 1; labels have the rest. [default: 0.5]"
    drop: Share | None = None
    """path_dropout: the probability that all values of a decision would be dropped, at the end of
    training. [default: 0.5]"""
    ghost: Count | None = None
    "path_dropout: images that are normalised, and lose candidates, together. [default: 32]"
    rank_weight: Weight | None = None
    "ranked: of the loss on the order of two paths, at the end of training. [default: 1]"
    decay_smallest: Positive | None = None
    """dynamic: power of the rest of the training that the learning rate of the smallest network
    goes with. [default: 4]"""
    decay_largest: Positive | None = None
    "dynamic: the same for the largest. [default: 0.25]"
    momentum_groups: Count | None = None
    "dynamic: groups of paths by size, each with momentum of its own. [default: 1]"
    execution: Literal["sliced", "masked"] | None = None
    """supernet: compute the active region only, or the enclosing operation on W * mask. [default:
    sliced]"""
    bn: Literal["recalibrate", "stored"] | None = None
    """supernet: score networks with statistics of their own (2,000 training images) or stored.
    [default: recalibrate]"""
    precision: Literal["fp32", "bf16"] | None = None
    """Arithmetic of training; bf16 is faster on processors that have it. Scores are always fp32.
    [default: fp32]"""
    augment: Literal["none", "shift", "crop_flip"] | None = None
    """shift: every training image moved by up to two pixels, another way each time; crop_flip: by
    up to an eighth of its side, and half of them mirrored. [default: none]"""
    policy: Literal["frozen", "torch"] | None = None
    """supernet: entries that a step does not use stay, or move on by stock momentum and decay.
    [default: frozen]"""
    start: UserPath | None = None
    """A supernet's run whose weights the network, or the supernet, begins with. [default: random
    weights]"""
    group: Annotated[tuple[str, ...] | None, Parameter(consume_multiple=True, negative=())] = None
    """supernet: train and score only the networks with these values of decisions, as
    choice0=conv5x5: a sub-supernet of few-shot search. [default: all networks]"""
    validate_every: Count | None = None
    "Epochs between validations; a supernet validates every network. [default: 1]"
    limit_train: Count | None = None
    "Use only the first N training images."
    limit_test: Count | None = None
    "Use only the first N test images."
    jobs: Count | None = None
    """scratch, --arch all: networks trained at a time, each in a process of its own. [default: 1,
    on a cluster as many as it takes]"""
    backend: Backend = "local"
    """scratch, --arch all: where they are trained; dask: on the workers of a cluster that see the
    same files (docs/processes.md)."""
    scheduler: str | None = None
    """dask: the address of its scheduler, as tcp://10.0.0.1:8786, or its scheduler file. [default:
    DASK_SCHEDULER_ADDRESS]"""
    device: Device | None = None
    """Where to train; auto is a GPU if there is one, cpu repeats to the last bit. [default: cpu]"""
    threads: Count | None = None
    """Threads of each run, bit-identical only with the same number. [default: all cores divided by
    --jobs, at least 1; on a cluster 1]"""
    keep_memory: bool | None = None
    """Keep freed memory instead of returning it to the system after every operation; no result
    changes. [default: yes]"""
    channels_last: bool | None = None
    "Images in channels_last order; makes no difference for one channel. [default: yes]"
    paths_per_rank: Annotated[bool | None, Parameter(negative=())] = None
    """supernet, under torchrun: each process draws paths of its own, and a step learns from all of
    them."""
    out: UserPath | None = None
    "Run directory, new or empty. [default: a new one under runs/]"
    resume: Annotated[bool, Parameter(negative=())] = False
    "Continue the run in --out (or the newest default one) with the settings it was begun with."
    log: Literal["tensorboard"] | None = None
    "tensorboard: also scalars, in tensorboard/ of the run directory; give it with --resume, too."
    keep_checkpoints: Count | None = None
    """supernet: keep the weights after each of the last N epochs, for mnas rank --average.
    [default: 1, the last]"""
    checkpoint_every: Count = 200
    "Steps between checkpoints; there is one after each epoch too."


UNRECORDED = (
    *("data_root", "out", "resume", "checkpoint_every", "log"),
    *("jobs", "backend", "scheduler"),
)
"""Options that are no settings of a run: what is trained is the same."""

app = App(help=__doc__, help_format="markdown", version_flags=())


@app.default
def main(options: Options | None = None) -> None:
    options = options or Options()
    if options.space == "help":
        print(list_spaces())
        return
    options = _continued(options)
    try:
        with processes.joined() as group:
            if group.first:
                with cluster.chosen(options.backend, options.scheduler) as client:
                    _main(options, group, client)
            else:
                one_run.follow(group)
    except LostError as error:
        raise Failure(str(error)) from error


def _continued(options: Options) -> Options:
    """Where torchrun starts all processes again, a run that has begun goes on."""
    if processes.restarts() and options.out is None and not options.resume:
        raise Failure(
            "--max-restarts of torchrun needs --out: give it the directory that is to go on", 2
        )
    if not processes.restarted() or options.resume:
        return options
    from mnas.training.run_directory import RunDirectory

    return replace(options, resume=RunDirectory(options.out).begun)


def _main(options: Options, group: Processes, client: Client | None) -> None:
    given = {k: v for k, v in asdict(options).items() if v is not None}
    given |= {"processes": group.world}
    for key in UNRECORDED:
        given.pop(key, None)
    if options.device is not None:
        given["device"] = runtime.device(options.device)
    if options.log:
        check_extra("log", options.log)
    if options.mode is None and not options.resume:
        raise Failure("--mode is missing; expected supernet or scratch", status=2)

    from mnas.training.run_directory import RunDirectory

    if options.space is not None:
        given |= one_run.named_space(options.space)
    if options.resume:
        directory = RunDirectory(options.out or directories.newest(given))
        with user_input():
            stored = directory.config()
        directories.check_space(directory, stored, given)
        config = {**stored, **given}
        for key, (usual, flag) in settings.UNWRITTEN.items():
            began, now = (c.get(key, usual) for c in (stored, config))
            if began != now:
                raise Failure(
                    f"{directory.path} was begun with {flag} {began}, not {now}; resume with the "
                    "same settings or choose another directory",
                    status=2,
                )
    else:
        threads = 1 if client else settings.threads(options.jobs or 1)
        config = {**settings.defaults(options.mode, options.rule), "threads": threads, **given}
    config = settings.resolved(config)
    if config.get("arch") != "all":
        for flag, value, one in (
            ("jobs", options.jobs or 1, 1),
            ("backend", options.backend, "local"),
        ):
            if value != one:
                raise Failure(
                    f"--{flag} {value} is for --mode scratch --arch all; expected {one}, leave it "
                    "out",
                    status=2,
                )
    if options.resume:
        with user_input():
            directory.check_config(config)
    else:
        directory = RunDirectory(options.out or directories.free(directories.default_out(config)))

    from mnas.storage.strict_json import FolderError
    from mnas.training.checks import check_split

    runtime.configure_runtime(config["threads"], config["keep_memory"])
    with user_input():
        if directory.finished:
            group.of_first()
            print(f"{directory.path} is finished")
            _report(directory.summary(), directory.path)
            return
    data = one_run.load(config, options.data_root)
    with user_input():
        space = one_run.space_of(config)
        check_split(config["dataset"], data.train, space)
    batch = min(config["batch_size"], len(data.train))
    if batch % group.world:
        raise Failure(
            f"--batch-size {batch} for {group.world} processes; expected a multiple, of which each "
            "gets the same share",
            status=2,
        )
    if not options.resume:
        with user_input():
            one_run.check_start(space, config)
            directory.create(config, data.found)
    with user_input(FolderError):
        with one_run.locked(directory, config, data):
            _train(options, directory, config, space, data, group, client)
        _report(directory.summary(), directory.path)


def _train(
    options: Options,
    directory: RunDirectory,
    config: dict[str, Any],
    space: SearchSpace,
    data: Data,
    group: Processes,
    client: Client | None,
) -> None:
    print(
        f"{config['mode']} of {space.title} ({space.size} architectures) on {config['dataset']}: "
        f"{len(data.train)} training, {len(data.validation)} validation, {len(data.test)} test "
        f"images; run directory {directory.path}",
        flush=True,
    )
    if not client:
        _note_crowding((options.jobs or 1) * group.world, config["threads"])
    runs = directories.runs(directory, config, space)
    every, log = options.checkpoint_every, options.log
    outcomes = sweep.train(runs, options.jobs, options.data_root, every, group, log, client)
    sweep.check(runs, outcomes, resume_command(directory.path, config, options.data_root))
    if config.get("arch") == "all":
        directories.join(directory, config, runs, outcomes)


def _note_crowding(jobs: int, threads: int) -> None:
    cores = runtime.cores()
    if jobs * threads > cores:
        print(
            f"note: --jobs {jobs} with --threads {threads} each on {cores} cores: threads that "
            "wait for a core make training up to 50 times slower; jobs times threads should be "
            f"{cores} at most",
            file=sys.stderr,
        )


def _report(summary: dict[str, Any], path: Path) -> None:
    print(
        f"\n{table(summary['paths'])}\n\n{summary['train_seconds']:.0f} s of training; results in "
        f"{path}"
    )
