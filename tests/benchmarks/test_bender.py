"""docs/bender2018.md: its table and the numbers in its prose are those of the rows."""

import re

import pytest
from conftest import ROOT, rows

from benchmarks import bender

ROWS = rows(ROOT / "results" / "bender" / "supernets.jsonl")
PAGE = (ROOT / "docs" / "bender2018.md").read_text()
WORDS = " ".join(PAGE.split())


@pytest.fixture(scope="module")
def found():
    return bender.summaries(ROWS, bender.truth())


def test_the_table_is_that_of_the_rows(found):
    (text,) = re.findall(r"<!-- supernets -->\n(.*?)\n<!-- end of", PAGE, flags=re.DOTALL)
    assert text == bender.table(found)
    assert len(ROWS) == 3 * 3 * 9


def test_the_prose_says_what_the_rows_say(found):
    def of(rule, key, digits=0):
        values = [row[key] for row in found if row["rule"] == rule]
        return [f"{value:.{digits}f}" for value in values]

    single = zip(of("single path", "stored", 1), of("single path", "recalibrated", 1), strict=True)
    assert ", ".join(f"{a} → {b}" for a, b in single) in WORDS
    spaces = " ".join((ROOT / "docs" / "spaces.md").read_text().split())
    for arch, pages in (("d1-d1", (WORDS, spaces)), ("d3-d3", (WORDS,))):
        own = [r for r in ROWS if (r["rule"], r["arch"]) == ("single path", arch)]
        before, after = (
            [f"{100 * r[key]:.1f}" for r in own] for key in ("stored_top1", "test_top1")
        )
        one, two, three = (f"{a} → {b}" for a, b in zip(before, after, strict=True))
        assert f"{arch} has {one}, {two} and {three} %" in pages[0].replace("`", "")
        for page in pages[1:]:
            listed = (f"{', '.join(those[:2])} and {those[2]} %" for those in (before, after))
            assert "`d1-d1` has {} where it has {} after recalibration".format(*listed) in page
    low, *_, high = sorted(of("all paths", "recalibrated"))
    assert f"{low} to {high} % on average where single paths give 96 %" in WORDS
    low, *_, high = sorted(of("all paths", "range"))
    assert f"{low} to {high} points with all paths at once" in WORDS
    low, *_, high = sorted(of("path dropout", "recalibrated", 1))
    assert f"{low} to {high} %, range 1.8 to 2.3 points" in WORDS
    taus = [", ".join(of("path dropout", f"tau_{key}", 2)) for key in ("kl", "top1", "loss")]
    said = "reference {} under path dropout, where top-1 has {} and loss, with labels, {} |"
    assert said.format(*taus) in WORDS
    for arch, text in (
        ("d1-d1", "d1-d1 is left with {} to {} %"),
        ("d3-d3", "d3-d3 has {} to {} %"),
    ):
        kept = [r["test_top1"] for r in ROWS if (r["rule"], r["arch"]) == ("all paths", arch)]
        assert text.format(f"{100 * min(kept):.0f}", f"{100 * max(kept):.0f}") in WORDS


def test_spreads_are_those_of_the_studies():
    said = re.findall(r"\| (mil\w+) \| ([0-9.]+) \| ([0-9.]+) \|", PAGE)
    assert len(said) == 7
    for study, *spreads in said:
        means = []
        for kind in ("supernet", "scratch"):
            of = {}
            for row in rows(ROOT / "results" / study / "rows.jsonl"):
                if row["kind"] == kind:
                    of.setdefault(row["arch"], []).append(100 * row["test_top1"])
            values = [sum(those) / len(those) for those in of.values()]
            means.append(f"{max(values) - min(values):.3f}")
        assert spreads == means, study


@pytest.mark.slow
def test_a_supernet_is_measured_as_its_rows_say():
    """Few steps: what is recorded, and that a seed repeats."""
    few = [bender.measure("all paths", 0, train=640, test=200, epochs=1) for _ in range(2)]
    assert few[0] == few[1]
    assert {row["arch"] for row in few[0]} == {row["arch"] for row in ROWS}
    assert all(row["kl_to_all"] > 0 for row in few[0])
