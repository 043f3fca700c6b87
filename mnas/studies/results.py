"""The rows of a study as arrays, and the numbers that they give."""

from __future__ import annotations

import functools
import math
import statistics
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnas.errors import Failure, user_input

if TYPE_CHECKING:
    from mnas.storage.files import Folder

Row = dict[str, Any]
Summary = dict[str, Any]
KINDS = (
    ("supernet", "inherited"),
    ("scratch", "from scratch"),
)  # the arms of every study, and their weights
NO_LOSS = 1e9  # in the place of one that is no number, or larger
SHORTER = "shorter.toml"
SAME = ("space", "dataset", "limit_train", "limit_test")  # what makes data and networks the same
FIRST_SCRATCH_SEED = (
    1000  # apart from the seeds of supernets: no common random start, no common shuffling
)


def study_folder(path: Path) -> Folder:
    """A study on disk: study.json, and rows of several kinds, with their digests."""
    from mnas.storage.files import Folder

    return Folder(path, "mnas-study-1")


class TooEarly(Failure):
    """A study has nothing to compare yet."""


@dataclass(frozen=True)
class Arm:
    """Runs of one way of training, as arrays (seeds, networks) in the order of `Study.archs`."""

    name: str
    seeds: list[int]
    test: Any
    val: Any
    loss: Any
    "Of the test, negative: a score as the others; of one that is no number, the least."
    rows: list[Row]
    short: list[int]
    "Seeds that lack a network: in the rows, not in the arrays."
    correct: Any = None
    "Which test images are right, (seeds, networks, images), if all rows say so."
    step_cost: float = 1.0
    "Of a step, in steps of a single path."

    def ordered(self, networks: list[int]) -> Arm:
        """With the networks of the arrays in another order."""
        arrays = {key: getattr(self, key)[:, networks] for key in ("test", "val", "loss")}
        correct = None if self.correct is None else self.correct[:, networks]
        return replace(self, **arrays, correct=correct)

    def same_images(self, truth: Arm) -> Any:
        """What is right of the same images, here and in the truth, for `statistics`; None where it
        is not known of both."""
        both = self.correct, truth.correct
        return None if any(bits is None for bits in both) else both

    @property
    def cost(self) -> float:
        """Multiply-accumulates of a ranking, forward passes of training alone: a supernet trains
        one network a step, or under another rule as much as its step costs."""
        of_seed = [row for row in self.rows if row["seed"] == self.seeds[0]]
        total = sum(row["macs"] * row["images"] for row in of_seed)
        shared = of_seed[0]["kind"] == "supernet"
        return self.step_cost * total / len(of_seed) if shared else total

    @property
    def seconds(self) -> float:
        """Of training, for a ranking; the mean over seeds."""
        return self._of_runs("seconds")

    @property
    def updates(self) -> float:
        """Optimizer steps of a ranking."""
        return self._of_runs("steps")

    @property
    def images(self) -> float:
        """Images trained on for a ranking."""
        return self._of_runs("images")

    def _of_runs(self, key: str) -> float:
        """The sum over the runs of a seed, the mean over seeds. A supernet is one run; all its rows
        have its value."""
        per_run = {
            (row["seed"], row["arch"] if row["kind"] == "scratch" else ""): row[key]
            for row in self.rows
        }
        return sum(per_run.values()) / len(self.seeds)


class Study:
    """The rows of a study; only seeds of which every network has finished are in its arms."""

    def __init__(self, path: Path) -> None:
        from mnas.storage import strict_json
        from mnas.storage.schema import AboutStudy

        self.path, self._folder = path, study_folder(path)
        with user_input():
            self.about = strict_json.parse(
                self._folder.read("study.json"), dict, path / "study.json"
            )
            strict_json.checked(self.about, AboutStudy, path / "study.json")
            self._read()

    def _read(self) -> None:
        path = self.path
        rows = self._rows("rows")
        self.archs = list(dict.fromkeys(row["arch"] for row in rows))
        self.costs = {row["arch"]: (row["params"], row["macs"]) for row in rows}
        self.curves = self._optional("curves")
        self.drift = self._optional("drift")
        by_name: dict[str, list[Row]] = {}
        for row in [*rows, *self._optional("variants")]:
            by_name.setdefault(row.get("variant", row["kind"]), []).append(row)
        for name in by_name.keys() - self.about["arms"].keys():
            raise Failure(
                f"{path} has rows of {name!r}, an arm that its study.json lacks; run "
                "tools/study.py",
                2,
            )
        found = {name: self._arm(name, of_arm) for name, of_arm in by_name.items()}
        self.arms = {name: arm for name, arm in found.items() if arm.seeds}
        self.left_out = [(name, seed) for name, arm in found.items() for seed in arm.short]
        if not {"supernet", "scratch"} <= self.arms.keys():
            raise TooEarly(
                f"{path} has no finished seed of supernet and scratch yet; continue the study",
                status=2,
            )

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def title(self) -> str:
        of_recipe = "" if self.about["recipe"] == "short" else f", {self.about['recipe']} recipe"
        return f"{self.about['space']} on {self.about['dataset']}{of_recipe}"

    @functools.cached_property
    def shorter(self) -> list[Study]:
        """Studies of the same networks and data, trained for less, that are estimators of this
        one's truth: their directories, from this one, in shorter.toml (`studies = ["../NAME"]`)."""
        file = self.path / SHORTER
        if not file.exists():
            return []
        try:
            named = tomllib.loads(file.read_text())["studies"]
            found = [Study(self.path / name) for name in named]
        except (OSError, UnicodeDecodeError, ValueError, LookupError, TypeError) as error:
            raise Failure(
                f'{file}: {type(error).__name__}: {error}; expected studies = ["../NAME"]', 2
            ) from error
        for other in found:
            same = all(self.about[key] == other.about[key] for key in SAME)
            if not same or {*self.archs} != {*other.archs}:
                raise Failure(
                    f"{file} names {other.name}, a study of other networks or data; expected one "
                    "of the same",
                    2,
                )
        return found

    def _optional(self, name: str) -> list[Row]:
        from mnas.storage.files import NotYet

        file = f"{name}.jsonl"
        if file not in self._folder.listed() and not (self.path / file).exists():
            return []
        try:
            return self._rows(name)  # a file that is there and not listed is refused
        except NotYet:
            return []

    def _rows(self, name: str) -> list[Row]:
        from mnas.storage import strict_json
        from mnas.storage.schema import STUDY_ROWS

        file = f"{name}.jsonl"
        return strict_json.parse_lines(self._folder.read(file), STUDY_ROWS[name], self.path / file)

    def _arm(self, name: str, rows: list[Row]) -> Arm:
        import numpy as np

        found: dict[int, dict[str, Row]] = {}
        for row in rows:
            if found.setdefault(row["seed"], {}).setdefault(row["arch"], row) is not row:
                raise Failure(
                    f"{self.path} has two rows of {name}, seed {row['seed']}, {row['arch']}; "
                    "expected one",
                    2,
                )
        seeds = sorted(seed for seed, of_seed in found.items() if set(of_seed) == set(self.archs))
        test, val = (
            np.array([[100 * found[seed][arch][key] for arch in self.archs] for seed in seeds])
            for key in ("test_top1", "val_top1")
        )
        losses = [[found[seed][arch]["test_loss"] for arch in self.archs] for seed in seeds]
        return Arm(
            name,
            seeds,
            test,
            val,
            np.array([[-min(NO_LOSS if x is None else x, NO_LOSS) for x in row] for row in losses]),
            [row for row in rows if row["seed"] in seeds],
            sorted(set(found) - {*seeds}),
            self._correct([found[seed][arch] for seed in seeds for arch in self.archs]),
            self.about["arms"][name].get("step_cost", 1.0),
        )

    def _correct(self, rows: list[Row]) -> Any:
        """Bits of rows, a network after the other, seed by seed; None where some have none."""
        import numpy as np

        from mnas.storage import bits

        if not rows or any(row.get("correct") is None for row in rows):
            return None
        number = self.about["test_images"]
        try:
            flat = np.stack([bits.unpacked(row["correct"], number) for row in rows])
        except ValueError as error:
            raise Failure(f"{self.path}: {error}; restore its rows", 2) from error
        return flat.reshape(-1, len(self.archs), number)

    def failures(self, arm: str) -> int:
        """Runs of the arm that failed or were not run."""
        return sum(failure["arm"] == arm for failure in self.about["failed"])

    @property
    def collapsed(self) -> list[tuple[str, Row]]:
        """Arm and row of networks with less than half of their arm's median accuracy."""
        found = []
        for name, arm in self.arms.items():
            half = statistics.median(row["test_top1"] for row in arm.rows) / 2
            found += [(name, row) for row in arm.rows if row["test_top1"] < half]
        return found


def summary(study: Study) -> dict[str, Any]:
    """The numbers of a study by name; null where one seed gives no interval or no ceiling."""
    from mnas.studies import decomposition, statistics
    from mnas.studies.estimators import estimators

    supernet, scratch = study.arms["supernet"], study.arms["scratch"]
    truth = scratch.test.mean(0)
    taus, tau = statistics.agreement(supernet.test, scratch.test, supernet.same_images(scratch))
    lost = statistics.regret(supernet.val, truth)  # the pick is made on validation
    found: dict[str, Any] = {
        "space": study.about["space"],
        "dataset": study.about["dataset"],
        "networks": len(study.archs),
        "supernet_seeds": len(supernet.seeds),
        "scratch_seeds": len(scratch.seeds),
        "tau_mean": tau.mean,
        "tau_ci": [tau.low, tau.high],
        "tau_per_seed": taus.tolist(),
        "intervals_of_images": supernet.same_images(scratch) is not None,
        "ceiling_mean": None,
        "ceiling_ci": None,
        "ceiling_per_seed": [],
        # No interval: Student's does not hold its level for so few and so skewed values.
        "regret_mean": float(lost.mean()),
        "regret_per_seed": lost.tolist(),
        "regret_of_chance": float(truth.max() - truth.mean()),
        "tau_of_truths": float(statistics.kendall(scratch.val.mean(0), truth)),
        "inherited_mean": float(supernet.test.mean()),
        "scratch_mean": float(truth.mean()),
        "failed_runs": len(study.about["failed"]),
        "seeds_left_out": len(study.left_out),
        "collapsed_networks": len(study.collapsed),
        "units": (
            "accuracies and regret in per cent of the test set; tau is Kendall's tau-b; "
            "intervals are 95 %"
        ),
        "estimators": estimators(study),
    }
    if len(scratch.seeds) > 1:
        taus, top = statistics.ceiling(scratch.test, None, scratch.same_images(scratch))
        found |= {"ceiling_mean": top.mean, "ceiling_ci": [top.low, top.high]}
        found["ceiling_per_seed"] = taus.tolist()
    if min(len(arm.seeds) for arm in (supernet, scratch)) > 1:
        spreads = {"inherited": supernet.test, "scratch": scratch.test}
        found["spread"] = {
            name: decomposition.spread(runs)._asdict() for name, runs in spreads.items()
        }
        found["correlation_without_noise"] = decomposition.disattenuated(*spreads.values())
        found["tau_of_means"] = float(statistics.kendall(supernet.test.mean(0), truth))
    return _without_nan(found)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
