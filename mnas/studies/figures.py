"""The figures of a study; each function draws one file and is told where. Titles are computed."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mnas.studies import ablations, messages, statistics
from mnas.studies.estimators import estimator
from mnas.studies.labels import beside_diagonal
from mnas.studies.plotting import QUIET, at_ends, error_axis, figure, legend, lines, strip
from mnas.studies.results import KINDS

if TYPE_CHECKING:
    from mnas.studies.results import Study, Summary

FIGURES = {"accuracy", "scatter", "ranking", "curves", "frontier", "drift"}
FIGURES |= {section.key for section in ablations.SECTIONS}


def draw(study: Study, numbers: Summary) -> list[str]:
    """All figures that the rows give; returns the names of the files."""
    made = {
        "accuracy": accuracy,
        "scatter": scatter,
        "ranking": functools.partial(taus, found=numbers),
    }
    made["frontier"] = functools.partial(frontier, found=numbers)
    if study.curves:
        made["curves"] = curves
    made |= ablations.draw(study, numbers)
    if study.drift:
        made["drift"] = drift
    for name in FIGURES - made.keys():  # of an earlier study
        (study.path / f"{name}.png").unlink(missing_ok=True)
    for name, function in made.items():
        function(study, study.path / f"{name}.png")
    return list(made)


def _bars(runs: Any) -> tuple[Any, Any]:
    """Means of the networks, and the half-widths of their intervals (0 where there is none)."""
    found = [statistics.interval(column) for column in runs.T]
    return np.array([f.mean for f in found]), np.nan_to_num([f.high - f.mean for f in found])


def accuracy(study: Study, file: Path) -> None:
    """Every run as a small mark, the mean of each network with its interval; the network with the
    most parameters on top."""
    order = sorted(range(len(study.archs)), key=lambda i: -study.costs[study.archs[i]][0])
    with figure(file, 1, 7.5, 0.75 * len(order) + 1.9, messages.accuracy(study)) as (ax,):
        for number, (name, label) in enumerate(KINDS):
            arm = study.arms[name]
            for line, i in enumerate(order):
                found = statistics.interval(arm.test[:, i])
                label_once = {} if line else {"label": f"{label}, n = {len(arm.seeds)}"}
                at = line + 0.44 * number - 0.18
                strip(ax, at, number, arm.test[:, i], *found, **label_once)
        lines(ax, [study.archs[i] for i in order])
        _image_noise(ax, study)
        ax.set_xlabel(f"test top-1, %: runs, their mean and 95 % interval\n{study.title}")
        legend(ax)


def _image_noise(ax: Any, study: Study) -> None:
    """What other test images would change, as a bar beneath the networks."""
    share = float(study.arms["scratch"].test.mean()) / 100
    half = 196 * math.sqrt(share * (1 - share) / study.about["test_images"])
    low, high = ax.get_xlim()
    place = (low + high) / 2
    bottom = ax.get_ylim()[0]
    ax.set_ylim(bottom + 0.75, -0.5)
    ax.errorbar(place, bottom + 0.1, xerr=half, color=QUIET, capsize=4, linewidth=1.2)
    ax.annotate(
        f"noise of the test images, 95 %: ±{half:.2f} points",
        (place, bottom + 0.1),
        xytext=(0, -5),
        textcoords="offset points",
        ha="center",
        va="top",
        color=QUIET,
        fontsize=10,
    )


def scatter(study: Study, file: Path) -> None:
    (x, dx), (y, dy) = (_bars(study.arms[name].test) for name, _ in KINDS)
    with figure(file, 1, 6, 5.6, messages.scatter(study)) as (ax,):
        ax.errorbar(x, y, dy, dx, fmt="o", markersize=7, color="C0", ecolor="#0b6bb866")
        ends = [min(*(x - dx), *(y - dy)), max(*(x + dx), *(y + dy))]
        ax.axline((ends[0], ends[0]), slope=1, color=QUIET, linewidth=1, linestyle="--")
        ax.annotate(
            "equal",
            (ends[1], ends[1]),
            xytext=(-6, -14),
            textcoords="offset points",
            ha="left",
            color=QUIET,
        )
        margin = 0.05 * (ends[1] - ends[0]) or 0.5  # all networks may be equal
        ax.set(xlim=(ends[0] - margin, ends[1] + margin), ylim=(ends[0] - margin, ends[1] + margin))
        gap = (ends[1] - ends[0] + 2 * margin) / 24
        for arch, (at, place, left) in zip(
            study.archs, beside_diagonal(x.tolist(), y.tolist(), gap), strict=True
        ):
            ax.annotate(
                arch,
                (at, place),
                xytext=(-6 if left else 6, 4),
                va="bottom",
                textcoords="offset points",
                ha="right" if left else "left",
            )
        ax.locator_params(nbins=5)
        ax.set_xlabel(f"inherited from the supernet, test top-1, %\n{study.title}")
        ax.set_ylabel("from scratch, test top-1, %")


def curves(study: Study, file: Path) -> None:
    """Validation error of every network over epochs; mean over seeds, the band is one standard
    deviation. Runs from scratch are left out where they were validated fewer than three times."""
    epochs_of = {
        kind: sorted({row["epoch"] for row in study.curves if row["kind"] == kind})
        for kind, _ in KINDS
    }
    kinds = [(kind, label) for kind, label in KINDS if len(epochs_of[kind]) > 2] or [KINDS[0]]
    with figure(file, len(kinds), 7 if len(kinds) == 1 else 5, 4, messages.curves(study)) as axes:
        for ax, (kind, label) in zip(axes, kinds, strict=True):
            means, epochs = {}, epochs_of[kind]
            for number, arch in enumerate(study.archs):
                rows = [row for row in study.curves if row["kind"] == kind and row["arch"] == arch]
                values = [
                    [100 - 100 * row["val_top1"] for row in rows if row["epoch"] == epoch]
                    for epoch in epochs
                ]
                mean = np.array([np.mean(v) for v in values])
                spread = np.array([np.std(v, ddof=1) if len(v) > 1 else 0 for v in values])
                means[arch] = mean
                colour = f"C{number % 10}"
                ax.plot(epochs, mean, marker="o", markersize=3.5, linewidth=1.5, color=colour)
                ax.fill_between(
                    epochs,
                    np.maximum(mean - spread, mean / 2),
                    mean + spread,
                    alpha=0.12,
                    color=colour,
                    linewidth=0,
                )
            seeds = len({row["seed"] for row in study.curves if row["kind"] == kind})
            ax.set_xlabel(f"epoch ({label}; mean and one SD, n = {seeds})")
            ax.xaxis.get_major_locator().set_params(integer=True)
            error_axis(ax, np.concatenate(list(means.values())))
            ax.margins(x=0.02)
            ax.figure.canvas.draw()  # the layout decides how high the axes are
            at_ends(ax, epochs[-1], {arch: float(mean[-1]) for arch, mean in means.items()})
        axes[0].set_ylabel("validation error, %")


def rankings(found: Summary) -> dict[str, tuple[Any, float, float | None, float | None]]:
    """The lines of the figure of taus: runs, their mean and its interval, as the tables have it."""
    wanted = {
        "supernet": ("supernet", "tau", found["tau_per_seed"]),
        "supernet,\nvalidation → test": ("supernet", "tau_validation_to_test", []),
        "supernet,\nother images": ("supernet", "tau_other_images", []),
        "one run\nfrom scratch": ("scratch", "tau", found["ceiling_per_seed"]),
        "number of\nparameters": ("parameters", "tau", []),
    }
    return {
        label: (runs, line["tau_mean" if key == "tau" else key], *line[f"{key}_ci"])
        for label, (name, key, runs) in wanted.items()
        if (line := estimator(found, name)) is not None
    }


def taus(study: Study, file: Path, found: Summary) -> None:
    """tau of each supernet, and of each run from scratch with the mean of the others; beside them
    what a user of a supernet gets, tau on other images, and what counting parameters gives."""
    groups = rankings(found)
    with figure(file, 1, 7.5, 0.8 * len(groups) + 1.6, messages.taus(study, found)) as (ax,):
        for line, (label, (runs, mean, low, high)) in enumerate(groups.items()):
            number = ("supernet", "one run", "number of").index(label.split(",")[0].split("\n")[0])
            strip(ax, line, number, runs, mean, low, high)
        lines(ax, list(groups))
        ax.axvline(0, color=QUIET, linewidth=1)
        ax.annotate(
            "a random order",
            (0, len(groups) - 0.5),
            xytext=(4, 4),
            textcoords="offset points",
            color=QUIET,
            fontsize=10,
        )
        low, _ = ax.get_xlim()
        ax.set_xlim(max(-1.05, min(low, -0.1)), 1.05)
        ax.set_xlabel(
            "Kendall's tau with the mean from scratch: runs, their mean and 95 % interval\n"
            f"{study.title}"
        )


def frontier(study: Study, file: Path, found: Summary) -> None:
    """tau of every way to rank, the cheapest on top, with its compute."""
    estimators = sorted(found["estimators"], key=lambda e: e["compute"])
    with figure(file, 1, 8, 0.42 * len(estimators) + 1.9, messages.frontier(found)) as (ax,):
        names = [f"{e['name']}  {e['compute']:.2f}" for e in estimators]
        for line, e in enumerate(estimators):
            number = 0 if e["name"].startswith("supernet") else 1 if e["compute"] else 2
            strip(ax, line - 0.07, number, [], e["tau_mean"], *e["tau_ci"])
        lines(ax, names)
        ax.axvline(0, color=QUIET, linewidth=1)
        top = estimator(found, "scratch")
        if top is not None:
            aim = 0.9 * top["tau_mean"]
            ax.axvline(aim, color=QUIET, linewidth=1.2, linestyle=":")
            ax.annotate(
                "90 % of one run\nfrom scratch",
                (aim, 1),
                xycoords=("data", "axes fraction"),
                xytext=(0, 3),
                textcoords="offset points",
                ha="center",
                color=QUIET,
                fontsize=10,
            )
        ax.set_title(
            "training compute relative to\none run from scratch of each",
            fontsize=10,
            color=QUIET,
            x=0,
            ha="right",
        )
        ax.set_xlim(right=1.05)
        ax.set_xlabel(f"Kendall's tau with the mean from scratch, 95 % interval\n{study.title}")


def drift(study: Study, file: Path) -> None:
    seeds = len({row["seed"] for row in study.drift})
    names = {"frozen": "mnas", "torch": "stock optimizer"}
    with figure(file, 1, 7.5, 3.9, messages.drift(study)) as (ax,):
        ends = {}
        for number, (which, policy) in enumerate(
            (which, policy) for which in ("active", "inactive") for policy in names
        ):
            rows = [row for row in study.drift if row["policy"] == policy]
            steps = sorted({row["step"] for row in rows})
            mean = [np.mean([row[which] for row in rows if row["step"] == step]) for step in steps]
            where = "on the path" if which == "active" else "off the path"
            if steps:
                ax.plot(steps, mean, color=f"C{number}", linewidth=1.5)
                ends[f"{where},\n{names[policy]}"] = float(np.mean(mean[-5:]))
        ax.set_xlabel(f"step of the first epoch (mean of {seeds} supernets)\n{study.title}")
        ax.set_ylabel("movement of a weight in a step,\nroot mean square")
        ax.set_ylim(bottom=-0.03 * ax.get_ylim()[1])  # a line at 0 is seen
        ax.figure.canvas.draw()
        if steps:
            at_ends(ax, steps[-1], ends, lines_each=2)
