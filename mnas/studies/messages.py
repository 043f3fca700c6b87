"""What each figure of a study says, in a line that the rows decide."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mnas.studies.estimators import estimator

if TYPE_CHECKING:
    from mnas.studies.results import Study, Summary


def accuracy(study: Study) -> str:
    means = study.arms["scratch"].test.mean(0)
    return (
        f"From scratch, all {len(means)} networks lie within {means.max() - means.min():.2f} points"
    )


def scatter(study: Study) -> str:
    inherited, scratch = (study.arms[kind].test.mean(0) for kind in ("supernet", "scratch"))
    better = int((inherited > scratch).sum())
    return f"{better} of {len(scratch)} networks inherit more than they reach from scratch"


def taus(study: Study, found: Summary) -> str:
    right = sum(tau > 1 - 1e-9 for tau in found["tau_per_seed"])
    number = len(found["tau_per_seed"])
    if number == 1:
        return f"One supernet ranks these networks with tau {found['tau_mean']:.2f}"
    return (
        f"A supernet's tau is {found['tau_mean']:.2f} on average; {right} of {number} order all "
        f"{len(study.archs)} right"
    )


def curves(study: Study) -> str:
    """Of the supernets: how many networks have their highest validation accuracy at the end."""
    seeds = study.arms["supernet"].seeds
    curve = [row for row in study.curves if row["kind"] == "supernet" and row["seed"] in seeds]
    last = max(row["epoch"] for row in curve)
    means = {}
    for row in curve:
        means.setdefault((row["arch"], row["epoch"]), []).append(row["val_top1"])
    mean = {key: round(sum(values) / len(values), 6) for key, values in means.items()}
    at_end = sum(
        mean[arch, last] >= max(value for (name, _), value in mean.items() if name == arch)
        for arch in study.archs
    )
    return f"{at_end} of {len(study.archs)} networks are best at the supernet's last epoch"


def frontier(found: Summary) -> str:
    """The best of what costs no training, beside a supernet and one run of each network."""
    free = [line for line in found["estimators"] if line["compute"] == 0]
    best = max(free, key=lambda line: line["tau_mean"])
    supernet = estimator(found, "supernet")
    said = f"Number of {best['name']}: tau {best['tau_mean']:.2f} without training"
    if supernet is not None:
        said += (
            f"; supernet: {supernet['tau_mean']:.2f} for {supernet['compute']:.2f} of the compute"
        )
    return said


def drift(study: Study) -> str:
    moved = {
        which: [row[which] for row in study.drift if row["policy"] == "torch"]
        for which in ("inactive", "active")
    }
    if not sum(moved["active"]):
        return "Movement of weights on and off the sampled path"
    ratio = sum(moved["inactive"]) / sum(moved["active"])
    return f"A stock optimizer moves unused weights {100 * ratio:.0f} % as far as used ones"
