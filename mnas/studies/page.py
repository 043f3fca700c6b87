"""The README of a study: tables and figures from its rows, and what people wrote of them in
reading.md."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from tabulate import tabulate

from mnas.studies import ablations, decomposition, statistics
from mnas.studies.pages import markdown, over, shown
from mnas.studies.results import KINDS

if TYPE_CHECKING:
    from mnas.studies.results import Study, Summary

ALPHA = 0.05
READING = "reading.md"


def headline(study: Study, form: str = "github") -> str:
    supernet, scratch = study.arms["supernet"], study.arms["scratch"]
    body = []
    for i, arch in enumerate(study.archs):
        params, macs = study.costs[arch]
        accuracies = [shown(*statistics.interval(arm.test[:, i])) for arm in (supernet, scratch)]
        gap = scratch.test[:, i].mean() - supernet.test[:, i].mean()
        body.append([arch, *accuracies, f"{gap:+.2f}", f"{params:,}", f"{macs:,}"])
    heads = [
        f"inherited, % (n = {len(supernet.seeds)})",
        f"from scratch, % (n = {len(scratch.seeds)})",
    ]
    headers = ["network", *heads, "scratch − inherited", "parameters", "MACs"]
    return tabulate(body, headers, tablefmt=form, disable_numparse=True)


def ranking(found: Summary, form: str = "github") -> str:
    """How every estimator ranks the networks, at what cost; the first lines are the supernet and
    its ceiling."""
    order = {"supernet": 0, "scratch": 1}
    lines = sorted(found["estimators"], key=lambda line: order.get(line["name"], 2))
    body = [
        [
            line["name"],
            str(line["seeds"]),
            shown(line["tau_mean"], *line["tau_ci"]),
            shown(line["tau_validation_to_test"], *line["tau_validation_to_test_ci"]),
            shown(line["tau_other_images"], *line["tau_other_images_ci"]),
            f"{line['regret_mean']:.3f}",
            f"{line['compute']:.3f}",
            f"{line['seconds']:.2f}",
        ]
        for line in lines
    ]
    headers = [
        "estimator",
        "n",
        "tau",
        "validation → test",
        "tau on other images",
        "regret, points",
        "compute",
        "seconds",
    ]
    return tabulate(body, headers, tablefmt=form, disable_numparse=True)


def by_loss(found: Summary) -> str:
    """How the same runs rank by test loss."""
    body = [
        [
            line["name"],
            shown(line["tau_mean"], *line["tau_ci"]),
            shown(line["tau_by_loss"], *line["tau_by_loss_ci"]),
            shown(line["tau_of_loss"], *line["tau_of_loss_ci"]),
        ]
        for line in found["estimators"]
    ]
    headers = ["estimator", "top-1, of top-1", "loss, of top-1", "loss, of loss"]
    return markdown(body, headers)


def _why(study: Study, found: Summary) -> list[str]:
    """Noise, compression and bias; and the runs that would tell networks apart."""
    if "spread" not in found:
        return []
    inherited, scratch = (found["spread"][name] for name in ("inherited", "scratch"))
    body = [
        [
            label,
            f"{of_kind['networks']:.3f}",
            f"{of_kind['seeds']:.3f}",
            f"{of_kind['reliability']:.2f}",
        ]
        for (_, label), of_kind in zip(KINDS, (inherited, scratch), strict=True)
    ]
    headers = ["weights", "SD of networks, points", "SD over seeds, points"]
    table = markdown(body, [*headers, "reliability of one run"])
    correlation = found["correlation_without_noise"]
    numbers = [["tau of the mean of all supernets", f"{found['tau_of_means']:.2f}"]]
    if correlation is not None:
        numbers.insert(0, ["correlation without seed noise", f"{correlation:.2f}"])
    if scratch["networks"]:
        ratio = f"{inherited['networks'] / scratch['networks']:.2f}"
        numbers.insert(0, ["spread inherited, relative to from scratch", ratio])
    needed = decomposition.pairs(study.arms["scratch"].test)
    if len(study.archs) <= 5:
        lines = [
            [f"{study.archs[a]} − {study.archs[b]}", f"{gap:+.3f}", f"{runs:,}" if runs else "–"]
            for a, b, gap, runs in needed
        ]
        runs = markdown(lines, ["pair, from scratch", "gap, points", "runs of each network"])
    else:
        limits = (3, 10, 100)
        counts = [str(sum(bool(n) and n <= limit for *_, n in needed)) for limit in limits]
        runs = markdown(
            [[*counts, str(len(needed))]],
            [*(f"pairs for {limit} runs" for limit in limits), "of all"],
        )
    return [
        "## Why tau is what it is",
        "Standard deviations of networks are without seed noise (analysis of variance). Sharing "
        "that only compresses differences, or seeds that only add noise, leave the correlation "
        "without seed noise at 1, and averaging supernets cures them; a correlation below 1 is a "
        "bias, which averaging does not cure. Of few networks all of this is rough, and the "
        "correlation may exceed 1.",
        table,
        markdown(numbers, ["", ""]),
        "Runs of each network from scratch that would tell a pair apart with probability 0.8 "
        "(Welch's test at 0.05, no correction for several pairs), if the measured gap is the true "
        "one.",
        runs,
    ]


def page(study: Study, found: Summary, figures: list[str]) -> str:
    """README.md of the study. figures: the names of those that were drawn."""
    about = study.about
    machine = about["environment"]
    parts = [
        f"# {study.title}: what weight sharing predicts",
        f"Trained by `python {_command(study)}`; this page, `summary.json` and the figures are "
        f"made from `rows.jsonl` and the files beside it by `python tools/report.py {study.path}`. "
        f"{machine['processor'] or 'Unknown processor'}, {machine['cores'] or 'unknown number of'} "
        f"cores, torch {machine['torch']}. Settings of every variant are in `study.json`.",
        "Selections use validation; the test set is read once a run. Intervals are 95 % "
        f"{over(found['intervals_of_images'])}; there is none of equal values, of a tau from fewer "
        "than three runs, or of a regret (docs/method.md).",
        _reading(study),
        "## Accuracy",
        headline(study),
        "![test accuracy of every network, inherited and from scratch](accuracy.png)",
        _spread(study),
        "## Which networks differ",
        "Paired t-test over seeds, corrected for all pairs (Holm); different: "
        f"p < {ALPHA}. This is about these {study.about['test_images']:,} test images: other "
        "images may order the networks otherwise (last line under the ranking).",
        *_differences(study),
        "## Ranking",
        "tau: Kendall's tau-b with the mean from scratch; of `scratch`, one run with the mean of "
        "the others, which is the noise ceiling. Validation → test: scores on validation images, "
        "reference on test images, as a user of a supernet has it. On other images: the mean of "
        "that and of the other way round. Regret: accuracy lost by taking "
        "the network that scores best on validation. Compute: multiply-accumulates of training, "
        "and seconds of a shared machine, relative to one run from scratch of each network.",
        ranking(found),
        _chance(study, found),
        "By loss: the networks are scored by test loss instead of top-1, against the mean accuracy "
        "from scratch and against the mean loss.",
        by_loss(found),
        "![tau of each supernet, and of each seed from scratch](ranking.png)",
        "![inherited against scratch accuracy](scatter.png)",
        "![tau against compute](frontier.png)",
        *_why(study, found),
    ]
    if "curves" in figures:
        parts += [
            "## Over epochs",
            "Means over seeds; the band is one standard deviation over seeds.",
            "![validation error of every network over epochs](curves.png)",
            _peaks(study),
        ]
    parts += ablations.paragraphs(study, found)
    if "drift" in figures:
        parts += ["## Drift", _drift(study), "![movement of weights in a step](drift.png)"]
    if about["failed"]:
        lines = [f"- {failure['run']}: {failure['reason']}" for failure in about["failed"]]
        parts += ["## Runs that failed or were not run", "\n".join(lines)]
    if study.collapsed:
        lines = [
            f"- {name} {r['arch']} seed {r['seed']}: {100 * r['test_top1']:.2f} %"
            for name, r in study.collapsed
        ]
        rule = (
            "Less than half of the median accuracy of their variant; they count in every table "
            "and figure."
        )
        parts += ["## Networks that collapsed", rule, "\n".join(lines)]
    if study.left_out:
        lines = [f"- {name} seed {seed}" for name, seed in study.left_out]
        parts += [
            "## Seeds that lack a network",
            "In the rows, not in tables and rankings.",
            "\n".join(lines),
        ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _command(study: Study) -> str:
    about = study.about
    words = [
        f"tools/study.py --space {about['space']} --dataset {about['dataset']} --recipe "
        f"{about['recipe']}"
    ]
    words.append(f"--seeds {about['seeds']}{' --variants' if about['variants'] else ''}")
    words += [
        f"--limit-{name} {n}"
        for name in ("train", "test")
        if (n := about[f"limit_{name}"]) is not None
    ]
    if about.get("epochs"):
        words.append(f"--epochs {about['epochs']}")
    if about.get("rules"):
        words.append(f"--rules {' '.join(about['rules'])}")
    if about.get("truth"):
        words.append(f"--truth {about['truth']}")
    if about["drawn"]:
        words.append(f"--networks {about['networks']} --seed {about['seed']}")
    return " ".join([*words, f"--out {study.path}"])


def _reading(study: Study) -> str:
    """What people wrote of the study; `mnas report --check` compares its numbers with the rows."""
    file = study.path / READING
    return file.read_text().strip() if file.exists() else ""


def _spread(study: Study) -> str:
    """What seeds and the finite test set do to one accuracy, beside what there is to rank."""
    body = []
    for kind, label in KINDS:
        test = study.arms[kind].test
        share = test.mean() / 100
        images = 100 * math.sqrt(share * (1 - share) / study.about["test_images"])
        seeds = f"{test.std(0, ddof=1).mean():.3f}" if len(test) > 1 else "–"
        means = test.mean(0)
        body.append(
            [
                label,
                f"{test.mean():.2f}",
                f"{means.max() - means.min():.3f}",
                seeds,
                f"{images:.2f}",
            ]
        )
    headers = ["weights", "mean, %", "range of networks, points", "standard deviation over seeds"]
    return markdown(body, [*headers, f"standard error of {study.about['test_images']:,} images"])


def _differences(study: Study) -> list[str]:
    body, counts = [], []
    for name, label in KINDS:
        arm = study.arms[name]
        if len(arm.seeds) < 2:
            counts.append([label, "–", "one seed"])
            continue
        found = statistics.differences(arm.test)
        counts.append([label, str(sum(d.p < ALPHA for d in found)), str(len(found))])
        for d in found:
            # Too many pairs to read: those that differ.
            if len(study.archs) <= 5 or d.p < ALPHA:
                pair = f"{study.archs[d.a]} − {study.archs[d.b]}"
                interval = shown(d.mean, d.low, d.high, 3)
                body.append([label, pair, interval, f"{d.p:.3f}", "yes" if d.p < ALPHA else ""])
    table = (
        markdown(body, ["weights", "pair", "difference, points", "p (Holm)", "different"])
        if body
        else ""
    )
    return [markdown(counts, ["weights", "different pairs", "of"]), table]


def _chance(study: Study, found: Summary) -> str:
    """What stands beside every tau and regret."""
    n = len(study.archs)
    body = [
        ["networks, pairs", f"{n}, {n * (n - 1) // 2}"],
        ["probability that a random order is fully right", f"{1 / math.factorial(n):.2g}"],
        ["regret of a random pick, points", f"{found['regret_of_chance']:.3f}"],
        [
            "tau between the means from scratch on test and on validation images",
            f"{found['tau_of_truths']:.2f}",
        ],
    ]
    return markdown(body, ["", ""])


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
    return markdown(
        body,
        [
            "network",
            "best epoch (mean over supernets)",
            "validation then, %",
            f"at epoch {last}, %",
        ],
    )


def _drift(study: Study) -> str:
    def mean(policy: str, which: str) -> float:
        values = [row[which] for row in study.drift if row["policy"] == policy]
        return sum(values) / len(values) if values else math.nan

    seeds = len({row["seed"] for row in study.drift})
    body: list[list[Any]] = []
    for policy, label in (("frozen", "frozen"), ("torch", "zeroed gradients, stock optimizer")):
        inactive, active = mean(policy, "inactive"), mean(policy, "active")
        body.append(
            [label, f"{inactive:.2g}", f"{active:.2g}", f"{inactive / (active or math.nan):.0%}"]
        )
    headers = ["inactive entries", "their movement", "movement of active entries", "ratio"]
    return (
        f"Mean movement of a weight in a step, first epoch, {seeds} "
        f"supernets.\n\n{markdown(body, headers)}"
    )
