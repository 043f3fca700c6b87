"""Studies beside each other: the first pages of the project, and docs/results.md."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mnas.studies import statistics
from mnas.studies.pages import markdown, shown
from mnas.studies.plotting import MARKERS, bars, figure
from mnas.studies.results import KINDS, Study, Summary, estimator, summary

RECIPES = {"short": "short recipe", "long": "long recipe"}


def headline(studies: list[Study], command: str) -> str:
    """Accuracies in the first study and in those of the same networks that only have another
    recipe."""
    first = studies[0]
    same = [study for study in alike(studies) if study.about["space"] == first.about["space"]]
    names = [RECIPES[study.about["recipe"]] for study in same]
    heads = [f"{label}, {name}" if len(same) > 1 else label for name in names for _, label in KINDS]
    body = []
    for arch in first.archs:
        runs = [
            study.arms[kind].test[:, study.archs.index(arch)] for study in same for kind, _ in KINDS
        ]
        costs = [f"{number:,}" for number in first.costs[arch]]
        body.append([arch, *(shown(*statistics.interval(values)) for values in runs), *costs])
    table = markdown(body, ["network", *heads, "parameters", "MACs"])
    return f"{table}\n\nMade by `{command}`."


def alike(studies: list[Study]) -> list[Study]:
    """The first study and those of the same networks on the same data."""

    def networks(study: Study) -> tuple[str, set[str]]:
        return study.about["dataset"], set(study.archs)

    return [study for study in studies if networks(study) == networks(studies[0])]


def overview(studies: list[Study]) -> str:
    """One line a study."""
    body = []
    for study in studies:
        found = summary(study)
        body.append(
            [
                f"[{study.name}](../{study.path}/README.md)",
                str(len(study.archs)),
                f"{found['supernet_seeds']} + {found['scratch_seeds']}",
                f"{found['inherited_mean']:.2f}",
                f"{found['scratch_mean']:.2f}",
                shown(found["tau_mean"], *found["tau_ci"]),
                _on_other_images(found, "supernet"),
                _ceiling(found),
                _on_other_images(found, "scratch"),
                shown(found["regret_mean"], *found["regret_ci"], 3),
                f"{found['regret_of_chance']:.3f}",
                str(found["failed_runs"]),
            ]
        )
    headers = [
        "study",
        "networks",
        "seeds",
        "inherited, %",
        "from scratch, %",
        "tau",
        "on other images",
        "ceiling",
    ]
    return markdown(
        body, [*headers, "on other images", "regret, points", "of a random pick", "failed runs"]
    )


def _on_other_images(found: Summary, name: str) -> str:
    line = estimator(found, name)
    return shown(line["tau_other_pictures"], *line["tau_other_pictures_ci"]) if line else "–"


def _ceiling(found: Summary) -> str:
    return (
        "–" if found["ceiling_mean"] is None else shown(found["ceiling_mean"], *found["ceiling_ci"])
    )


def against_first(studies: list[Study]) -> str:
    """How much better each network does in the studies like the first than in the first, seed by
    seed."""
    first, *others = alike(studies)
    if not others:
        return "There is no other study of these networks."
    body = []
    for study in others:
        for kind, label in KINDS:
            own, base = study.arms[kind], first.arms[kind]
            seeds = sorted(set(own.seeds) & set(base.seeds))
            rows = (
                [own.seeds.index(seed) for seed in seeds],
                [base.seeds.index(seed) for seed in seeds],
            )
            order = [study.archs.index(arch) for arch in first.archs]
            gaps = own.test[rows[0]][:, order] - base.test[rows[1]]
            cells = [shown(*statistics.interval(values), 3) for values in (*gaps.T, gaps.mean(1))]
            body.append([study.name, label, str(len(seeds)), *cells])
    return markdown(body, ["study", "weights", "n", *first.archs, "mean"])


def draw(studies: list[Study], folder: Path) -> None:
    """folder/tau.png: tau beside its ceiling for every study; folder/networks.png: each network in
    the studies like the first."""
    with figure(folder / "tau.png", width=1.3 * len(studies) + 1.5, height=3.2) as (ax,):
        found = [summary(study) for study in studies]
        for number, (key, label) in enumerate(
            (("tau", "supernet"), ("ceiling", "one seed from scratch (ceiling)"))
        ):
            have = [i for i, numbers in enumerate(found) if numbers[f"{key}_mean"] is not None]
            mean = np.array([found[i][f"{key}_mean"] for i in have])
            ends = np.array([found[i][f"{key}_ci"] for i in have], float).reshape(-1, 2)
            x = np.array(have) + 0.2 * (number - 0.5)
            ax.errorbar(x, mean, bars(mean, *ends.T), fmt=MARKERS[number], capsize=3, label=label)
        ax.axhline(0, color="black", linewidth=0.8)
        ax.set_xticks(range(len(studies)), [study.name.replace("_", "\n") for study in studies])
        ax.set_xlim(-0.5, len(studies) - 0.5)
        ax.set_ylim(-1.05, 1.05)
        ax.set_ylabel("Kendall's tau with the mean\nfrom scratch")
        ax.legend(fontsize=8, loc="lower right")
    with figure(folder / "networks.png", 2, width=4.2, height=3.4) as axes:
        same = alike(studies)
        for ax, (kind, label) in zip(axes, KINDS, strict=True):
            for number, study in enumerate(same):
                order = [study.archs.index(arch) for arch in same[0].archs]
                means = [statistics.interval(values) for values in study.arms[kind].test.T[order]]
                x = np.arange(len(order)) + 0.2 * (number - (len(same) - 1) / 2)
                mean, low, high = zip(*means, strict=True)
                ax.errorbar(
                    x, mean, bars(mean, low, high), fmt=MARKERS[number], capsize=2, label=study.name
                )
            ax.set_xticks(range(len(order)), [arch.replace("-", "\n") for arch in same[0].archs])
            ax.set_title(label)
        axes[0].set_ylabel("test top-1, %")
        axes[1].legend(fontsize=7)
        ends = [end for ax in axes for end in ax.get_ylim()]
        for ax in axes:
            ax.set_ylim(min(ends), max(ends))
