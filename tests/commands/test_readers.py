"""Readers' test: what a stranger asks of the first page is answered on its first two screens, and
the numbers of these answers are those of the rows."""

import re

from conftest import ROOT, rows
from scipy.stats import kendalltau

from mnas.studies.compared import networks_shown

README = (ROOT / "README.md").read_text()
SCREENS = 100  # lines


def flat(text):
    return " ".join(text.split())


def test_twelve_questions_are_answered_on_two_screens():
    page = (ROOT / "docs" / "readers-test.md").read_text().replace("\\|", "|")
    asked = re.findall(r"^\| ([^|]+\?) \| \"(.+)\" \|$", page, flags=re.MULTILINE)
    assert len(asked) >= 12
    shown = flat("\n".join(README.splitlines()[:SCREENS]))
    assert [question for question, answer in asked if answer not in shown] == []


def of(study, kind):
    """{network: {seed: row}}"""
    found = {}
    for row in rows(ROOT / "results" / study / "rows.jsonl"):
        if row["kind"] == kind:
            found.setdefault(row["arch"], {})[row["seed"]] = row
    return found


def test_short_training_ranks_nine_networks_better_in_less_time():
    long, short = of("mil9_mnist_long", "scratch"), of("mil9_mnist", "scratch")
    seeds = range(1000, 1003)

    def tau(seed):
        """Runs of one seed begin alike: the reference is the others."""
        truth = [sum(r["test_top1"] for s, r in long[a].items() if s != seed) for a in sorted(long)]
        return kendalltau([short[a][seed]["test_top1"] for a in sorted(long)], truth)[0]

    def seconds(runs):
        return sum(row["seconds"] for by_seed in runs.values() for row in by_seed.values())

    said = re.search(r"two\s+epochs from scratch of each network have (\S+) at (\S+):", README)
    assert said.groups() == (
        f"{sum(map(tau, seeds)) / len(seeds):.2f}",
        f"{seconds(short) / seconds(long):.2f}",
    )


ONE = "fair, 6 epochs, 16 px"
ALL = "fair, 6 epochs, 12 px + 16 px + 20 px"
BEST = f"{ALL}, prior 0.15 depth + 0.15 ReLUs"
FILLED = "partly smoothed loss"


def test_thousands_of_networks_as_measured():
    """The page and docs/ranking.md, on the half that nothing was chosen on."""
    folder = ROOT / "results" / "ranking" / "compared"
    assert "(half: reporting)" in (folder / "README.md").read_text()
    scores = {(row["recipe"], row["score"]): row for row in rows(folder / "supernets.jsonl")}
    free = {row["score"]: row for row in rows(folder / "free.jsonl")}
    loss, best = scores[ONE, "loss"], scores[BEST, FILLED]
    ceiling = free.pop("one training (ceiling)")

    def shown(values, digits=2):
        return "{:.{d}f} [{:.{d}f}, {:.{d}f}]".format(*values, d=digits)

    page = flat(README)
    assert f"a supernet's loss has tau {shown(loss['tau'])};" in page
    assert best["worth"][0] is None  # JSON has no infinity
    assert (
        f"with some of depth and ReLUs added, {shown(best['tau'])}, more than a linear model of "
        f"any number of trained networks, and cost {best['total']:.2f} of one"
    ) in page
    without = [max(row[key] for row in free.values()) for key in ("tau", "within")]
    assert f"that costs nothing has {without[0]:.2f}, one training of each" in page
    assert f"of each network {ceiling['tau']:.2f}; at equal depth" in page
    within = best["within"][0], without[1], ceiling["within"]
    assert "counting layers fails: {:.2f}, {:.2f}, {:.2f}.".format(*within) in page
    unseen = {
        (row["recipe"], row["score"]): row
        for row in rows(ROOT / "results" / "ranking" / "compared_unseen" / "supernets.jsonl")
    }
    small = unseen[BEST.replace("12 px + 16 px + 20 px", "12 px"), FILLED]
    numbers = small["tau"][0], small["within"][0], small["total"]
    assert "has {:.2f} and {:.2f} on others, for {:.2f}.".format(*numbers) in page
    # The aim of ten times cheaper:
    assert min(best[key][0] / ceiling[key] for key in ("tau", "within")) > 0.9
    assert best["total"] < 0.1
    assert f"also at equal depth ({best['within'][0]:.2f} of {ceiling['within']:.2f})" in page
    ranking = (ROOT / "docs" / "ranking.md").read_text()
    lines = {f"supernet, {name}": (ONE, name) for name in ("loss", "top-1", FILLED)}
    lines |= {f"three: {FILLED}": (ALL, FILLED), f"three, prior: {FILLED}": (BEST, FILLED)}
    for name, key in lines.items():
        row = scores[key]
        cells = (shown(row["within"], 3), shown(row["equal"]), shown(row["tau"], 3))
        worth = networks_shown([float("inf") if n is None else n for n in row["worth"]])
        line = f"| {name} | {' | '.join(cells)} | {worth} | {row['total']:.2g} |"
        assert line in ranking, line


def test_widths_as_measured():
    """Channel-Bench-Macro, of which nothing was chosen."""
    folder = ROOT / "results" / "ranking" / "compared_channels"
    free = {row["score"]: row["tau"] for row in rows(folder / "free.jsonl")}
    (smooth,) = [r for r in rows(folder / "supernets.jsonl") if r["score"] == "smoothed loss"]
    said = f"one seed) a supernet has {smooth['tau'][0]:.2f}, MACs {free['MACs']:.2f}"
    assert (
        f"(Channel-Bench-Macro, {said}, the logarithms of widths {free['log widths']:.2f}"
        in flat(README)
    )
    assert f"one training of each {free['one training (ceiling)']:.2f}" in flat(README)


def test_the_table_of_drift_is_that_of_the_rows():
    freezing = ROOT / "results" / "freezing"
    hook = {
        row["optimizer"]: row["frozen_rms"] / row["trained_rms"]
        for row in rows(freezing / "drift.jsonl")
        if (row["steps_before"], row["by"]) == (10, "hook")
    }
    shares = {"half of all entries": hook}
    for row in rows(freezing / "peers.jsonl"):
        kit = row["layer"].split(":")[0].split(" ")[0]
        shares.setdefault(kit, {})[row["optimizer"]] = row["unused_rms"] / row["used_rms"]
    assert shares.pop("mnas") == {"SGD": 0, "AdamW": 0}
    assert len(shares) == 4
    for name, share in shares.items():
        cells = f"| {100 * share['SGD']:.0f} % | {100 * share['AdamW']:.0f} % |"
        for page in (README, (ROOT / "README.ru.md").read_text()):
            assert cells in page, name
        assert any(line.startswith(f"| {name}") and cells in line for line in README.splitlines())
