"""One training run: begun or continued from its directory, trained to the end, tested once."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mnas.errors import Failure, user_input, writing
from mnas.storage import files
from mnas.training import inherited, runtime
from mnas.training.processes import ALONE, LostError, Processes
from mnas.training.progress import Interruption
from mnas.training.saved import grouped, resume_command

if TYPE_CHECKING:  # as in common.py
    from mnas.space.search_space import SearchSpace
    from mnas.training.data import Data
    from mnas.training.loop import Loop
    from mnas.training.run_directory import RunDirectory
    from mnas.training.trainer import Trainer

SHARED: dict[str, Any] = {
    **{"space": "mil4", "dataset": "mnist", "limit_train": None, "limit_test": None, "seed": 0},
    **{"batch_size": 128, "lr": 0.08, "precision": "fp32", "augment": "none", "validate_every": 1},
    **{"keep_memory": True, "channels_last": True},
}
OWN: dict[str, dict[str, Any]] = {
    "supernet": {
        "epochs": 4,
        "sampler": "uniform",
        "execution": "sliced",
        "bn": "recalibrate",
        "policy": "frozen",
    },
    "scratch": {"epochs": 2, "arch": None, "start": None},
}
DEFAULTS = {mode: {**SHARED, **own} for mode, own in OWN.items()}
"""The settings of a run that nobody asked for; `threads` are to be added."""
RECIPE = ("epochs", "batch_size", "lr", "precision", "augment", "validate_every")

Report = Callable[
    ..., int
]  # takes the run's name, a line, step, total and loss; returns the signal to stop by, or 0


@dataclass(frozen=True)
class Run:
    """path: its directory, begun or not. config: its settings, as `tools/train.py` writes them.
    name: for the user, different from those of the runs beside it. patience: seconds to wait for
    another process that has its directory and is about to end."""

    path: Path
    config: dict[str, Any]
    name: str
    patience: float = files.LOCK_SECONDS


def load(config: dict[str, Any], data_root: Path) -> Data:
    """The data of a run; the next run of the process with the same data gets the same tensors."""
    return _load(
        config["dataset"],
        data_root,
        config["limit_train"],
        config["limit_test"],
        config["channels_last"],
        runtime.device(config.get("device", "cpu")),
        config.get("resolution"),
    )


def check_start(space: SearchSpace, *configs: dict[str, Any]) -> None:
    """Before anything is written or trained: raise ValueError where one of the runs is to begin at
    random and the space cannot."""
    from mnas.networks.export import standalone

    if any(c["mode"] == "scratch" and c.get("start") is None for c in configs):
        standalone(space, space.path())


_load = functools.lru_cache(maxsize=1)(runtime.load_data)


def train(
    run: Run,
    report: Report,
    data_root: Path,
    checkpoint_every: int,
    processes: Processes = ALONE,
    log: str | None = None,
) -> None:
    """Train to the end, then read the test set once and write the summary. processes: the others
    `follow`. log: "tensorboard" for its scalars, too. Raises Failure, also when stopped."""
    from mnas.storage.strict_json import FolderError
    from mnas.training.run_directory import RunDirectory

    if number := report(run.name):
        raise Failure("stopped before it began", status=128 + number)
    runtime.configure_runtime(run.config["threads"], run.config["keep_memory"])
    directory, data = RunDirectory(run.path), load(run.config, data_root)
    with user_input(FolderError), locked(directory, run.config, data, run.patience):
        state = directory.load()
        processes.of_first(_Job(run.config, data_root, checkpoint_every, data.found, state))
        how = resume_command(run.path, run.config, data_root)
        _train(run, directory, data, report, checkpoint_every, processes, state, how, log)


@contextlib.contextmanager
def locked(
    directory: RunDirectory,
    config: dict[str, Any],
    data: Data,
    patience: float = files.LOCK_SECONDS,
) -> Iterator[None]:
    """The directory of a run, begun now or before with the same settings and data, for this process
    alone.

    Raises FolderError where it cannot be that.
    """
    if not directory.begun:
        with directory.new():
            directory.create(config, data.found)
            yield
        return
    directory.check_config(config)
    with writing(directory.path), directory.lock(patience):
        directory.recover()
        directory.check_data(config["dataset"], data.found)
        yield


class _Job(NamedTuple):
    """What the first process tells the others. found: of the data. state: the last checkpoint."""

    config: dict[str, Any]
    data_root: Path
    checkpoint_every: int
    found: dict[str, Any]
    state: dict[str, Any] | None


def follow(processes: Processes) -> None:
    """The run of the first process, in one of the others, which computes the same and neither
    writes nor speaks. Raises Failure for what is its own, SystemExit where the first one says why,
    and LostError."""
    try:
        job: _Job | None = processes.of_first()
    except LostError:  # the first one has said why
        raise SystemExit(1) from None
    if job is None:
        return
    runtime.configure_runtime(job.config["threads"], job.config["keep_memory"])
    with Interruption() as interruption:
        data = load(job.config, job.data_root)
        if data.found != job.found:
            raise Failure(f"process {processes.rank} has other data than process 0", 2)
        trainer = trainer_of(job.config, data, processes)
        if job.state is not None:
            trainer.load_state_dict(job.state["trainer"])
        try:
            _to_the_end(
                trainer,
                lambda *_, **__: interruption.signal,
                trainer.state_dict,
                job.checkpoint_every,
                processes,
            )
        except Failure as failure:
            raise SystemExit(failure.status) from failure
        processes.of_first()  # the first one has tested


def _train(
    run: Run,
    directory: RunDirectory,
    data: Data,
    report: Report,
    checkpoint_every: int,
    processes: Processes,
    state: dict[str, Any] | None,
    how: str,
    log: str | None,
) -> None:
    from mnas.training.loop import Loop
    from mnas.training.scalars import Scalars

    scalars = [Scalars(run.path)] if log else []
    with user_input():
        trainer = trainer_of(run.config, data, processes, Loop(callbacks=scalars))
    report = functools.partial(report, run.name)
    begun = time.monotonic() - _restore(directory, state, trainer, report)
    keep = run.config.get("keep_checkpoints", 1)

    def save() -> None:
        with writing(directory.path):
            for written in scalars:
                written.flush()
            weights = {run.config.get("arch") or "supernet": trainer.module.state_dict()}
            state = {"trainer": trainer.state_dict(), "weights": weights}
            kept = int(trainer.epoch) if trainer.due and 0 < trainer.epochs_left < keep else None
            directory.save(state, trainer.rows, time.monotonic() - begun, kept)

    with contextlib.ExitStack() as stack:
        for written in scalars:
            written.begin(trainer.step, lambda: time.monotonic() - begun)
            stack.callback(written.close)
        _to_the_end(trainer, report, save, checkpoint_every, processes, how)
    seconds = time.monotonic() - begun
    summary = {**identity(run.config), "train_seconds": round(seconds, 2), "steps": trainer.step}
    summary["paths"] = results(trainer, data)
    with writing(directory.path):
        directory.finish(summary, trainer.rows, seconds)
    processes.of_first()


def _to_the_end(
    trainer: Trainer,
    report: Report,
    save: Callable[[], Any],
    checkpoint_every: int,
    processes: Processes,
    how: str = "",
) -> None:
    """Every step that is left, with checkpoints. how: to continue. Raises Failure when stopped."""
    from mnas.training.trainer import DivergedError

    while not trainer.finished:
        try:
            loss = trainer.advance()
        except DivergedError as error:
            raise Failure(str(error)) from error
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):  # torch's, of BatchNorm
                raise
            raise Failure(
                "a BatchNorm gets one value a channel, which has no variance; raise --batch-size, "
                "or --ghost of path_dropout",
                2,
            ) from error
        due = trainer.due
        line = _epoch_line(trainer) if due else None
        number = report(step=trainer.step, total=trainer.total_steps, loss=loss)
        number = max(processes.gathered(number))  # all stop after the same step
        if due or trainer.step % checkpoint_every == 0 or number:
            save()
        if line is not None:  # once what it says is safe
            report(line)
        if number and not trainer.finished:
            at = f"stopped at step {trainer.step} of {trainer.total_steps}"
            raise Failure(f"{at}; continue with {how}", status=128 + number)


def identity(config: dict[str, Any]) -> dict[str, Any]:
    """What a summary says about its run."""
    return {key: config[key] for key in ("mode", "space", "dataset", "seed")}


def named_space(space: str) -> dict[str, str]:
    """The settings for a space that the user has named: for one in a file, where that is and its
    digest. Raises Failure where it cannot be read."""
    from mnas.spaces import own

    if not own.is_own(space):
        return {"space": space}
    with user_input():
        source = own.read(space)
    return {"space": source.name, "space_sha256": source.sha256}


def space_of(config: dict[str, Any]) -> SearchSpace:
    """The search space of these settings, which the user has given or confirmed: those of a
    directory alone run no file. Raises ValueError."""
    from mnas import spaces
    from mnas.spaces import own

    if config.get("space_sha256") is None:
        space = spaces.get(config["space"], config.get("resolution"))
    else:
        space = own.load(config["space"], config["space_sha256"])
        space = space.at(config["resolution"]) if config.get("resolution") else space
    return grouped(space, config)


def begun_with(
    config: dict[str, Any], space: SearchSpace, arch: str | None = None
) -> dict[str, Any] | None:
    """The weights of the run in `start`: of its network `arch`, or of the supernet. None without
    such a run."""
    if not config.get("start"):
        return None
    run, own = Path(config["start"]), own_space(config)
    if arch is None:
        return inherited.supernet(run, space, own)
    return inherited.exported(run, space.name, arch, own)


def own_space(config: dict[str, Any]) -> str | None:
    """For opening runs of the same space."""
    return config["space"] if config.get("space_sha256") else None


def trainer_of(
    config: dict[str, Any],
    data: Data,
    processes: Processes = ALONE,
    loop: Loop | None = None,
) -> Trainer:
    """What trains the run of these settings, at its beginning. processes: that share each batch.
    loop: with what is called on the way; by default nothing is."""
    from mnas.training.loop import USUAL
    from mnas.training.trainer import Recipe, scratch_trainer, supernet_trainer

    space = space_of(config)
    rule = {"rule": config.get("rule", "single_path"), "rule_options": rule_options(config, data)}
    own_paths = bool(config.get("paths_per_rank"))
    rule["processes"], rule["loop"] = replace(processes, own_paths=own_paths), loop or USUAL
    recipe = Recipe(**{key: config[key] for key in RECIPE if key in config})
    if config["mode"] == "supernet":
        options = {key: config[key] for key in OWN["supernet"] if key != "epochs"}
        if "watched" in config:
            options["watched"] = [space.parse(arch) for arch in config["watched"]]
        options["start"] = begun_with(config, space)
        return supernet_trainer(
            space, data.train, data.validation, recipe, config["seed"], **options, **rule
        )
    path, start = space.parse(config["arch"]), begun_with(config, space, config["arch"])
    return scratch_trainer(
        space, path, data.train, data.validation, recipe, config["seed"], start, **rule
    )


def rule_options(config: dict[str, Any], data: Data | None = None) -> dict[str, Any]:
    """The options of the rule of these settings, for the library. data: to recalibrate a teacher
    with, if its run was scored so."""
    from mnas.training.registry import RULES

    own = RULES[config.get("rule", "single_path")].options
    found = {name: config[name] for name in own if name in config}
    if "teacher" in found:
        found["teacher"] = inherited.teacher(Path(found["teacher"]), data, own_space(config))
    return found


def _restore(
    directory: RunDirectory, state: dict[str, Any] | None, trainer: Trainer, report: Report
) -> float:
    """Bring the trainer to the last checkpoint; returns the seconds that it took to get there."""
    import torch

    if state is None:
        return 0.0
    try:
        trainer.load_state_dict(state["trainer"])
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise Failure(
            f"the checkpoint in {directory.path} does not fit its config.json; restore it", 2
        ) from error
    began_with = directory.environment().get("torch")
    if began_with not in (None, torch.__version__):
        report(
            f"note: begun with torch {began_with}, continued with {torch.__version__}: bits may "
            "differ"
        )
    report(f"continuing at step {trainer.step} of {trainer.total_steps}")
    return directory.seconds()


def _epoch_line(trainer: Trainer) -> str:
    """The epoch, and the accuracies after it if there was a validation."""
    rows = [row for row in trainer.rows if row["epoch"] == trainer.epoch]
    scores = ", ".join(f"{row['arch']} {100 * row['val_top1']:.2f}" for row in rows)
    return f"epoch {trainer.epoch}{'  val top-1 %: ' if scores else ''}{scores}"


def results(trainer: Trainer, data: Data) -> list[dict[str, Any]]:
    """The test accuracy and the cost of every network that was watched."""
    from mnas import cost
    from mnas.storage import bits

    last = {row["arch"]: row for row in trainer.rows if row["epoch"] == trainer.epoch}
    results = []
    for arch, score in trainer.score(data.test).items():
        params, macs = cost(trainer.space, trainer.space.parse(arch))
        results.append(
            {
                "arch": arch,
                "val_top1": last[arch]["val_top1"],
                "test_top1": score.top1,
                "test_loss": score.loss,
                "correct": bits.packed(score.correct.tolist()),
                "params": params,
                "macs": macs,
            }
        )
    return results
