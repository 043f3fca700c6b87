"""Studies beside each other: the first pages of the project, and docs/results.md."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mnas.studies import statistics
from mnas.studies.estimators import estimator
from mnas.studies.pages import markdown, shown
from mnas.studies.plotting import QUIET, figure, legend, lines, strip
from mnas.studies.results import KINDS, Study, Summary, summary

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
                f"{found['regret_mean']:.3f}",
                f"{found['regret_of_chance']:.3f}",
                str(found["failed_runs"]),
            ]
        )
    headers = ["study", "networks", "seeds", "inherited, %", "from scratch, %"]
    headers += ["regret, points", "of a random pick", "failed runs"]
    return f"{_taus(studies)}\n\n{markdown(body, headers)}"


def _taus(studies: list[Study]) -> str:
    """Of every study: the supernet, what costs nothing, shorter training, and the ceiling."""
    body = []
    for study in studies:
        found = summary(study)
        shorter = [e["name"] for e in found["estimators"] if e["name"].startswith("scratch of ")]
        for name in ("supernet", *shorter, "parameters", "scratch"):
            if line := estimator(found, name):
                taus = [
                    shown(line[mean], *line[ends])
                    for mean, ends in (
                        ("tau_mean", "tau_ci"),
                        ("tau_validation_to_test", "tau_validation_to_test_ci"),
                        ("tau_other_images", "tau_other_images_ci"),
                        ("tau_by_loss", "tau_by_loss_ci"),
                    )
                ]
                costs = [f"{line['compute']:.3f}", f"{line['seconds']:.2f}"]
                label = "scratch (ceiling)" if name == "scratch" else name
                body.append([study.name, label, *taus, *costs])
    headers = ["study", "estimator", "tau", "validation → test", "on other images", "by loss"]
    return markdown(body, [*headers, "compute", "seconds"])


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
    """folder/tau.png: tau of every study; folder/networks.png: each network in the studies like the
    first."""
    found = [summary(study) for study in studies]
    series = {
        "supernet": ("supernet", "tau_mean", "tau"),
        "one run from scratch": ("scratch", "tau_mean", "tau"),
        "number of parameters": ("parameters", "tau_mean", "tau"),
        "supernet, other images": ("supernet", "tau_other_images", "tau_other_images"),
    }
    with figure(folder / "tau.png", 1, 9, 0.9 * len(studies) + 1.5, _message(found)) as (ax,):
        for number, (label, (name, key, ends)) in enumerate(series.items()):
            for line, (study, numbers) in enumerate(zip(studies, found, strict=True)):
                given = estimator(numbers, name)
                if given is None:
                    continue
                runs = statistics.kendall(
                    study.arms["supernet"].test, study.arms["scratch"].test.mean(0)
                )
                at = line - 0.32 + 0.21 * number
                few = runs if number == 0 else []
                more = {} if line else {"label": label}
                strip(ax, at, number, few, given[key], *given[f"{ends}_ci"], **more)
        lines(ax, [f"{s.name}\nn = {len(s.arms['supernet'].seeds)}" for s in studies])
        for line in range(1, len(studies)):
            ax.axhline(line - 0.5, color=QUIET, linewidth=0.5, alpha=0.5)
        ax.axvline(0, color=QUIET, linewidth=1)
        ax.set_xlabel("Kendall's tau with the mean from scratch: mean, 95 % interval, supernets")
        legend(ax, columns=2)
    same = alike(studies)
    rows = same[0].archs
    with figure(folder / "networks.png", 2, 5.2, 0.75 * len(rows) + 1.5, _gain(same)) as axes:
        for ax, (kind, label) in zip(axes, KINDS, strict=True):
            for number, study in enumerate(same):
                for line, arch in enumerate(rows):
                    runs = study.arms[kind].test[:, study.archs.index(arch)]
                    at = line - 0.25 + 0.27 * number
                    more = {} if line else {"label": study.name}
                    strip(ax, at, number, [], *statistics.interval(runs), **more)
            lines(ax, rows if ax is axes[0] else [""] * len(rows))
            ax.set_xlabel(f"{label}: test top-1, %, 95 %")
        ends = [end for ax in axes for end in ax.get_xlim()]
        for ax in axes:
            ax.set_xlim(min(ends), max(ends))
        legend(axes[0], fontsize=10)


def _message(found: list[Summary]) -> str:
    """Of the comparison of studies: what of it holds in how many."""
    less = sum(
        numbers["ceiling_mean"] is not None and numbers["tau_mean"] < numbers["ceiling_mean"]
        for numbers in found
    )
    size = sum(
        (line := estimator(numbers, "parameters")) is not None
        and line["tau_mean"] > numbers["tau_mean"]
        for numbers in found
    )
    return (
        f"A supernet's tau is below that of one run from scratch in {less} of {len(found)} "
        f"studies, below that of counting parameters in {size}"
    )


def _gain(same: list[Study]) -> str:
    """How much the mean of all networks differs between the first study and the others."""
    if len(same) == 1:
        return same[0].title
    means = [study.arms["scratch"].test.mean() for study in same]
    best = int(np.argmax(means))
    gain = f"{means[best] - means[0]:+.2f} points over {same[0].name}"
    return f"From scratch, {same[best].name} is best: {gain}"
