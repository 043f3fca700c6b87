"""Train a supernet by sampling a path at each step, or networks of the same space from scratch.

    python tools/train.py --mode supernet
        about 40 s on 2 cores; every path about 99.2 % on MNIST
    python tools/train.py --mode scratch --arch all
        about 60 s for the four networks, each about 99.1 %

The run directory holds config.json, metrics.jsonl, checkpoint.pt and
summary.json. However a run was stopped, it continues bit for bit with --resume.
"""

from __future__ import annotations

import signal
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, Literal

import common
from common import Count, Failure, Positive, Seed
from cyclopts import App, Parameter

if TYPE_CHECKING:
    from mnas import SearchSpace
    from mnas.checkpoint import RunDirectory
    from mnas.data import Data
    from mnas.train import Trainer

SUPERNET_ONLY = ("execution", "sampler", "bn")
RECIPE = ("epochs", "batch_size", "lr", "precision", "validate_every")


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Options:
    mode: Literal["supernet", "scratch"] | None = None
    "What to train: all networks of the space in one supernet, or single networks from random weights. [required]"
    space: str | None = None
    "Search space; help lists them. [default: mil4]"
    arch: str | None = None
    "scratch: the network, as conv3x3-conv5x5; all: each in turn; random: one drawn by --seed."
    dataset: str | None = None
    "mnist (embedded), fashion-mnist, kmnist, qmnist or emnist-digits. [default: mnist]"
    data_root: Path = Path("data")
    "Where the data sets other than mnist are, or are downloaded to. [default: data]"
    epochs: Count | None = None
    "Passes over the training images. [default: 4 for supernet, 2 for scratch]"
    batch_size: Count | None = None
    "Images a step. [default: 128]"
    lr: Positive | None = None
    "Peak of the one-cycle learning rate. [default: 0.08]"
    seed: Seed | None = None
    "Decides the random start, the sampled paths and the shuffling. [default: 0]"
    sampler: Literal["uniform", "fair"] | None = None
    "supernet: paths at random, or every candidate equally often. [default: uniform]"
    execution: Literal["sliced", "masked"] | None = None
    "supernet: compute the active region only, or the enclosing operation on W * mask. [default: sliced]"
    bn: Literal["recalibrate", "stored"] | None = None
    "supernet: score networks with statistics of their own (2,000 training images) or stored. [default: recalibrate]"
    precision: Literal["fp32", "bf16"] | None = None
    "Arithmetic of training; bf16 is faster on processors that have it. Scores are always fp32. [default: fp32]"
    validate_every: Count | None = None
    "Epochs between validations; a supernet validates every network. [default: 1]"
    limit_train: Count | None = None
    "Use only the first N training images."
    limit_test: Count | None = None
    "Use only the first N test images."
    threads: Count | None = None
    "Threads; a run is bit-identical only with the same number. [default: all cores]"
    out: Path | None = None
    "Run directory, new or empty. [default: a new one under runs/]"
    resume: Annotated[bool, Parameter(negative=())] = False
    "Continue the run in --out (or the newest default one) with the settings it was begun with."
    checkpoint_every: Count = 200
    "Steps between checkpoints; there is one after each epoch too."


app = App(help=__doc__, help_format="plaintext", version_flags=())


@app.default
def main(options: Options | None = None) -> None:
    options = options or Options()
    if options.space == "help":
        print(common.list_spaces())
        return
    given = {k: v for k, v in asdict(options).items() if v is not None}
    for key in ("data_root", "out", "resume", "checkpoint_every"):
        given.pop(key, None)
    if options.mode is None and not options.resume:
        raise Failure("--mode is missing; expected supernet or scratch", status=2)

    from mnas.checkpoint import RunDirectory

    if options.resume:
        directory = RunDirectory(options.out or _newest(given))
        with common.user_input():
            config = {**directory.config(), **given}
    else:
        config = {**_defaults(options), **given}
    config = _resolve(config)
    if options.resume:
        with common.user_input():
            directory.check_config(config)
    else:
        directory = RunDirectory(options.out or _free(_default_out(config)))

    from mnas import spaces

    common.configure_runtime(config["threads"])
    if directory.finished:
        print(f"{directory.path} is finished")
        _report(directory.summary(), directory.path)
        return
    data = common.load_data(config["dataset"], options.data_root, config["limit_train"], config["limit_test"])
    with common.user_input():
        spaces.get(config["space"]).check_pictures(data.train.images, config["dataset"])
        if not options.resume:
            directory.create(config)
    _train(directory, config, data, options.checkpoint_every)


def _defaults(options: Options) -> dict[str, Any]:
    shared = {"space": "mil4", "dataset": "mnist", "batch_size": 128, "lr": 0.08, "seed": 0}
    shared |= {"precision": "fp32", "validate_every": 1}
    limits = {"limit_train": None, "limit_test": None, "threads": common.default_threads()}
    if options.mode == "supernet":
        return {**shared, **limits, "epochs": 4, "sampler": "uniform", "execution": "sliced", "bn": "recalibrate"}
    return {**shared, **limits, "epochs": 2, "arch": None}


def _resolve(config: dict[str, Any]) -> dict[str, Any]:
    """The settings checked against each other and against the space; `random` becomes the network it drew."""
    import torch

    import mnas
    from mnas import spaces

    scratch = config["mode"] == "scratch"
    if not scratch and config.get("arch"):
        raise Failure(f"--arch {config['arch']} is for --mode scratch; a supernet trains every network", status=2)
    for key in SUPERNET_ONLY:
        if scratch and key in config:
            raise Failure(f"--{key} {config[key]} is for --mode supernet; leave it out", status=2)
    with common.user_input():
        space = spaces.get(config["space"])
        if config.get("execution") == "masked":
            mnas.Supernet(space, "masked")  # raises where that does not exist
        if scratch and config["arch"] is None:
            raise Failure(f"--arch is missing; expected all, random or {space.describe()}", status=2)
        if scratch and config["arch"] == "random":
            config["arch"] = space.format(space.sample(torch.Generator().manual_seed(config["seed"])))
        elif scratch and config["arch"] != "all":
            space.parse(config["arch"])
    return config


def _default_out(config: dict[str, Any]) -> Path:
    parts = [config["mode"], config.get("arch"), config["space"], config["dataset"], f"seed{config['seed']}"]
    return Path("runs") / "-".join(part for part in parts if part)


def _free(base: Path) -> Path:
    """The first of base, base-2, base-3, ... that does not exist."""
    number, path = 1, base
    while path.exists():
        number += 1
        path = base.with_name(f"{base.name}-{number}")
    return path


def _newest(given: dict[str, Any]) -> Path:
    runs = [file.parent for file in Path("runs").glob("*/config.json")]
    runs = [path for path in runs if path.name.startswith(given.get("mode", ""))]
    if not runs:
        raise Failure("there is no run under runs/ to resume; say which with --out DIR", status=2)
    return max(runs, key=lambda path: (path / "config.json").stat().st_mtime)


def _train(directory: RunDirectory, config: dict[str, Any], data: Data, checkpoint_every: int) -> None:
    from mnas import spaces
    from mnas.checkpoint import RunDirectory
    from mnas.train import Recipe, scratch_trainer, supernet_trainer

    space = spaces.get(config["space"])
    recipe = Recipe(**{key: config[key] for key in RECIPE if key in config})
    print(
        f"{config['mode']} of {space.name} ({space.size} architectures) on {config['dataset']}: {len(data.train)} "
        f"training, {len(data.validation)} validation, {len(data.test)} test images; run directory {directory.path}"
    )
    if config["mode"] == "supernet":
        options = {key: config[key] for key in SUPERNET_ONLY if key in config}
        trainer = supernet_trainer(space, data.train, data.validation, recipe, config["seed"], **options)
        summary = _run(directory, config, trainer, data, "supernet", checkpoint_every)
    elif config["arch"] != "all":
        path = space.parse(config["arch"])
        trainer = scratch_trainer(space, path, data.train, data.validation, recipe, config["seed"])
        summary = _run(directory, config, trainer, data, config["arch"], checkpoint_every)
    else:
        parts = {}
        for path in space.paths():
            arch = space.format(path)
            part = parts[arch] = RunDirectory(directory.path / arch)
            if part.finished:
                continue
            with common.user_input():
                if (part.path / "config.json").exists():
                    part.check_config({**config, "arch": arch})
                else:
                    part.create({**config, "arch": arch})
            trainer = scratch_trainer(space, path, data.train, data.validation, recipe, config["seed"])
            _run(part, config, trainer, data, arch, checkpoint_every)
        summary = _join(directory, config, space, parts)
    _report(summary, directory.path)


def _run(
    directory: RunDirectory, config: dict[str, Any], trainer: Trainer, data: Data, label: str, checkpoint_every: int
) -> dict[str, Any]:
    """Train to the end from wherever the directory stands, then read the test set once. Returns the summary."""
    from tqdm import tqdm

    from mnas.train import DivergedError

    seconds = _restore(directory, trainer)
    begun = time.monotonic() - seconds

    def save() -> None:
        with common.writing(directory.path):
            directory.save({"trainer": trainer.state_dict(), "weights": {label: trainer.module.state_dict()}})
            directory.write_rows(trainer.rows)
            directory.write_seconds(time.monotonic() - begun)

    interactive = sys.stderr.isatty()
    bar = tqdm(total=trainer.total_steps, initial=trainer.step, desc=label, unit="step", disable=not interactive)
    with bar, _Interruption() as interruption:
        while not trainer.finished:
            try:
                loss = trainer.advance()
            except DivergedError as error:
                raise Failure(str(error)) from error
            bar.update()
            if trainer.step % 20 == 0:
                bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
            at_epoch = trainer.step % trainer.steps_per_epoch == 0
            if at_epoch:
                line = ", ".join(
                    f"{row['arch']} {100 * row['val_top1']:.2f}"
                    for row in trainer.rows
                    if row["epoch"] == trainer.epoch
                )
                bar.write(f"epoch {trainer.epoch}{'  val top-1 %: ' if line else ''}{line}", file=sys.stdout)
                sys.stdout.flush()
            if at_epoch or trainer.step % checkpoint_every == 0 or interruption.signal:
                save()
            if interruption.signal and not trainer.finished:
                bar.close()
                raise Failure(
                    f"stopped at step {trainer.step} of {trainer.total_steps}; continue with --resume "
                    f"--out {directory.path}",
                    status=128 + interruption.signal,
                )
    seconds = time.monotonic() - begun
    last = {row["arch"]: row for row in trainer.rows if row["epoch"] == trainer.epoch}
    paths = []
    for arch, score in trainer.score(data.test).items():
        paths.append(_result(trainer.space, arch, last[arch]["val_top1"], score.top1, score.loss))
    summary = {**_identity(config), "train_seconds": round(seconds, 2), "paths": paths}
    with common.writing(directory.path):
        directory.finish(summary)
    return summary


def _restore(directory: RunDirectory, trainer: Trainer) -> float:
    """Bring the trainer to the last checkpoint; returns the seconds that it took to get there."""
    with common.user_input():
        state = directory.load()
        if state is None:
            return 0.0
        try:
            trainer.load_state_dict(state["trainer"])
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise Failure(f"the checkpoint in {directory.path} does not fit its config.json; restore it", 2) from error
        began_with = directory.environment().get("torch")
        import torch

        if began_with not in (None, torch.__version__):
            print(f"note: begun with torch {began_with}, continued with {torch.__version__}: bits may differ")
        print(f"continuing at step {trainer.step} of {trainer.total_steps}")
        return directory.seconds()


def _identity(config: dict[str, Any]) -> dict[str, Any]:
    return {key: config[key] for key in ("mode", "space", "dataset", "seed")}


def _result(space: SearchSpace, arch: str, val_top1: float, test_top1: float, test_loss: float) -> dict[str, Any]:
    from mnas import cost

    params, macs = cost(space, space.parse(arch))
    return {
        "arch": arch,
        "val_top1": val_top1,
        "test_top1": test_top1,
        "test_loss": test_loss,
        "params": params,
        "macs": macs,
    }


def _join(
    directory: RunDirectory, config: dict[str, Any], space: SearchSpace, parts: dict[str, RunDirectory]
) -> dict[str, Any]:
    """The networks of `--arch all`, each in its own directory, as one run."""
    import json

    with common.user_input():
        states = {arch: part.load() for arch, part in parts.items()}
        summaries = [part.summary() for part in parts.values()]
        rows = [
            json.loads(line) for p in parts.values() for line in (p.path / "metrics.jsonl").read_text().splitlines()
        ]
    summary = {
        **_identity(config),
        "train_seconds": round(sum(s["train_seconds"] for s in summaries), 2),
        "paths": [path for s in summaries for path in s["paths"]],
    }
    with common.writing(directory.path):
        directory.save({"weights": {arch: state["weights"][arch] for arch, state in states.items()}})
        directory.write_rows(rows)
        directory.finish(summary)
    return summary


def _report(summary: dict[str, Any], path: Path) -> None:
    print(f"\n{common.table(summary['paths'])}\n\n{summary['train_seconds']:.0f} s of training; results in {path}")


class _Interruption:
    """Turns the first Ctrl-C or SIGTERM into a flag, so that the run ends between two steps; the second one kills."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __enter__(self) -> _Interruption:
        self.signal = 0
        self._before = {number: signal.signal(number, self._note) for number in self.SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        self.signal = number
        for number in self.SIGNALS:
            signal.signal(number, signal.SIG_DFL)


if __name__ == "__main__":
    common.run(app)
