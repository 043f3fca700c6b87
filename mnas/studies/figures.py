"""The figures of a study; each function draws one file and is told where."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mnas.studies import ablations, statistics
from mnas.studies.plotting import MARKERS, bars, error_axis, figure
from mnas.studies.results import KINDS

if TYPE_CHECKING:
    from mnas.studies.results import Study, Summary

FIGURES = {"accuracy", "scatter", "ranking", "curves", "frontier", "drift"}
FIGURES |= {section.key for section in ablations.SECTIONS}


def draw(study: Study, numbers: Summary) -> list[str]:
    """All figures that the rows give; returns the names of the files."""
    made = {"accuracy": accuracy, "scatter": scatter, "ranking": taus}
    made["frontier"] = functools.partial(frontier, estimators=numbers["estimators"])
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
    """Means of the networks, and the half-widths of their intervals (0 for a single seed)."""
    found = [statistics.interval(column) for column in runs.T]
    return np.array([f.mean for f in found]), np.nan_to_num([f.high - f.mean for f in found])


def accuracy(study: Study, file: Path) -> None:
    """Every run as a small mark, the mean of each network with its interval."""
    at = np.arange(len(study.archs))
    with figure(file, width=max(5, 0.9 * len(at) + 1.5), height=3.2) as (ax,):
        for number, (name, label) in enumerate(KINDS):
            runs, x = study.arms[name].test, at + 0.24 * (number - 0.5)
            mean, half = _bars(runs)
            for seed in runs:
                ax.plot(
                    x,
                    seed,
                    MARKERS[number],
                    markersize=2.5,
                    alpha=0.35,
                    color=f"C{number}",
                    linestyle="",
                )
            label = f"{label}, mean of {len(runs)}"
            ax.errorbar(
                x, mean, half, fmt=MARKERS[number], capsize=3, color=f"C{number}", label=label
            )
        ax.set_xticks(at, [arch.replace("-", "\n") for arch in study.archs])
        ax.set_ylabel("test top-1, %")
        ax.set_title(study.title)
        ax.legend(fontsize=8)


def scatter(study: Study, file: Path) -> None:
    (x, dx), (y, dy) = (_bars(study.arms[name].test) for name, _ in KINDS)
    with figure(file, width=4.4, height=4) as (ax,):
        for i, arch in enumerate(study.archs):
            ax.errorbar(
                x[i], y[i], dy[i], dx[i], fmt=MARKERS[i % len(MARKERS)], capsize=2, label=arch
            )
        ends = [min(*(x - dx), *(y - dy)), max(*(x + dx), *(y + dy))]
        ax.plot(ends, ends, color="black", linewidth=0.8, linestyle="--", label="equal")
        ax.set_xlabel("inherited from the supernet, test top-1, %")
        ax.set_ylabel("from scratch, test top-1, %")
        ax.set_title(study.title)
        ax.legend(fontsize=7)


def curves(study: Study, file: Path) -> None:
    """Validation error of every network over epochs; mean over seeds, the band is one standard
    deviation."""
    with figure(file, 2, width=4, height=3.2) as axes:
        for ax, (kind, label) in zip(axes, KINDS, strict=True):
            means = []
            for i, arch in enumerate(study.archs):
                rows = [row for row in study.curves if row["kind"] == kind and row["arch"] == arch]
                epochs = sorted({row["epoch"] for row in rows})
                values = [
                    [100 - 100 * row["val_top1"] for row in rows if row["epoch"] == epoch]
                    for epoch in epochs
                ]
                mean, spread = (
                    np.array([np.mean(v) for v in values]),
                    np.array([np.std(v) for v in values]),
                )
                means.append(mean)
                ax.plot(
                    epochs,
                    mean,
                    marker=MARKERS[i % len(MARKERS)],
                    markersize=3,
                    linewidth=1,
                    label=arch,
                )
                ax.fill_between(epochs, mean - spread, mean + spread, alpha=0.1)
            ax.set_xlabel("epoch")
            ax.xaxis.get_major_locator().set_params(integer=True)
            ax.set_title(f"{study.title}, {label}", fontsize=9)
            error_axis(ax, np.concatenate(means))
        axes[0].set_ylabel("validation error, %")
        axes[1].legend(fontsize=7)


def taus(study: Study, file: Path) -> None:
    """tau of each supernet, and of each run from scratch with the mean of the others."""
    scratch = study.arms["scratch"].test
    groups = {
        "supernet\nwith the mean\nfrom scratch": statistics.agreement(
            study.arms["supernet"].test, scratch
        )
    }
    if len(scratch) > 1:
        groups["one seed from scratch\nwith the mean\nof the others"] = statistics.ceiling(scratch)
    with figure(file, width=4, height=3.2) as (ax,):
        for number, (values, found) in enumerate(groups.values()):
            # Equal taus side by side: with few networks there are few values.
            seen: dict[float, int] = {}
            for value in values:
                place = seen[round(value, 6)] = seen.get(round(value, 6), -1) + 1
                x = number - 0.3 + 0.035 * place
                ax.plot(x, value, MARKERS[number], markersize=4, alpha=0.6, color=f"C{number}")
            ends = bars([found.mean], [found.low], [found.high])
            ax.errorbar(
                number + 0.3, found.mean, ends, fmt=MARKERS[number], capsize=3, color="black"
            )
        ax.axhline(0, color="black", linewidth=0.8)
        ax.set_xticks(range(len(groups)), list(groups))
        ax.set_xlim(-0.5, len(groups) - 0.5)
        ax.set_ylim(-1.05, 1.05)
        ax.set_ylabel("Kendall's tau")
        ax.set_title(study.title)


def places(computes: list[float]) -> list[float]:
    """Where ascending costs stand on a logarithmic axis: what costs nothing at the left edge, left
    of a tenth too; what costs the same side by side."""
    free = min(0.1, *(cost for cost in computes if cost)) / 4
    found = [0.0]
    for cost in computes:
        found.append(max(cost or free, 1.12 * found[-1]))
    return found[1:]


def frontier(study: Study, file: Path, estimators: list[dict[str, Any]]) -> None:
    """tau against the compute of training."""
    estimators = sorted(estimators, key=lambda e: e["compute"])
    with figure(file, width=6.4, height=3.8) as (ax,):
        for number, (x, e) in enumerate(
            zip(places([e["compute"] for e in estimators]), estimators, strict=True)
        ):
            ends = bars([e["tau_mean"]], *([end] for end in e["tau_ci"]))
            marker = MARKERS[number % len(MARKERS)]
            ax.errorbar(x, e["tau_mean"], ends, fmt=marker, capsize=2, label=e["name"])
        ax.axvline(0.1, color="black", linewidth=0.8, linestyle=":")
        top = next((e["tau_mean"] for e in estimators if e["name"] == "scratch"), None)
        aim = "a tenth of the compute"
        if top is not None:
            ax.axhline(0.9 * top, color="black", linewidth=0.8, linestyle=":")
            aim += ", 90 % of the ceiling"
        ax.set_xscale("log")
        ax.set_xlabel(
            "training compute, to one run from scratch of each network\n(left edge: none; equal "
            "ones side by side)"
        )
        ax.set_ylabel("Kendall's tau")
        ax.set_title(f"{study.title}; dotted: {aim}", fontsize=9)
        ax.legend(fontsize=7, bbox_to_anchor=(1.01, 1), loc="upper left")


def drift(study: Study, file: Path) -> None:
    with figure(file, width=5, height=3.2) as (ax,):
        lines = {
            f"{where} the sampled path, {optimizer}": (policy, which)
            for which, where in (("active", "on"), ("inactive", "off"))
            for policy, optimizer in (("frozen", "mnas"), ("torch", "stock optimizer"))
        }
        for number, (label, (policy, which)) in enumerate(lines.items()):
            rows = [row for row in study.drift if row["policy"] == policy]
            steps = sorted({row["step"] for row in rows})
            mean = [np.mean([row[which] for row in rows if row["step"] == step]) for step in steps]
            ax.plot(steps, mean, marker=MARKERS[number], markersize=3, markevery=5, label=label)
        ax.set_xlabel("step")
        ax.set_ylabel("movement in a step, root mean square")
        ax.set_title(study.title)
        ax.legend(fontsize=8)
