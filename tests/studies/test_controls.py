"""What the page says of controls is what their rows say."""

import json
import re

import numpy as np
import pytest
from conftest import ROOT, rows
from invented import made_up, matrix
from running import ARCHS
from scipy import stats

from benchmarks import control
from mnas.errors import Failure
from mnas.studies.results import Study


def invented(gains, number=6):
    """Rows of controls that are so many points above the runs from scratch of the same seeds."""
    random = np.random.default_rng(0)
    return [
        {"kind": kind, "number": n, "arch": arch, "test_top1": gain / 100 + float(x)}
        for kind, gain in gains.items()
        for n, of_seed in enumerate(random.normal(0.925, 0.002, (number, 4)))
        for arch, x in zip(ARCHS, of_seed, strict=True)
    ]


def study_of(tmp_path, **more):
    made_up(tmp_path / "study", **more)
    study = Study(tmp_path / "study")
    for kind, epochs in (("supernet", 4), ("scratch", 2)):
        study.about["arms"][kind]["epochs"] = epochs
    return study


def test_a_page_compares_what_the_rows_say(tmp_path):
    """Every number by hand; seeds that an arm lacks are left out."""
    study = study_of(tmp_path, supernets=6, scratch=5)
    controls = invented({"supernet-epochs": 2, "trained-head": 0})
    found = control.accuracies(controls, study)
    assert {values.shape for values in found.values()} == {(5, 4)}
    made = [json.loads(line) for line in (study.path / "rows.jsonl").read_text().splitlines()]
    scratch, inherited = (matrix(made, kind, "test_top1") for kind in ("scratch", "supernet"))
    assert np.allclose(found["scratch"], scratch)
    assert np.allclose(found["inherited"], inherited[:5])
    longer = np.array([100 * r["test_top1"] for r in controls if r["kind"] == "supernet-epochs"])
    longer = longer.reshape(6, 4)[:5]
    by = {(one.first, one.second): one for one in control.compared(found)}
    paired = by["supernet-epochs", "scratch"]
    assert np.isclose(paired.points.mean, (longer - scratch).mean())
    ends = stats.ttest_rel(longer.mean(1), scratch.mean(1)).confidence_interval()
    assert np.allclose(paired.points[1:], ends)
    apart = stats.ttest_ind(inherited[:5].mean(1), scratch.mean(1), equal_var=False)
    assert np.allclose(by["inherited", "scratch"].points[1:], apart.confidence_interval())
    assert paired.p >= stats.ttest_rel(longer.mean(1), scratch.mean(1)).pvalue
    text = control.shown(controls, study)
    assert f"| {longer.mean():.3f} [" in text
    assert "| 2, on the head of inherited | 5 " in text
    assert paired.said in text


@pytest.mark.parametrize(
    ("inherited", "longer", "head", "said"),
    [
        (0, 0, 0, "no lead"),
        (1, 1, 0, "supernet-epochs alone gives as much as inherited weights"),
        (1, 0, 1, "trained-head alone gives as much as inherited weights"),
        (1, 1, 1, "supernet-epochs and trained-head alone each give as much"),
        (2, 0, 1, "trained-head alone gives a part"),
        (2, 0, 0, "Neither more epochs nor a trained head"),
    ],
)
def test_words_follow_the_numbers(inherited, longer, head, said):
    random = np.random.default_rng(1)
    gains = {"inherited": inherited, "scratch": 0, "supernet-epochs": longer, "trained-head": head}
    found = {kind: 95 + gain + random.normal(0, 0.05, (10, 4)) for kind, gain in gains.items()}
    assert said in control.answer(control.compared(found))


def test_too_few_seeds_are_a_mistake_in_a_line(tmp_path):
    study = study_of(tmp_path)
    with pytest.raises(Failure, match="share 1 seeds; expected 2 at least"):
        control.shown(invented({kind: 0 for kind in control.KINDS}, number=1), study)


def test_the_page_is_that_of_the_rows():
    file = ROOT / "results" / "control" / "mil4_mnist.jsonl"
    page = (ROOT / "docs" / "results.md").read_text()
    (text,) = re.findall(r"<!-- control -->\n(.*?)\n<!-- end of", page, flags=re.DOTALL)
    if file.exists():
        assert text == control.shown(rows(file), Study(ROOT / "results" / "mil4_mnist"))
    else:
        assert "Not measured yet" in text


def test_the_first_pages_say_what_longer_training_gives():
    longer = [
        row
        for row in rows(ROOT / "results" / "control" / "mil4_mnist.jsonl")
        if row["kind"] == "supernet-epochs"
    ]
    mean = 100 * np.mean([row["test_top1"] for row in longer])
    assert len({row["seed"] for row in longer}) == 10  # as many as the study, which is in the line
    for name, said in (
        ("README.md", f"({mean:.2f} % at four times)"),
        ("README.ru.md", f"({mean:.2f} % при вчетверо больших)".replace(".", ",")),
    ):
        assert said in " ".join((ROOT / name).read_text().split()), name
