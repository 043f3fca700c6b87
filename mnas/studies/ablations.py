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
from mnas.studies.plotting import MARKERS, bars, error_axis, figure
from mnas.studies.results import FIRST_SCRATCH_SEED

RULES = ("fair", "sandwich", "path_dropout", "ranked", "dynamic")

if TYPE_CHECKING:
    from mnas.studies.results import Arm, Study, Summary


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
        pairs = [
            (study.arms[a], study.arms[b])
            for a, b in section.pairs
            if a in study.arms and b in study.arms
        ]
        body = [
            _difference(study, *pair) for pair in pairs if min(len(arm.seeds) for arm in pair) > 1
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


def draw(study: Study, found: Summary) -> dict[str, Any]:
    """What draws the figure of each section, by its name; called with the study and the file."""
    taus = {e["name"]: [e["tau_mean"], *e["tau_ci"]] for e in found["estimators"]}
    return {
        section.key: functools.partial(_draw, arms=arms, taus=taus)
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
            _shown_regret(statistics.interval(_regrets(study, arm))),
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


def _shown_regret(found: Any) -> str:
    """Nothing is better than the best."""
    return "–" if np.isnan(found.mean) else shown(found.mean, max(found.low, 0), found.high, 3)


def _difference(study: Study, first: Arm, second: Arm) -> list[str]:
    """Seed by seed where the arms share seeds, and so start and shuffling, or one begins with the
    other; otherwise between independent runs."""
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
    return [f"{first.name} − {second.name}", how, shown(*accuracy, 3), shown(*tau)]


def _draw(study: Study, file: Path, arms: list[Arm], taus: dict[str, list[float]]) -> None:
    """Error and tau of each seed as small marks, their means with the intervals of the table."""
    with figure(file, 2, width=max(3.2, 1.1 * len(arms)), height=3) as axes:
        for number, arm in enumerate(arms):
            error = 100 - arm.test.mean(1)
            shown_of_arm = [(axes[0], error, statistics.interval(error))]
            if arm.name in taus:
                shown_of_arm.append((axes[1], _taus(study, arm), taus[arm.name]))
            for ax, values, (mean, low, high) in shown_of_arm:
                spread = np.linspace(-0.25, 0.05, len(values))
                marker, color = MARKERS[number], f"C{number}"
                ax.plot(number + spread, values, marker, markersize=3, alpha=0.5, color=color)
                ax.errorbar(
                    number + 0.25,
                    mean,
                    bars([mean], [low], [high]),
                    fmt=marker,
                    capsize=3,
                    color="black",
                )
        for ax, label in zip(
            axes, ("test error, %, mean over networks", "Kendall's tau"), strict=True
        ):
            ax.set_xticks(
                range(len(arms)), [arm.name.replace("-", "\n") for arm in arms], fontsize=7
            )
            ax.set_xlim(-0.5, len(arms) - 0.5)
            ax.set_ylabel(label)
        error_axis(axes[0], np.concatenate([100 - arm.test.mean(1) for arm in arms]))
        axes[0].set_title(study.title, fontsize=9)
