"""Two controls of a study: what of a supernet's cheap training is longer training, and what is a
trained head? A step of a supernet trains what lies behind the choices whatever its path is.

- `python -m benchmarks.control --space mil4 --seeds 10`: six minutes a seed on one core; the same
  command goes on after it was stopped, and adds seeds if it asks for more

Of each seed, with the settings of `mnas study`, in one process:

supernet-epochs  each network from scratch for as many epochs as the supernet
trained-head     each network from scratch as in the study, but on the head of the trained supernet

Seeds are those of the study: initial weights and shuffles of a network are those of its run from
scratch of the same number, and the supernet is that of the study, to the bit on the same machine.
Rows go to OUT/SPACE_DATASET.jsonl. With `--page docs/results.md` the same command, which then has
nothing left to measure, shows them there beside those of the study."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from cyclopts import App, Parameter

from mnas.commands import process
from mnas.commands.options import Count, UserPath
from mnas.errors import Failure, make, user_input

if TYPE_CHECKING:
    from torch import Tensor

    from mnas import Supernet
    from mnas.studies.results import Study
    from mnas.studies.statistics import Array, Interval
    from mnas.training.data import Data
    from mnas.training.progress import Progress
    from mnas.training.trainer import Trainer

KINDS = ("supernet-epochs", "trained-head")
PART = "control"
Row = dict[str, Any]
Settings = dict[str, Any]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Options:
    space: str = "mil4"
    "Search space, of few networks."
    dataset: str = "mnist"
    "As of `mnas study`."
    data_root: UserPath = Path("data")
    "Where the data sets other than mnist are."
    seeds: Count = 10
    "Supernets, and runs of each network and kind."
    out: UserPath = Path("results/control")
    "Directory for the rows."
    page: UserPath | None = None
    "Page whose part `control` is made of the rows and of the study, as docs/results.md."
    study: UserPath | None = None
    "For that part. [default: results/SPACE_DATASET]"
    limit_train: Count | None = None
    "Use only the first N training images."
    limit_test: Count | None = None
    "Use only the first N test images."


app = App(help=__doc__, help_format="markdown", version_flags=())


@app.default
def main(options: Options | None = None) -> None:
    options = options or Options()
    from mnas.commands import study
    from mnas.studies.pages import check_page, publish, record
    from mnas.studies.results import Study
    from mnas.training import one_run, progress, runtime

    if options.page:
        check_page(options.page, (PART,), like="docs/results.md")
    of_study = study.Options(
        space=options.space,
        dataset=options.dataset,
        limit_train=options.limit_train,
        limit_test=options.limit_test,
    )
    with user_input():
        space = one_run.space_of(one_run.named_space(options.space))
    if space.size > of_study.networks:
        raise Failure(
            f"--space {options.space} has {space.size:,} networks; expected at most "
            f"{of_study.networks}",
            2,
        )
    archs, part = space.names(), f"{space.name}_{options.dataset.split('-')[0]}"
    beside = Study(options.study or Path("results") / part) if options.page else None
    _commit()  # before the code can change under a long run
    runtime.configure_runtime(1)
    supernet, scratch = (
        plan.config for plan in study.arms(of_study, images=0, networks=len(archs), threads=1)
    )
    data = one_run.load({**supernet, "mode": "supernet"}, options.data_root)
    with user_input():
        space.check_images(data.train.images, options.dataset)
    settings = {"part": part, "supernet": supernet, "scratch": scratch, "data": data.found}
    rows = known(options.out, part, settings)
    make(options.out)
    done = {_key(row) for row in rows}
    wanted = {
        (kind, seed, arch) for kind in KINDS for seed in range(options.seeds) for arch in archs
    }
    with progress.Interruption() as interruption:
        bar = progress.Progress(len(wanted - done), interruption)
        for seed in range(options.seeds):
            left = [
                (kind, arch) for kind in KINDS for arch in archs if (kind, seed, arch) not in done
            ]
            for row in measure(seed, left, supernet, scratch, data, bar):
                rows = sorted(
                    [*rows, row], key=lambda row: (row["number"], row["kind"], row["arch"])
                )
                record(options.out, part, rows, **settings)
    if options.page and beside:
        publish(options.page, PART, shown(rows, beside))


def _key(row: Row) -> tuple[str, int, str]:
    return row["kind"], row["number"], row["arch"]


def known(out: Path, part: str, settings: Settings) -> list[Row]:
    """Rows of an earlier call. Raises Failure where they are of other settings."""
    from mnas.storage import strict_json
    from mnas.studies.pages import recorded, rows_folder

    if not (out / f"{part}.jsonl").exists():
        return []
    rows, file = recorded(out, part), out / f"{part}-config.json"
    with user_input():
        begun = strict_json.parse(rows_folder(out).read(file.name), dict, file)
    for key, value in settings.items():
        if begun.get(key) != value:
            raise Failure(
                f"{out / part}.jsonl was measured with other settings ({key}); give another --out",
                2,
            )
    return rows


def measure(
    seed: int,
    wanted: list[tuple[str, str]],
    supernet: Settings,
    scratch: Settings,
    data: Data,
    shown: Progress,
) -> Iterator[Row]:
    """A row for each kind and network that is wanted. Raises Failure when stopped."""
    from mnas.studies.results import FIRST_SCRATCH_SEED
    from mnas.training import one_run

    heads: dict[str, Tensor] = {}
    if any(kind == "trained-head" for kind, _ in wanted):
        trainer = one_run.trainer_of({**supernet, "mode": "supernet", "seed": seed}, data)
        _train(trainer, f"supernet seed {seed}", shown)
        heads = head(trainer.module)
    for kind, arch in wanted:
        config = {**scratch, "mode": "scratch", "seed": FIRST_SCRATCH_SEED + seed, "arch": arch}
        if kind == "supernet-epochs":
            config["epochs"] = supernet["epochs"]
        trainer = one_run.trainer_of(config, data)
        if kind == "trained-head":
            replace(trainer, heads)
        name = f"{kind} {arch} seed {config['seed']}"
        started = datetime.now(UTC).isoformat(timespec="seconds")
        seconds = _train(trainer, name, shown)
        (score,) = one_run.results(trainer, data)
        row = {"kind": kind, "number": seed, "seed": config["seed"], **score}
        row["val_loss"] = trainer.rows[-1]["val_loss"]
        row |= {"epochs": config["epochs"], "steps": trainer.step, "seconds": round(seconds, 2)}
        yield row | _commit() | {"started": started, "threads": 1}
        shown.say(f"{name}: test top-1 {100 * row['test_top1']:.2f} %")
        shown.end(name, None)


def head(net: Supernet) -> dict[str, Tensor]:
    """What lies behind the last choice, by the names that a network alone has for it."""
    from mnas import Choice

    choices = tuple(
        f"{n}." for n, module in net.model.named_modules() if isinstance(module, Choice)
    )
    state = net.model.state_dict()
    names = list(state)
    last = max(i for i, name in enumerate(names) if name.startswith(choices))
    return {name: state[name].clone() for name in names[last + 1 :]}


def replace(trainer: Trainer, weights: dict[str, Tensor]) -> None:
    """Some of the weights that it begins with. Raises ValueError for names that are none."""
    unknown = trainer.module.load_state_dict(weights, strict=False).unexpected_keys
    if unknown:
        raise ValueError(f"no weights of this network: {', '.join(unknown)}")


def _train(trainer: Trainer, name: str, shown: Progress) -> float:
    """To the end; returns the seconds. Raises Failure when stopped."""
    begun = time.monotonic()
    while not trainer.finished:
        loss = trainer.advance()
        if number := shown.report(name, step=trainer.step, total=trainer.total_steps, loss=loss):
            raise Failure(
                f"stopped in {name}; the same command goes on with that run", status=128 + number
            )
    return time.monotonic() - begun


@functools.cache
def _commit() -> dict[str, Any]:
    """Of the code that this process runs."""
    from mnas.training.environment import git_commit

    commit = git_commit(Path(__file__).parent) or ""
    return {"commit": commit.removesuffix("-dirty"), "dirty": commit.endswith("-dirty")}


class Compared(NamedTuple):
    """first minus second, in points of accuracy. p: Holm's, for all of these comparisons."""

    first: str
    second: str
    how: str
    points: Interval
    p: float

    @property
    def said(self) -> str:
        """In words, by the rule of docs/protocol.md."""
        if not self.p < 0.05:
            return f"{self.first} cannot be told from {self.second}"
        return f"{self.first} is {'above' if self.points.mean > 0 else 'below'} {self.second}"


INHERITED, SCRATCH = "inherited", "scratch"
PAIRS = (
    (INHERITED, SCRATCH),
    ("supernet-epochs", SCRATCH),
    ("trained-head", SCRATCH),
    (INHERITED, "supernet-epochs"),
    (INHERITED, "trained-head"),
)


def accuracies(rows: list[Row], study: Study) -> dict[str, Array]:
    """Test top-1 in %, (seeds, networks), of the study's arms and of these rows, of the seeds that
    all have. Raises Failure where these are too few."""
    from mnas.studies.results import FIRST_SCRATCH_SEED

    of: dict[tuple[str, int, str], float] = {_key(row): 100 * row["test_top1"] for row in rows}
    for name, kind, first in ((INHERITED, "supernet", 0), (SCRATCH, SCRATCH, FIRST_SCRATCH_SEED)):
        arm = study.arms[kind]
        for seed, values in zip(arm.seeds, arm.test, strict=True):
            of |= {(name, seed - first, a): v for a, v in zip(study.archs, values, strict=True)}
    kinds = (INHERITED, SCRATCH, *KINDS)
    numbers = [
        n
        for n in sorted({number for _, number, _ in of})
        if all((kind, n, arch) in of for kind in kinds for arch in study.archs)
    ]
    if len(numbers) < 2:
        raise Failure(
            f"these rows and {study.path} share {len(numbers)} seeds; expected 2 at least: raise "
            "--seeds",
            2,
        )
    return {
        kind: np.array([[of[kind, n, arch] for arch in study.archs] for n in numbers])
        for kind in kinds
    }


def compared(found: dict[str, Array]) -> list[Compared]:
    """Mean accuracies of the networks. Runs of a number share start and shuffles, or one began with
    the head of the other: seed by seed. A supernet and runs of more epochs share nothing."""
    from scipy import stats

    from mnas.studies import statistics

    made, raw = [], []
    for first, second in PAIRS:
        one, two = found[first].mean(1), found[second].mean(1)
        paired = first != INHERITED or second == "trained-head"
        if paired:
            test = stats.ttest_rel(one, two)
            interval = statistics.interval(one - two)
        else:
            test = stats.ttest_ind(one, two, equal_var=False)
            interval = statistics.difference(one, two)
        made.append((first, second, "seed by seed" if paired else "independent", interval))
        raw.append(float(test.pvalue))
    return [Compared(*one, p) for one, p in zip(made, statistics.holm(raw), strict=True)]


def shown(rows: list[Row], study: Study) -> str:
    """What a page says: a line for each way of training, their differences, and in words what
    follows from these numbers."""
    from mnas.studies import statistics
    from mnas.studies.pages import markdown
    from mnas.studies.pages import shown as with_interval

    found, about = accuracies(rows, study), study.about["arms"]
    truth, epochs = found[SCRATCH], {k: about[k]["epochs"] for k in ("supernet", "scratch")}
    trained = {
        INHERITED: f"{epochs['supernet']:g}, shared",
        SCRATCH: f"{epochs['scratch']:g}",
        "supernet-epochs": f"{epochs['supernet']:g}",
        "trained-head": f"{epochs['scratch']:g}, on the head of {INHERITED}",
    }
    body = []
    for kind, words in trained.items():
        accuracy = statistics.interval(found[kind].mean(1))
        tau = (statistics.agreement if kind == INHERITED else statistics.ceiling)(
            found[kind], truth
        )
        cells = [with_interval(*accuracy, 3), with_interval(*tau[1])]
        body.append([kind, words, str(len(truth)), *cells])
    heads = ["weights", "epochs", "n", "mean test top-1, %", "tau with the mean from scratch"]
    differences = compared(found)
    gaps = [
        [f"{one.first} − {one.second}", one.how, with_interval(*one.points, 3), f"{one.p:.2g}"]
        for one in differences
    ]
    said = "; ".join(one.said for one in differences)
    return "\n\n".join(
        [
            markdown(body, heads),
            markdown(gaps, ["difference", "runs compared", "points", "p (Holm)"]),
            f"In mean accuracy {said}. {answer(differences)}",
        ]
    )


def answer(differences: list[Compared]) -> str:
    """What gives a supernet's networks what they have more than runs from scratch."""
    gain = {
        (one.first, one.second): one.points.mean if one.p < 0.05 else 0.0 for one in differences
    }
    if gain[INHERITED, SCRATCH] <= 0:
        return "Inherited weights have no lead over runs from scratch that needs a reason."
    longer, head = (gain[kind, SCRATCH] > 0 for kind in KINDS)
    enough = [kind for kind in KINDS if gain[kind, SCRATCH] > 0 >= gain[INHERITED, kind]]
    if enough:
        return (
            f"{' and '.join(enough)} alone {'each give' if len(enough) > 1 else 'gives'} as much "
            "as inherited weights, as far as these seeds can tell."
        )
    if longer or head:
        part = " and ".join(kind for kind in KINDS if gain[kind, SCRATCH] > 0)
        return f"{part} alone gives a part of what inherited weights lead by."
    return "Neither more epochs nor a trained head alone gives what inherited weights lead by."


if __name__ == "__main__":
    process.prepare()
    process.run(
        lambda arguments: app(
            arguments, exit_on_error=False, print_error=False, result_action="return_value"
        )
    )
