"""Estimators of a study by hand: from validation to test, by loss, and shorter training."""

import json

import numpy as np
import pytest
from invented import made_up, matrix, put
from running import in_process
from scipy import stats

from mnas.commands import report
from mnas.studies.results import Study, summary


def tau(a, b):
    return stats.kendalltau(a, b).statistic


def study(path, losses, **epochs):
    """Invented rows with losses that differ, trained for so many epochs."""
    found = made_up(path, supernets=4, scratch=4, seed=losses)
    random = np.random.default_rng(losses)
    for row in found:
        row["test_loss"] = round(0.5 - row["test_top1"] / 3 + random.normal(0, 0.004), 6)
    put(path / "rows.jsonl", "".join(json.dumps(row) + "\n" for row in found))
    about = json.loads((path / "study.json").read_text())
    for arm, number in epochs.items():
        about["arms"][arm]["epochs"] = number
    put(path / "study.json", json.dumps(about))
    return found


def test_scores_on_validation_and_by_loss_are_those_of_the_rows(tmp_path):
    found = study(tmp_path / "s", 1)
    named = {e["name"]: e for e in summary(Study(tmp_path / "s"))["estimators"]}
    arms = {
        kind: {key: matrix(found, kind, key) for key in ("test_top1", "val_top1", "test_loss")}
        for kind in ("supernet", "scratch")
    }
    supernet, scratch = arms["supernet"], arms["scratch"]
    truth, loss = scratch["test_top1"].mean(0), scratch["test_loss"].mean(0)
    for key, expected in {
        "tau_validation_to_test": [tau(run, truth) for run in supernet["val_top1"]],
        "tau_by_loss": [tau(-run, truth) for run in supernet["test_loss"]],
        "tau_of_loss": [tau(run, loss) for run in supernet["test_loss"]],
    }.items():
        assert named["supernet"][key] == pytest.approx(np.mean(expected)), key
    expected = [
        tau(-scratch["test_loss"][i], np.delete(scratch["test_top1"], i, 0).mean(0))
        for i in range(4)
    ]
    assert named["scratch"]["tau_by_loss"] == pytest.approx(np.mean(expected))


def test_shorter_training_is_an_estimator_of_the_longer(tmp_path):
    """Its runs from scratch leave the run of the same seed out of the truth; the same supernet is
    not shown twice."""
    short = study(tmp_path / "short", 1, scratch=1, supernet=4)
    long = study(tmp_path / "long", 2, scratch=4, supernet=4)
    for row in long:
        row["images"] *= 4 if row["kind"] == "scratch" else 1
    put(tmp_path / "long" / "rows.jsonl", "".join(json.dumps(row) + "\n" for row in long))
    (tmp_path / "long" / "shorter.toml").write_text('studies = ["../short"]')
    named = {e["name"]: e for e in summary(Study(tmp_path / "long"))["estimators"]}
    assert {name for name in named if " of " in name} == {"scratch of short"}
    runs, truth = (matrix(rows, "scratch", "test_top1") for rows in (short, long))
    val = matrix(short, "scratch", "val_top1")
    others = [np.delete(truth, i, 0).mean(0) for i in range(4)]
    line = named["scratch of short"]
    assert line["tau_mean"] == pytest.approx(np.mean(list(map(tau, runs, others))))
    assert line["tau_validation_to_test"] == pytest.approx(np.mean(list(map(tau, val, others))))
    lost = [one.max() - one[run.argmax()] for run, one in zip(val, others, strict=True)]
    assert line["regret_mean"] == pytest.approx(np.mean(lost))
    assert (line["compute"], line["seconds"]) == (pytest.approx(0.25), pytest.approx(1))
    report.write(tmp_path / "long")
    assert "| scratch of short" in (tmp_path / "long" / "README.md").read_text()


@pytest.mark.parametrize("content", ["studies = [", "x = 1", 'studies = ["../none"]', "studies=3"])
def test_a_list_of_shorter_studies_that_is_none_is_one_line(content, tmp_path, monkeypatch, capsys):
    made_up(tmp_path / "s")
    (tmp_path / "s" / "shorter.toml").write_text(content)
    status, _, error = in_process(monkeypatch, capsys, "report", tmp_path / "s")
    assert (status, error.count("\n")) == (2, 1)
    assert str(tmp_path) in error


def test_a_study_of_other_data_is_no_estimator(tmp_path, monkeypatch, capsys):
    for name in ("s", "other"):
        made_up(tmp_path / name)
    about = json.loads((tmp_path / "other" / "study.json").read_text())
    put(tmp_path / "other" / "study.json", json.dumps({**about, "dataset": "kmnist"}))
    (tmp_path / "s" / "shorter.toml").write_text('studies = ["../other"]')
    status, _, error = in_process(monkeypatch, capsys, "report", tmp_path / "s")
    assert (status, error.count("\n")) == (2, 1)
    assert "other networks or data" in error
