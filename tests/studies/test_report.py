"""tools/report.py: every number comes from the rows; by hand, from invented ones."""

import json
import re

import numpy as np
import pytest
from conftest import rows
from invented import made_up, matrix, numbers_of, put
from running import ARCHS, in_process
from scipy import stats

from mnas.commands import report
from mnas.errors import Failure
from mnas.studies import statistics
from mnas.studies.pages import shown
from mnas.studies.results import Study, study_folder, summary


def test_a_report_leaves_nothing_of_an_earlier_one(tmp_path):
    made_up(tmp_path / "s", variants=("supernet-fair",))
    report.write(tmp_path / "s")
    assert (tmp_path / "s" / "samplers.png").exists()
    study_folder(tmp_path / "s").write({}, remove=["variants.jsonl"])
    report.write(tmp_path / "s")
    assert not (tmp_path / "s" / "samplers.png").exists()
    assert "samplers" not in (tmp_path / "s" / "README.md").read_text()


@pytest.mark.parametrize("damage", ["{}", "[1]", "cut"])
@pytest.mark.parametrize("name", ["rows.jsonl", "study.json"])
@pytest.mark.parametrize("listed", [False, True])  # True: by somebody who has made the manifest fit
def test_damaged_rows_are_one_line_and_status_2(
    listed, name, damage, tmp_path, monkeypatch, capsys
):
    made_up(tmp_path / "s")
    file = tmp_path / "s" / name
    content = file.read_text()[:-9] if damage == "cut" else damage
    put(file, content) if listed else file.write_text(content)
    status, _, error = in_process(monkeypatch, capsys, "report", tmp_path / "s")
    assert (status, error.count("\n")) == (2, 1)
    assert str(tmp_path / "s") in error


def test_the_summary_is_computed_from_the_rows(tmp_path):
    found = made_up(tmp_path / "s")
    for row in found:  # the two sets of images disagree about two networks
        row["val_top1"] += {ARCHS[0]: 0.05, ARCHS[2]: -0.05}.get(row["arch"], 0)
    put(tmp_path / "s" / "rows.jsonl", "".join(json.dumps(row) + "\n" for row in found))
    report.write(tmp_path / "s")
    numbers = json.loads((tmp_path / "s" / "summary.json").read_text())
    supernet, scratch = (
        matrix(found, "supernet", "test_top1"),
        matrix(found, "scratch", "test_top1"),
    )
    truth = scratch.mean(0)
    taus = [stats.kendalltau(run, truth).statistic for run in supernet]
    assert numbers["tau_per_seed"] == pytest.approx(taus)
    assert numbers["tau_mean"] == pytest.approx(np.mean(taus))
    assert numbers["tau_ci"][0] <= numbers["tau_mean"] <= numbers["tau_ci"][1]
    others = [
        stats.kendalltau(scratch[i], np.delete(scratch, i, 0).mean(0)).statistic
        for i in range(len(scratch))
    ]
    assert numbers["ceiling_mean"] == pytest.approx(np.mean(others))
    supernet_val, val = matrix(found, "supernet", "val_top1"), matrix(found, "scratch", "val_top1")
    named = {e["name"]: e for e in numbers["estimators"]}
    ways = [stats.kendalltau(run, val.mean(0))[0] for run in supernet]
    ways += [stats.kendalltau(run, truth)[0] for run in supernet_val]
    assert named["supernet"]["tau_other_images"] == pytest.approx(np.mean(ways))
    ways = [
        stats.kendalltau(scratch[i], np.delete(val, i, 0).mean(0)).statistic
        for i in range(len(scratch))
    ]
    ways += [
        stats.kendalltau(val[i], np.delete(scratch, i, 0).mean(0)).statistic
        for i in range(len(scratch))
    ]
    assert named["scratch"]["tau_other_images"] == pytest.approx(np.mean(ways))
    ways = [stats.kendalltau(range(4), of_images)[0] for of_images in (val.mean(0), truth)]
    assert named["multiply-accumulates"]["tau_other_images"] == pytest.approx(np.mean(ways))
    for estimator in named.values():
        low, high = estimator["tau_other_images_ci"]
        if low is not None:  # else it is the same without any run
            assert low <= estimator["tau_other_images"] <= high
    elsewhere = {
        n: shown(e["tau_other_images"], *e["tau_other_images_ci"]) for n, e in named.items()
    }
    assert (
        numbers["tau_of_truths"]
        == pytest.approx(stats.kendalltau(val.mean(0), truth).statistic)
        != 1
    )
    picks = matrix(found, "supernet", "val_top1").argmax(1)
    assert numbers["regret_mean"] == pytest.approx(np.mean(truth.max() - truth[picks]))
    assert numbers["inherited_mean"] == pytest.approx(supernet.mean())
    assert numbers["scratch_mean"] == pytest.approx(truth.mean())
    assert numbers["failed_runs"] == 1
    page = (tmp_path / "s" / "README.md").read_text()
    assert "- scratch x seed 9: loss is nan" in page
    assert f"{truth[3]:.2f} [" in page
    for name in ("supernet", "scratch"):
        assert re.search(rf"^\| {name} .*\| {re.escape(elsewhere[name])} +\|", page, re.MULTILINE)


def test_seeds_that_lack_a_network_are_left_out_of_rankings_and_still_in_the_rows(tmp_path):
    made_up(tmp_path / "s")
    file = tmp_path / "s" / "rows.jsonl"
    put(file, "".join(file.read_text().splitlines(keepends=True)[:-1]))
    report.write(tmp_path / "s")
    numbers = json.loads((tmp_path / "s" / "summary.json").read_text())
    assert (numbers["scratch_seeds"], numbers["seeds_left_out"]) == (4, 1)
    assert "## Seeds that lack a network" in (tmp_path / "s" / "README.md").read_text()
    assert "- scratch seed 1004\n" in (tmp_path / "s" / "README.md").read_text()


def test_estimators_and_variants_are_reported_at_their_cost(tmp_path):
    names = (
        "supernet-fair",
        "scratch-equal-total",
        "supernet-equal-updates",
        "supernet-stock-optimizer",
    )
    names += ("scratch-eighth-of-epochs", "fine-tuned")
    made_up(tmp_path / "s", variants=names)
    drift = [
        {
            "policy": p,
            "seed": 0,
            "step": s,
            "active": 2e-3,
            "inactive": 0.0 if p == "frozen" else 1e-3,
        }
        for p in ("frozen", "torch")
        for s in (10, 20)
    ]
    put(tmp_path / "s" / "drift.jsonl", "".join(json.dumps(row) + "\n" for row in drift))
    report.write(tmp_path / "s")
    found = {
        e["name"]: e
        for e in json.loads((tmp_path / "s" / "summary.json").read_text())["estimators"]
    }
    assert set(found) == {"parameters", "multiply-accumulates", "supernet", "scratch", *names}
    assert found["scratch"]["compute"] == 1
    assert found["supernet"]["compute"] == pytest.approx(
        0.25
    )  # one network a step, as many steps as one run
    assert found["fine-tuned"]["compute"] == pytest.approx(1.25)  # and what it begins with
    assert found["fine-tuned"]["seconds"] == pytest.approx(1.25)
    page = (tmp_path / "s" / "README.md").read_text()
    for title in (
        "Equal budgets",
        "Samplers",
        "stock optimizer",
        "Fine-tuning",
        "Drift",
        "Ranking",
    ):
        assert title in page
    assert re.search(r"zeroed gradients, stock optimizer +\| [\d.e-]+ +\| [\d.e-]+ +\| 50%", page)
    gap = numbers_of(tmp_path / "s", "fine-tuned") - numbers_of(tmp_path / "s", "supernet")
    (line,) = re.findall(r"^\| fine-tuned − supernet +\| (.*?) +\| (.*?) +\|", page, re.MULTILINE)
    assert line == ("seed by seed, n = 6", shown(*statistics.interval(gap), 3))
    for name in ("frontier", "drift", "budgets", "samplers", "optimizers", "fine-tuning"):
        assert f"({name}.png)" in page
        assert (tmp_path / "s" / f"{name}.png").stat().st_size > 5_000


def test_the_regret_of_one_run_from_scratch_leaves_that_run_out(tmp_path):
    made_up(tmp_path / "s")
    all_rows = rows(tmp_path / "s" / "rows.jsonl")
    for row in all_rows:  # two runs pick the worst network
        if row["kind"] == "scratch" and row["seed"] < 1002 and row["arch"] == ARCHS[0]:
            row["val_top1"] = 0.999
    put(tmp_path / "s" / "rows.jsonl", "".join(json.dumps(row) + "\n" for row in all_rows))
    found = {e["name"]: e for e in summary(Study(tmp_path / "s"))["estimators"]}
    of_scratch = [row for row in all_rows if row["kind"] == "scratch"]
    test, val = (matrix(of_scratch, "scratch", key) for key in ("test_top1", "val_top1"))
    others = [np.delete(test, i, 0).mean(0) for i in range(len(test))]
    lost = [truth.max() - truth[pick] for truth, pick in zip(others, val.argmax(1), strict=True)]
    assert found["scratch"]["regret_mean"] == pytest.approx(np.mean(lost))
    assert found["parameters"]["tau_mean"] == -1
    assert found["parameters"]["tau_ci"] == [None, None]  # the same without any run of the truth
    assert found["multiply-accumulates"]["tau_mean"] == 1


def test_collapsed_networks_are_named_and_counted(tmp_path):
    made_up(tmp_path / "s")
    report.write(tmp_path / "s")
    assert "## Networks that collapsed" not in (tmp_path / "s" / "README.md").read_text()
    file = tmp_path / "s" / "rows.jsonl"
    *others, last = file.read_text().splitlines()
    put(file, "\n".join([*others, json.dumps({**json.loads(last), "test_top1": 0.1})]) + "\n")
    report.write(tmp_path / "s")
    assert (
        f"- scratch {ARCHS[3]} seed 1004: 10.00 %\n" in (tmp_path / "s" / "README.md").read_text()
    )
    numbers = json.loads((tmp_path / "s" / "summary.json").read_text())
    assert (numbers["collapsed_networks"], numbers["scratch_seeds"]) == (1, 5)


def test_rows_that_are_missing_or_unlisted_are_noticed(tmp_path):
    made_up(tmp_path / "s", variants=("supernet-fair",))
    file = tmp_path / "s" / "variants.jsonl"
    content = file.read_text()
    file.unlink()
    with pytest.raises(Failure, match=r"variants\.jsonl"):
        Study(tmp_path / "s")
    file.write_text(content)
    study_folder(tmp_path / "s").write({}, remove=["variants.jsonl"])
    file.write_text(content)
    with pytest.raises(Failure, match=r"variants\.jsonl"):
        Study(tmp_path / "s")
    file.unlink()
    assert "supernet-fair" not in Study(tmp_path / "s").arms
