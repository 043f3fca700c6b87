"""What a step of a rule costs, in studies and on the page, is what was measured."""

import statistics

from conftest import ROOT, rows

from benchmarks.page import ratios
from mnas.studies import plans
from mnas.training.registry import RULES


def test_costs_of_steps_are_those_that_were_measured():
    measured = rows(ROOT / "results" / "benchmarks" / "rules.jsonl")
    page = (ROOT / "docs" / "training-rules.md").read_text().split("## Rules at equal")[0]
    lines = {line.split("|")[1].strip(" `"): line for line in page.splitlines() if "|" in line}
    medians = {}
    for space, costs in plans.STEP_COSTS.items():
        here = [row for row in measured if (row["space"], row["sides"]) == (space, "rules")]
        medians[space] = {
            by: round(statistics.median(ratios(here, by, "single_path")), 2)
            for by in {row["by"] for row in here}
        }
        assert costs == {by: medians[space][by] for by in costs}
        assert {"fair", "sandwich", "path_dropout", "ranked", "dynamic"} == costs.keys()
    for rule in RULES.keys() - {"single_path"}:
        said = f"mil4 {medians['mil4'][rule]:.2f}, mil9 {medians['mil9'][rule]:.2f}"
        assert said in lines[rule], (rule, said)
