"""Arms of a study beside each other: budgets, samplers, the stock optimizer, fine-tuning, training
rules."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mnas.studies import statistics
from mnas.studies.pages import markdown, shown
from mnas.studies.plotting import QUIET, error_axis, figure, lines, strip
from mnas.studies.results import FIRST_SCRATCH_SEED

RULES = ("fair", "sandwich", "path_dropout", "ranked", "dynamic")

if TYPE_CHECKING:
    from mnas.studies.results import Arm, Study, Summary
    from mnas.studies.statistics import Interval


@dataclass(frozen=True)
class Section:
    """A comparison of arms. key: name of its figure. pairs: of which the report says the
    difference."""

    key: str
    title: str
    about: str
    arms: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...]


SECTIONS = (
    Section(
        "budgets",
        "Equal budgets",
        "`scratch-equal-total` has as many updates in all as `supernet`; `supernet-equal-updates` "
        "gives each network on average as many updates as `scratch`, to shared weights.",
        ("supernet", "scratch-equal-total", "supernet-equal-updates", "scratch"),
        (
            ("supernet", "scratch-equal-total"),
            ("supernet-equal-updates", "scratch"),
            ("supernet", "scratch"),
        ),
    ),
    Section(
        "samplers",
        "Samplers",
        "`supernet` has the sampler of the recipe (`study.json`), the other arm the other one.",
        ("supernet", "supernet-fair", "supernet-uniform"),
        (("supernet-fair", "supernet"), ("supernet", "supernet-uniform")),
    ),
    Section(
        "optimizers",
        "Frozen (supernet) and stock optimizer",
        "The stock optimizer gets zeroed gradients, and applies momentum and decay to what a step "
        "does not use.",
        ("supernet", "supernet-stock-optimizer"),
        (("supernet", "supernet-stock-optimizer"),),
    ),
    Section(
        "fine-tuning",
        "Fine-tuning an exported network",
        "`fine-tuned` begins with the weights that the supernet of the same number ended with, "
        "and is trained as long as `scratch-eighth-of-epochs`; its updates here are those after "
        "the supernet, whose cost is counted among the estimators.",
        ("supernet", "fine-tuned", "scratch-eighth-of-epochs", "scratch"),
        (
            ("fine-tuned", "supernet"),
            ("fine-tuned", "scratch-eighth-of-epochs"),
            ("fine-tuned", "scratch"),
        ),
    ),
    Section(
        "rules",
        "Training rules at equal seconds",
        "`supernet` trains a single path a step. The epochs of another rule are fewer by what its "
        "step costs in such steps (`step_cost` in `study.json`), measured beforehand: no clock "
        "decides, so that the rows can be made again. Seconds are what a run took, with its "
        "validations.",
        ("supernet", *(f"rule-{rule}" for rule in RULES)),
        tuple((f"rule-{rule}", "supernet") for rule in RULES),
    ),
)


def present(study: Study) -> dict[Section, list[Arm]]:
    """The sections that have a variant to compare."""
    found = {
        section: [study.arms[name] for name in section.arms if name in study.arms]
        for section in SECTIONS
    }
    return {
        section: arms
        for section, arms in found.items()
        if {arm.name for arm in arms} - {"supernet", "scratch"}
    }


def paragraphs(study: Study, found: Summary) -> list[str]:
    """Heading, table, figure and differences of each section."""
    parts = []
    for section, arms in present(study).items():
        body = [
            [f"{first.name} − {second.name}", how, shown(*accuracy, 3), shown(*tau)]
            for first, second in _pairs(study, section)
            for how, accuracy, tau in [_difference(study, first, second)]
        ]
        gaps = (
            markdown(body, ["difference", "runs compared", "accuracy, points", "tau"])
            if body
            else ""
        )
        image = (
            "![error and tau of each seed: "
            f"{', '.join(arm.name for arm in arms)}]({section.key}.png)"
        )
        parts += [f"## {section.title}", section.about, _table(study, arms, found), image, gaps]
    return parts


def _pairs(study: Study, section: Section) -> list[tuple[Arm, Arm]]:
    """Those of the section that have seeds enough for an interval of their difference."""
    named = [[study.arms.get(name) for name in pair] for pair in section.pairs]
    return [(a, b) for a, b in named if a and b and min(len(a.seeds), len(b.seeds)) > 1]


def draw(study: Study, found: Summary) -> dict[str, Any]:
    """What draws the figure of each section, by its name; called with the study and the file."""
    taus = {e["name"]: [e["tau_mean"], *e["tau_ci"]] for e in found["estimators"]}
    return {
        section.key: functools.partial(_draw, section=section, arms=arms, taus=taus)
        for section, arms in present(study).items()
    }


def _taus(study: Study, arm: Arm) -> Any:
    """tau of each seed with the mean from scratch; of a run from scratch with the mean of the
    others."""
    scratch = study.arms["scratch"]
    if arm is not scratch:
        return statistics.kendall(arm.test, scratch.test.mean(0))
    return statistics.ceiling(arm.test)[0] if len(arm.seeds) > 1 else np.array([])


def _regrets(study: Study, arm: Arm) -> Any:
    """Points lost by the pick of each seed, made on validation; for a run from scratch by the mean
    of the others."""
    scratch = study.arms["scratch"]
    if arm is not scratch:
        return statistics.regret(arm.val, scratch.test.mean(0))
    if len(arm.seeds) < 2:
        return np.array([np.nan])
    others = (arm.test.sum(0) - arm.test) / (len(arm.seeds) - 1)
    return np.array([statistics.regret(*pair) for pair in zip(arm.val, others, strict=True)], float)


def _table(study: Study, arms: list[Arm], found: Summary) -> str:
    taus = {e["name"]: shown(e["tau_mean"], *e["tau_ci"]) for e in found["estimators"]}
    body = []
    for arm in arms:
        accuracy = shown(*statistics.interval(arm.test.mean(1)))
        line = [
            arm.name,
            str(len(arm.seeds)),
            str(study.failures(arm.name)),
            accuracy,
            taus.get(arm.name, "–"),
            _shown_regret(_regrets(study, arm)),
        ]
        body.append([*line, f"{arm.updates:,.0f}", f"{arm.images:,.0f}", f"{arm.seconds:.0f}"])
    headers = [
        "variant",
        "n",
        "failed runs",
        "mean test top-1, %",
        "tau",
        "regret, points",
        "updates, all networks",
        "images",
        "seconds",
    ]
    return markdown(body, headers)


def _shown_regret(lost: Any) -> str:
    """Without an interval: so few and so skewed values give none that holds its level."""
    return "–" if np.isnan(lost).any() else f"{lost.mean():.3f}"


def _difference(study: Study, first: Arm, second: Arm) -> tuple[str, Interval, Interval]:
    """How runs are compared, and the differences of accuracy and of tau: seed by seed where the
    arms share seeds, and so start and shuffling, or one begins with the other; otherwise between
    independent runs."""
    numbers = [list(arm.seeds) for arm in (first, second)]
    if study.about["arms"][first.name]["after"] == second.name:
        numbers[0] = [seed - FIRST_SCRATCH_SEED for seed in numbers[0]]
    shared = sorted(set(numbers[0]) & set(numbers[1]))
    paired = len(shared) > 1
    values = []
    for of_arm in (lambda arm: arm.test.mean(1), lambda arm: _taus(study, arm)):
        one, two = of_arm(first), of_arm(second)
        if paired:
            one, two = (
                v[[own.index(seed) for seed in shared]]
                for v, own in zip((one, two), numbers, strict=True)
            )
        values.append(statistics.interval(one - two) if paired else statistics.difference(one, two))
    accuracy, tau = values
    how = f"seed by seed, n = {len(shared)}" if paired else "independent"
    return how, accuracy, tau


def _message(study: Study, section: Section) -> str:
    """Which arm is more accurate than the other, where the interval of the difference says so; or
    else which one has lost runs, whose accuracies such an interval cannot hold."""
    found = []
    for first, second in _pairs(study, section):
        _, (mean, low, high), _ = _difference(study, first, second)
        better, worse = (first, second) if mean > 0 else (second, first)
        if low > 0 or high < 0:
            found.append((abs(mean), f"{better.name} beats {worse.name} by {abs(mean):.2f} points"))
    if found:
        return max(found)[1]
    arms = [study.arms[name] for name in section.arms if name in study.arms]
    lost = [_lost(study, arm) for arm in arms]
    worst, least = int(np.argmax(lost)), int(np.argmin(lost))
    if lost[worst] > lost[least]:
        number = len(arms[worst].seeds) + study.failures(arms[worst].name)
        return (
            f"{arms[worst].name}: {lost[worst]} of {number} seeds diverged or collapsed; "
            f"{arms[least].name}: {lost[least]}"
        )
    return f"{section.title}: no difference in accuracy that these seeds can tell"


def _lost(study: Study, arm: Arm) -> int:
    """Seeds that failed, or have a network that collapsed."""
    collapsed = {row["seed"] for name, row in study.collapsed if name == arm.name}
    return study.failures(arm.name) + len(collapsed)


def _draw(
    study: Study, file: Path, section: Section, arms: list[Arm], taus: dict[str, list[float]]
) -> None:
    """Error and tau of each seed as small marks, their means with the intervals of the table; and
    the differences of accuracy that the page concludes from."""
    pairs = _pairs(study, section)
    panels = 3 if pairs else 2
    height = 0.7 * max(len(arms), len(pairs)) + 1.7
    with figure(file, panels, 3.5, height, _message(study, section)) as axes:
        for line, arm in enumerate(arms):
            error = 100 - arm.test.mean(1)
            strip(axes[0], line, line, error, *statistics.interval(error))
            if arm.name in taus:
                strip(axes[1], line, line, _taus(study, arm), *taus[arm.name])
        errors = np.concatenate([100 - arm.test.mean(1) for arm in arms])
        error_axis(axes[0], errors, axes[0].xaxis)
        lines(axes[0], [arm.name for arm in arms])
        lines(axes[1], [""] * len(arms))
        axes[1].axvline(0, color=QUIET, linewidth=1)
        axes[0].set_xlabel("test error, %, mean over networks")
        axes[1].set_xlabel("tau with the mean from scratch")
        for line, (first, second) in enumerate(pairs):
            _, accuracy, _ = _difference(study, first, second)
            strip(axes[2], line, 0, [], *accuracy)
            name = f"{first.name} −\n{second.name}"
            axes[2].annotate(
                name, (0, line - 0.12), xycoords=("axes fraction", "data"), va="bottom", fontsize=10
            )
        for ax in axes[2:]:
            lines(ax, [""] * len(pairs))
            ax.set_ylim(top=-0.9)
            ax.axvline(0, color=QUIET, linewidth=1)
            ax.set_xlabel("difference in accuracy, points")
        for ax in axes:
            if ax.get_xscale() == "linear":
                ax.locator_params(axis="x", nbins=5)
