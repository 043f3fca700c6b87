"""The README of a study: tables and sober sentences, all from its numbers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import common
import study_arms
from study_rows import KINDS
from study_words import ENGLISH, on_other_pictures, shown
from tabulate import tabulate

from mnas import ranking

if TYPE_CHECKING:
    from study_rows import Study
    from study_words import Summary

ALPHA = 0.05
FEW = 5  # runs; the mean of fewer has a bootstrap of little use


def headline(study: Study, form: str = "github") -> str:
    supernet, scratch = study.arms["supernet"], study.arms["scratch"]
    body = []
    for i, arch in enumerate(study.archs):
        params, macs = study.costs[arch]
        accuracies = [shown(*ranking.interval(arm.test[:, i])) for arm in (supernet, scratch)]
        gap = scratch.test[:, i].mean() - supernet.test[:, i].mean()
        body.append([arch, *accuracies, f"{gap:+.2f}", f"{params:,}", f"{macs:,}"])
    heads = [f"inherited, % (n = {len(supernet.seeds)})", f"from scratch, % (n = {len(scratch.seeds)})"]
    headers = ["network", *heads, "scratch − inherited", "parameters", "MACs"]
    return tabulate(body, headers, tablefmt=form, disable_numparse=True)


def page(study: Study, found: Summary, figures: list[str]) -> str:
    """README.md of the study."""
    about = study.about
    supernets, runs = found["supernet_seeds"], found["scratch_seeds"]
    seeds = f"{supernets} supernet{'s' * (supernets != 1)}, {runs} run{'s' * (runs != 1)} from scratch of each network"
    machine = about["environment"]
    parts = [
        f"# {study.title}: what weight sharing predicts",
        f"{seeds}. Trained by `python {_command(study)}`; this page, `summary.json` and the figures are made from "
        f"`rows.jsonl` and the files beside it by `python tools/report.py {study.path}`. {machine['processor']}, "
        f"{machine['cores']} cores, torch {machine['torch']}. Settings of every arm are in `study.json`.",
        "Selections are made on validation; the test set is read once a run. Intervals are 95 %; two networks are "
        f"called different when the paired t-test over seeds, corrected for all pairs (Holm), gives p < {ALPHA}.",
        "## Accuracy",
        headline(study),
        "![test accuracy of every network, inherited and from scratch](accuracy.png)",
        _accuracy_reading(study),
        "## Which networks differ",
        *_differences(study),
        "## Ranking",
        ENGLISH.ranking(found),
        _what_tau_can_show(study, found),
        _other_pictures(found),
        "![tau of each supernet, and of each seed from scratch](ranking.png)",
        "![inherited against scratch accuracy](scatter.png)",
    ]
    if "curves" in figures:
        parts += ["## Over epochs", "![validation error of every network over epochs](curves.png)", _peaks(study)]
    parts += ["## Estimators at their cost", _estimators(found), "![tau against compute](frontier.png)", _target(found)]
    parts += study_arms.paragraphs(study, found)
    if "drift" in figures:
        parts += ["## Drift", _drift(study), "![movement of weights in a step](drift.png)"]
    if about["failed"]:
        lines = [f"- {failure['run']}: {failure['reason']}" for failure in about["failed"]]
        parts += ["## Runs that failed or were not run", "\n".join(lines)]
    if study.collapsed:
        lines = [f"- {name} {r['arch']} seed {r['seed']}: {100 * r['test_top1']:.2f} %" for name, r in study.collapsed]
        rule = "Less than half of their arm's median accuracy; they count in every table and figure."
        parts += ["## Networks that collapsed", rule, "\n".join(lines)]
    if study.left_out:
        lines = [f"- {name} seed {seed}" for name, seed in study.left_out]
        parts += ["## Seeds that lack a network", "In the rows, not in tables and rankings.", "\n".join(lines)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _command(study: Study) -> str:
    about = study.about
    words = [f"tools/study.py --space {about['space']} --dataset {about['dataset']} --recipe {about['recipe']}"]
    words.append(f"--seeds {about['seeds']}{' --variants' if about['variants'] else ''}")
    words += [f"--limit-{name} {n}" for name in ("train", "test") if (n := about[f"limit_{name}"]) is not None]
    if about["drawn"]:
        words.append(f"--networks {about['networks']} --seed {about['seed']}")
    return " ".join([*words, f"--out {study.path}"])


def _accuracy_reading(study: Study) -> str:
    supernet, scratch = study.arms["supernet"].test, study.arms["scratch"].test
    share = scratch.mean() / 100
    images = study.about["test_images"]
    single = 100 * math.sqrt(share * (1 - share) / images)
    text = (
        f"One number at {scratch.mean():.2f} % on {images:,} images has a standard error of {single:.2f} points from "
        f"the images alone. Mean over networks: inherited {supernet.mean():.2f}, from scratch {scratch.mean():.2f}."
    )
    if len(supernet) > 1 and len(scratch) > 1:
        text += (
            f" Standard deviation over seeds: inherited {supernet.std(0, ddof=1).mean():.3f}, from scratch "
            f"{scratch.std(0, ddof=1).mean():.3f}; range of the networks' means: {_range(supernet):.3f} and "
            f"{_range(scratch):.3f}."
        )
    return text


def _range(runs: Any) -> float:
    return float(runs.mean(0).max() - runs.mean(0).min())


def _differences(study: Study) -> list[str]:
    body, counts = [], []
    for name, label in KINDS:
        arm = study.arms[name]
        if len(arm.seeds) < 2:
            counts.append(f"{label}: one seed cannot tell networks apart")
            continue
        found = ranking.differences(arm.test)
        counts.append(f"{label}: {sum(d.p < ALPHA for d in found)} of {len(found)} pairs")
        for d in found:
            # Too many pairs to read: those that differ.
            if len(study.archs) <= 5 or d.p < ALPHA:
                pair = f"{study.archs[d.a]} − {study.archs[d.b]}"
                interval = shown(d.mean, d.low, d.high, 3)
                body.append([label, pair, interval, f"{d.p:.3f}", "yes" if d.p < ALPHA else ""])
    table = common.markdown(body, ["weights", "pair", "difference, points", "p (Holm)", "different"]) if body else ""
    return [f"Different at p < {ALPHA}: {'; '.join(counts)}.", table]


def _what_tau_can_show(study: Study, found: Summary) -> str:
    n = len(study.archs)
    pairs = n * (n - 1) // 2
    text = (
        f"With {n} networks there are {pairs} pairs, so without ties tau has {pairs + 1} values; a random order is "
        + (f"fully right once in {math.factorial(n):,}." if n <= 20 else "hardly ever fully right.")
    )
    chance = 1 / math.factorial(n)
    if chance > ALPHA:
        text += (
            " Not even a fully right order of a single supernet is below 5 %: the mean over seeds is what can be read."
        )
    elif n == 4:
        text += f" Of a single supernet only a fully right order is below 5 % (p = {chance:.2f}, one-sided); anything "
        text += "less shows nothing, and the mean over seeds is what can be read."
    low, high = found["tau_ci"]
    if low is not None:
        against = "includes" if low <= 0 <= high else "excludes"
        text += f" The interval of the mean tau {against} 0."
        if (number := min(found["supernet_seeds"], found["scratch_seeds"])) < FEW:
            text += f" A bootstrap of {number} runs is hardly more than their range: read intervals of tau as such."
    return text


def _other_pictures(found: Summary) -> str:
    """What the noise of the test pictures, common to all runs, may have added to agreement."""
    names = [e["name"] for e in found["estimators"]]
    labels = {"supernet": "a supernet", "scratch": "one seed from scratch", "parameters": "the number of parameters"}
    said = "; ".join(f"of {label} {on_other_pictures(found, name)}" for name, label in labels.items() if name in names)
    return (
        "Intervals hold the noise of seeds. All runs are scored on the same pictures, whose noise they share; it "
        "counts as agreement. On other pictures (scores on those of the test with the truth on those of validation, "
        f"and the other way round, on average) tau is: {said}. The means from scratch on the two sets of pictures "
        f"agree with a tau of {found['tau_of_truths']:.2f}."
    )


def _peaks(study: Study) -> str:
    """The epoch at which each network is best on validation, along its supernet."""
    arm = study.arms["supernet"]
    curves = [row for row in study.curves if row["kind"] == "supernet" and row["seed"] in arm.seeds]
    last = max(row["epoch"] for row in curves)
    body = []
    for arch in study.archs:
        values: dict[float, list[float]] = {}
        for row in curves:
            if row["arch"] == arch:
                values.setdefault(row["epoch"], []).append(100 * row["val_top1"])
        mean = {epoch: round(sum(those) / len(those), 6) for epoch, those in values.items()}
        best = max(sorted(mean, reverse=True), key=mean.__getitem__)
        body.append([arch, str(best), f"{mean[best]:.2f}", f"{mean[last]:.2f}"])
    together = "all peak at the end" if all(line[1] == str(last) for line in body) else "not all peak at the end"
    table = common.markdown(body, ["network", "best epoch", "validation then, %", f"at epoch {last}, %"])
    return f"Networks of the supernet, mean over seeds: {together}.\n\n{table}"


def _estimators(found: Summary) -> str:
    body = [
        [
            e["name"],
            str(e["seeds"]),
            shown(e["tau_mean"], *e["tau_ci"]),
            on_other_pictures(found, e["name"]),
            f"{e['regret_mean']:.3f}",
            f"{e['compute']:.3f}",
            f"{e['seconds']:.2f}",
        ]
        for e in found["estimators"]
    ]
    return (
        "tau with the mean from scratch; `scratch` itself: one seed with the mean of the others. On "
        "other pictures: scores and truth on test and validation pictures, both ways round. Compute: "
        "multiply-accumulates of training, and seconds of a shared machine, both relative to one run from scratch of "
        "each network.\n\n"
        + common.markdown(
            body, ["estimator", "n", "tau", "tau on other pictures", "regret, points", "compute", "seconds"]
        )
    )


def _target(found: Summary) -> str:
    top = found["ceiling_mean"]
    if top is None:
        return ""
    if top <= 0:
        return "The ceiling is not above 0: not even one run from scratch of each network ranks them."
    reached = [e["name"] for e in found["estimators"] if e["compute"] <= 0.1 and e["tau_mean"] >= 0.9 * top]
    best = max((e for e in found["estimators"] if 0 < e["compute"] < 1), key=lambda e: e["tau_mean"], default=None)
    text = f"The aim of a comparison ten times cheaper at no more than a tenth less tau (at least {0.9 * top:.2f}) is "
    text += f"reached by {', '.join(reached)}." if reached else "reached by none."
    if found["ceiling_ci"][0] is not None and found["ceiling_ci"][0] <= 0:
        text += " The interval of the ceiling includes 0: what is below or above it says little here."
    if best is None or best["tau_mean"] <= 0:
        return text
    return (
        f"{text} Of what trains with less compute than a run from scratch of each, {best['name']} ranks best: tau "
        f"{best['tau_mean']:.2f}, {best['tau_mean'] / top:.0%} of the ceiling, at {best['compute']:.2f} of the compute "
        f"and {best['seconds']:.2f} of the seconds."
    )


def _drift(study: Study) -> str:
    def mean(policy: str, which: str) -> float:
        values = [row[which] for row in study.drift if row["policy"] == policy]
        return sum(values) / len(values) if values else math.nan

    seeds = len({row["seed"] for row in study.drift})
    stock = mean("torch", "inactive") / (mean("torch", "active") or math.nan)
    return (
        f"Movement of weights in a step, first epoch of the supernet ({seeds} seeds), of entries that the sampled path "
        f"does not use: frozen {mean('frozen', 'inactive'):.1g}; zeroed gradients under stock momentum and decay "
        f"{mean('torch', 'inactive'):.2g}, which is {stock:.0%} of what entries in use move."
    )
