"""What docs/results.md says of several studies at once, against sums over the raw rows."""

from collections import defaultdict

from conftest import ROOT, rows
from scipy.stats import kendalltau

PAGE = " ".join((ROOT / "docs" / "results.md").read_text().split())
MNIST = ("mil4_mnist", "mil4_mnist_long", "mil4_nested_mnist", "mil9_mnist", "mil9_mnist_long")


def by_seed(study, kind, key):
    """{seed: {network: value}}"""
    found = defaultdict(dict)
    for row in rows(ROOT / "results" / study / "rows.jsonl"):
        if row["kind"] == kind:
            found[row["seed"]][row["arch"]] = row[key]
    return found


def gains(study):
    """By how many points the pick of each supernet is better than a random one."""
    runs = by_seed(study, "scratch", "test_top1").values()
    truth = {arch: 100 * sum(run[arch] for run in runs) / len(runs) for arch in next(iter(runs))}
    mean, found = sum(truth.values()) / len(truth), []
    for scores in by_seed(study, "supernet", "val_top1").values():
        picks = [arch for arch in scores if scores[arch] == max(scores.values())]
        found.append(sum(truth[arch] for arch in picks) / len(picks) - mean)
    return found


def test_how_often_a_pick_beats_a_random_one():
    mean = [sum(gains(study)) / 10 for study in MNIST[:2]]
    assert "loses {:.3f} and {:.3f} points less than a random one on average".format(*mean) in PAGE
    better = {
        study: (sum(gain > 1e-9 for gain in found), len(found))
        for study in (*MNIST, "mil4_fashion")
        for found in [gains(study)]
    }
    assert better["mil4_mnist"] == better["mil4_mnist_long"]
    assert better["mil9_mnist"] == better["mil9_mnist_long"] == (3, 3)
    assert "less in {} of {} supernets each".format(*better["mil4_mnist"]) in PAGE
    assert "it does in {} of {} in `mil4_nested".format(*better["mil4_nested_mnist"]) in PAGE
    assert better["mil4_fashion"] == (5, 5)
    assert "in all 5 on Fashion-MNIST and in all 3 of `mil9`" in PAGE


def test_how_few_errors_validation_has():
    errors = []
    for study in MNIST:
        for kind in ("supernet", "scratch"):
            runs = by_seed(study, kind, "val_top1").values()
            shares = [value for run in runs for value in run.values()]
            errors.append(5_000 * (1 - sum(shares) / len(shares)))
    assert f"(on average {min(errors):.0f} to {max(errors):.0f} of the 5,000 validation" in PAGE


def test_ceilings_by_loss_and_by_top1():
    def ceiling(study, key):
        runs, taus = by_seed(study, "scratch", key), []
        for seed, run in runs.items():
            others = [other for another, other in runs.items() if another != seed]
            truth = [round(sum(other[arch] for other in others), 9) for arch in run]
            taus.append(kendalltau(list(run.values()), truth)[0])
        return sum(taus) / len(taus)

    found = {
        key: [f"{ceiling(study, key):.2f}" for study in (*MNIST, "mil4_fashion")]
        for key in ("test_loss", "test_top1")
    }
    loss, top1 = ((min(those), max(those)) for those in found.values())
    said = "the ceilings are {} to {}, where by top-1 they are {} to {}"
    assert said.format(*loss, *top1) in PAGE
