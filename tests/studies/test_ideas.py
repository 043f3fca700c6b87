"""The numbers of docs/ideas.md are those of the rows."""

import re

import numpy as np
from conftest import ROOT, rows
from scipy.stats import kendalltau

import mnas
from mnas import reference
from mnas.studies import decomposition
from mnas.studies.results import Study

PAGE = " ".join((ROOT / "docs" / "ideas.md").read_text().split())
SCORED = ROOT / "results" / "ranking" / "nb_macro_fair_6_epochs_16px_seed0"


def tops(study, kind, key="test_top1"):
    """(seeds, networks), in the order of names."""
    found = [row for row in rows(ROOT / "results" / study / "rows.jsonl") if row["kind"] == kind]
    of = {(row["seed"], row["arch"]): row[key] for row in found}
    seeds, archs = sorted({seed for seed, _ in of}), sorted({arch for _, arch in of})
    return np.array([[of[seed, arch] for arch in archs] for seed in seeds])


def parts(top1):
    """Standard deviations of networks and of what is left, two-way without replication; and the
    networks' share of the variance of one seed's scores."""
    n, k = top1.shape
    left = top1 - top1.mean(0) - top1.mean(1, keepdims=True) + top1.mean()
    noise = (left**2).sum() / ((n - 1) * (k - 1))
    networks = top1.mean(0).var(ddof=1) - noise / n
    return networks**0.5, noise**0.5, networks / (networks + noise)


def test_the_decomposition():
    lines = re.findall(r"\| (mil\w+) \|((?: [0-9.]+ \|){6})", PAGE)
    assert len(lines) == 6
    for study, cells in lines:
        supernets, scratch = (100 * tops(study, kind) for kind in ("supernet", "scratch"))
        networks, noise, reliability = parts(supernets)
        truth = scratch.mean(0)
        taus = [kendalltau(scores, truth)[0] for scores in supernets]
        mean = kendalltau(supernets.mean(0), truth)[0]
        found = [f"{x:.3f}" for x in (networks, parts(scratch)[0], noise)]
        found += [f"{x:.2f}" for x in (reliability, np.mean(taus), mean)]
        assert cells.replace("|", "").split() == found, study


def test_ranking_by_loss():
    def tau(study):
        truth, losses = tops(study, "scratch").mean(0), tops(study, "supernet", "test_loss")
        return np.mean([kendalltau(-loss, truth)[0] for loss in losses])

    assert f"mil9_long: tau 0.58 → {tau('mil9_mnist_long'):.2f}" in PAGE
    assert f"loss has tau {abs(tau('mil4_fashion')):.2f} beside 0.27" in PAGE


def test_what_more_runs_of_the_two_in_the_middle_would_cost():
    said = re.search(r"would take ([\d,]+) runs each to tell apart \((\d+) in", PAGE)
    needed = []
    for name in ("mil4_mnist", "mil4_nested_mnist"):
        study = Study(ROOT / "results" / name)
        middle = [study.archs.index(arch) for arch in ("conv3x3-conv5x5", "conv5x5-conv3x3")]
        for a, b, gap, runs in decomposition.pairs(study.arms["scratch"].test):
            if [a, b] == middle:
                needed.append((f"{runs:,}", gap > 0))
    assert [(said[1], True), (said[2], False)] == needed


def test_two_spellings_of_a_network_score_alike():
    space, table = mnas.spaces.get("nb_macro"), reference.get("nb_macro")
    found = {}
    for row in rows(SCORED / "rows.jsonl"):
        number = table.network[table.rows[space.parse(row["arch"])]]
        found.setdefault(number, []).append(np.log(row["val_loss"]))
    several = [np.array(losses) for losses in found.values() if len(losses) > 1]
    squares = sum(((losses - losses.mean()) ** 2).sum() for losses in several)
    within = (squares / sum(len(losses) - 1 for losses in several)) ** 0.5
    between = np.std([np.mean(losses) for losses in found.values()], ddof=1)
    tau = kendalltau([x[0] for x in several], [x[1] for x in several])[0]
    assert f"not* what goes wrong: {len(several)} of the networks" in PAGE
    assert (
        f"differ by {within:.3f} (standard deviation), those of networks by {between:.3f}" in PAGE
    )
    assert f"rank alike with tau {tau:.2f}" in PAGE


def test_what_the_supernet_cost():
    """Forward passes of images; a backward pass is two of them, in either training."""
    full = 50 * 50_000 * mnas.cost(mnas.spaces.get("nb_macro"), (2,) * 8).macs
    paths = rows(SCORED / "rows.jsonl")
    supernet = 6 * 45_000 * sum(row["macs"] for row in paths) / len(paths) / full
    scoring = sum(chunk["macs"] for chunk in rows(SCORED / "chunks.jsonl")) / (3 * full)
    said = re.search(r"is (\S+) of one full training .* scoring 600 paths (\S+)\. So", PAGE)
    assert said.groups() == (f"{supernet:.3f}", f"{scoring:.3f}")
    assert f"| {supernet + scoring:.3f} |" in PAGE


def test_the_russian_page_has_the_same_numbers_in_its_tables():
    def numbers(name, point, thousands):
        tables = re.findall(r"^\|.*\|$", (ROOT / "docs" / name).read_text(), flags=re.MULTILINE)
        text = re.sub(rf"(?<=\d){thousands}(?=\d{{3}}\b)", "", "\n".join(tables))
        return re.findall(r"\d+(?:\.\d+)?", text.replace(point, "."))

    assert numbers("ideas.md", ".", ",") == numbers("ideas.ru.md", ",", " ")
