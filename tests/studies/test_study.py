"""tools/study.py: what is trained, that it resumes, and that nothing is counted that does not
belong."""

import json
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import processes
import pytest
import torch
from conftest import ROOT, rows
from invented import numbers_of
from processes import LOADED, tool
from running import ARCHS, in_process

import mnas
from mnas.commands import study
from mnas.errors import Failure
from mnas.storage import bits
from mnas.studies import drift, plans
from mnas.training import data, inherited, one_run, run_directory, runtime, sweep
from mnas.training.registry import RULES
from mnas.training.saved import open_run

SHORT = ("--limit-train", 400, "--limit-test", 200, "--threads", 1, "--jobs", 1)
FIELDS = {
    "kind",
    "seed",
    "arch",
    "val_top1",
    "test_top1",
    "test_loss",
    "correct",
    "commit",
    "dirty",
    "started",
    "threads",
    "params",
    "macs",
    "steps",
    "seconds",
    "images",
}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A real study of one seed, as short as one can be."""
    folder = tmp_path_factory.mktemp("study")
    out, runs = folder / "out", folder / "runs"
    made = tool("study", *SHORT, "--out", out, "--runs", runs, validation=500)
    assert (made.returncode, made.stderr) == (0, "")
    return out, runs, made.stdout


def test_a_study_writes_its_rows_and_a_report(done):
    out, _, printed = done
    found = rows(out / "rows.jsonl")
    assert all(set(row) == FIELDS for row in found)
    seen = [(row["kind"], row["seed"], row["arch"]) for row in found]
    assert seen == [("supernet", 0, a) for a in ARCHS] + [("scratch", 1000, a) for a in ARCHS]
    assert {row["steps"] for row in found} == {4 * 3, 2 * 3}
    assert all(row["images"] == row["steps"] * 128 for row in found)
    number = json.loads((out / "study.json").read_text())["test_images"]
    for row in found:
        assert bits.unpacked(row["correct"], number).mean() == pytest.approx(row["test_top1"])
        assert (len(row["commit"]), row["threads"]) == (40, 1)
        assert datetime.now(UTC) - datetime.fromisoformat(row["started"]) < timedelta(hours=1)
    numbers = json.loads((out / "summary.json").read_text())
    assert {"tau_mean", "tau_ci", "ceiling_mean", "regret_mean"} <= set(numbers)
    assert (numbers["tau_ci"], numbers["ceiling_mean"]) == ([None, None], None)
    page = (out / "README.md").read_text()
    for name in ("accuracy", "scatter", "ranking", "curves", "frontier"):
        assert f"({name}.png)" in page
        assert (out / f"{name}.png").stat().st_size > 5_000
    assert all(arch in printed for arch in ARCHS)
    assert "report: " in printed
    assert "nan" not in page
    assert "inherited, % (n = 1)" in page


def test_finished_runs_are_kept_failed_ones_are_shown_and_tried_again(done, tmp_path):
    out, runs = tmp_path / "out", tmp_path / "runs"
    shutil.copytree(done[0], out)
    shutil.copytree(done[1], runs)
    broken = runs / "scratch" / f"{ARCHS[1]}-seed1000"
    (broken / "summary.json").unlink()
    whole = (broken / "checkpoint.pt").read_bytes()
    (broken / "checkpoint.pt").write_bytes(whole[:-100])
    before = (runs / "supernet" / "seed0" / "summary.json").stat().st_mtime_ns
    made = tool("study", *SHORT, "--out", out, "--runs", runs, validation=500)
    assert made.returncode == 1
    assert made.stderr.count("\n") == 1
    assert f"1 of 5 runs failed (scratch {ARCHS[1]} seed 1000: " in made.stderr
    assert "continue with the same command" in made.stderr
    assert "Traceback" not in made.stderr
    assert len(rows(out / "rows.jsonl")) == 7
    assert (
        json.loads((out / "study.json").read_text())["failed"][0]["run"]
        == f"scratch {ARCHS[1]} seed 1000"
    )
    (broken / "checkpoint.pt").write_bytes(whole)
    made = tool("study", *SHORT, "--out", out, "--runs", runs, validation=500)
    assert (made.returncode, made.stderr) == (0, "")
    keep = [{k: v for k, v in row.items() if k != "seconds"} for row in rows(out / "rows.jsonl")]
    assert keep == [
        {k: v for k, v in row.items() if k != "seconds"} for row in rows(done[0] / "rows.jsonl")
    ]
    assert (runs / "supernet" / "seed0" / "summary.json").stat().st_mtime_ns == before


def test_a_network_starts_with_the_weights_of_a_finished_supernet(
    done, tmp_path, monkeypatch, capsys
):
    supernet = tmp_path / "supernet"
    shutil.copytree(done[1] / "supernet" / "seed0", supernet)
    given = (
        "--mode",
        "scratch",
        "--arch",
        ARCHS[1],
        "--start",
        supernet,
        "--lr",
        1e-9,
        "--epochs",
        1,
    )
    limits = ("--limit-train", 400, "--limit-test", 200, "--threads", 1, "--out", tmp_path / "run")
    (supernet / "summary.json").rename(tmp_path / "kept")
    status, _, error = in_process(monkeypatch, capsys, "train", *given, *limits)
    assert (status, error.count("\n")) == (2, 1)
    assert (
        f"--start {supernet} is not finished; continue it with --resume --out {supernet} first"
        in error
    )
    (tmp_path / "kept").rename(supernet / "summary.json")
    assert in_process(monkeypatch, capsys, "train", *given, *limits)[0] == 0
    weights = open_run(tmp_path / "run").weights[ARCHS[1]]
    expected = inherited.exported(supernet, "mil4", ARCHS[1])
    assert weights.keys() == expected.keys()
    assert all(torch.allclose(weights[name], expected[name], atol=1e-6) for name in expected)


def test_drift_is_measured_once(done, tmp_path, monkeypatch):
    config = json.loads((done[1] / "supernet" / "seed0" / "config.json").read_text())
    config.pop("environment")
    monkeypatch.setattr(data, "load", processes.remembering(100))
    one_run._load.cache_clear()
    loaded = one_run.load(config, tmp_path)
    monkeypatch.setattr(runtime, "configure_runtime", lambda *_: None)
    monkeypatch.setattr(drift, "EVERY", 1)
    rows = drift.kept(tmp_path / "drift.json", config, loaded, 1)
    assert [(row["policy"], row["step"]) for row in rows] == [
        (p, s) for p in drift.POLICIES for s in (1, 2, 3)
    ]
    frozen, stock = (
        [row["inactive"] for row in rows if row["policy"] == policy] for policy in drift.POLICIES
    )
    assert frozen == [0, 0, 0]
    assert any(stock)
    monkeypatch.setattr(drift, "measure", lambda *_: ["anew"])
    assert drift.kept(tmp_path / "drift.json", config, loaded, 1) == rows
    assert drift.kept(tmp_path / "drift.json", {**config, "lr": 0.01}, loaded, 1) == ["anew"]


def test_images_of_a_run_smaller_than_a_batch_are_counted_as_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr(run_directory.RunDirectory, "provenance", lambda _: {})
    config = {"batch_size": 128, "limit_train": 7, "seed": 0}
    plan, path = study.Plan("fine-tuned", "scratch", config), {"arch": ARCHS[0], "test_top1": 0.5}
    run, outcome = one_run.Run(tmp_path, config, "a"), {"steps": 4, "train_seconds": 1.0}
    outcome["paths"] = [path]
    files, failed = study.collected({plan: [run]}, {run.path: outcome}, 100)
    assert (files["variants"][0]["images"], failed) == (28, [])
    outcome.pop("steps")
    with pytest.raises(Failure, match=r"is damaged \(KeyError\('steps'\)\); remove it"):
        study.collected({plan: [run]}, {run.path: outcome}, 100)


def test_after_a_signal_nothing_more_is_measured(tmp_path, monkeypatch, capsys):
    def stopped(runs, *_, **__):
        return [Failure("stopped before it began", status=143)] * len(runs)

    monkeypatch.setattr(sweep, "train", stopped)
    monkeypatch.setattr(drift, "kept", lambda *_: pytest.fail("drift was measured"))
    status, _, error = in_process(
        monkeypatch,
        capsys,
        "study",
        "--variants",
        "--out",
        tmp_path / "out",
        "--runs",
        tmp_path / "runs",
    )
    assert (status, error.count("\n")) == (143, 1)
    assert "stopped with 0 of 20 runs finished" in error
    assert (
        len(json.loads((tmp_path / "out" / "study.json").read_text())["failed"]) == 24
    )  # fine-tuning never began


def test_fine_tuning_is_as_long_as_what_it_is_compared_with():
    arms = {
        arm.name: arm.config
        for arm in study.arms(study.Options(variants=True, recipe="long"), 55_000, 4, 1)
    }
    assert arms["fine-tuned"]["epochs"] == arms["scratch-eighth-of-epochs"]["epochs"] == 10 / 8


def test_variants_are_planned_as_the_method_says():
    options = study.Options(variants=True, seeds=2)
    arms = {arm.name: arm for arm in study.arms(options, 55_000, 4, 1)}
    total = {name: arm.config["epochs"] for name, arm in arms.items()}
    assert total["scratch-equal-total"] * 4 == total["supernet"]
    assert total["supernet-equal-updates"] == total["scratch"] * 4
    assert total["scratch-eighth-of-epochs"] * 8 == total["scratch"] == total["fine-tuned"] * 8
    assert arms["scratch-eighth-of-data"].config["limit_train"] == 55_000 // 8
    same = {k: v for k, v in arms["supernet"].config.items() if k != "policy"}
    assert same == {
        k: v for k, v in arms["supernet-stock-optimizer"].config.items() if k != "policy"
    }
    assert arms["supernet-stock-optimizer"].config["policy"] == "torch"
    tuned = arms["fine-tuned"].runs(Path("r"), ARCHS, 2)
    assert [run.config["start"] for run in tuned] == ["r/supernet/seed0"] * 4 + [
        "r/supernet/seed1"
    ] * 4
    page = (ROOT / "docs" / "method.md").read_text()
    assert all(f"`{name}`" in page for name in arms if name not in ("scratch-eighth-of-data",))


def test_rules_have_as_many_single_path_steps_as_the_supernet():
    options = study.Options(space="mil9", seeds=2)
    costs = plans.step_costs(["single_path", "fair=3", "sandwich=3.2"], mnas.spaces.mil9())
    assert costs == {"single_path": 1, "fair": 3, "sandwich": 3.2}
    supernet, _, fair, sandwich = study.arms(options, 55_000, 9, 1, costs)
    assert (fair.name, sandwich.name) == ("rule-fair", "rule-sandwich")
    for arm in (fair, sandwich):
        assert arm.config["epochs"] * arm.step_cost == pytest.approx(15)
        assert arm.about["step_cost"] == arm.step_cost
        changed = {k for k, v in arm.config.items() if supernet.config.get(k) != v}
        assert changed == {"rule", "epochs", *RULES[arm.config["rule"]].options}
    short = study.Options(rules=("fair",), epochs=0.5, truth=Path("t"))
    supernet, fair = study.arms(short, 55_000, 4, 1, {"fair": 2.0})
    assert (supernet.config["epochs"], fair.config["epochs"]) == (0.5, 0.25)
    assert (supernet.config["sampler"], fair.config["sampler"]) == ("uniform", "fair")
    assert "step_cost" not in supernet.about


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["faire"], "--rules faire is unknown; expected some of single_path, fair, sandwich"),
        (["distilled=2"], "--rules distilled=2 is unknown"),
        (["fair=-1"], "--rules fair=-1 has no cost of a step; expected a number above 0"),
        (["fair=nan"], "--rules fair=nan has no cost"),
        (["fair="], "--rules fair= has no cost"),
        (["ranked"], "ranked costs in space plain was not measured; expected --rules ranked=COST"),
    ],
)
def test_rules_without_a_cost_are_refused(words, message):
    with pytest.raises(ValueError, match=message):
        plans.step_costs(words, mnas.spaces.plain(candidates=2))


def test_rules_are_compared_with_the_truth_of_another_study(done, tmp_path):
    """A real study of four rules: steps by what one costs, and a line for each in the report."""
    out, runs = tmp_path / "out", tmp_path / "runs"
    rules = ("single_path", "fair=2", "sandwich=4", "path_dropout=1.5")
    given = ("--rules", *rules, "--epochs", 2, "--truth", done[0], "--seeds", 2, *SHORT)
    made = tool("study", *given, "--out", out, "--runs", runs, validation=500)
    assert (made.returncode, made.stderr) == (0, "")
    found = [row for name in ("rows", "variants") for row in rows(out / f"{name}.jsonl")]
    steps = {row.get("variant", row["kind"]): row["steps"] for row in found}
    assert steps == {
        "supernet": 6,
        "scratch": 6,
        "rule-fair": 3,
        "rule-sandwich": 2,
        "rule-path_dropout": 4,
    }
    truth = [row for row in rows(done[0] / "rows.jsonl") if row["kind"] == "scratch"]
    assert [row for row in found if row["kind"] == "scratch"] == truth
    assert not (runs / "scratch").exists()
    page = (out / "README.md").read_text()
    assert f"--epochs 2.0 --rules {' '.join(rules)} --truth {done[0]} --out" in page
    table = page.split("## Training rules at equal seconds")[1].split("## ")[0]
    lines = [line.split("|") for line in table.splitlines() if line.startswith("| rule-")]
    assert len(lines) == 3 + 3  # an arm, and its difference from a single path
    assert lines[0][1].strip() == "rule-fair"
    of_arm = numbers_of(out, "rule-fair")
    assert lines[0][4].strip().startswith(f"{of_arm.mean():.2f} [")
    summary = json.loads((out / "summary.json").read_text())
    compute = {line["name"]: line["compute"] for line in summary["estimators"]}
    # three steps of two networks, six of one
    assert compute["rule-fair"] == pytest.approx(compute["supernet"])


def test_a_truth_of_something_else_is_refused(done, tmp_path, monkeypatch, capsys):
    for given, message in [
        (("--dataset", "kmnist"), "has --dataset mnist, not kmnist"),
        (SHORT[2:], "has --limit-train 400, not None"),
        ((*SHORT, "--networks", 3), "compares other networks than these 3"),
        ((*SHORT, "--rules", "faire"), "--rules faire is unknown"),
    ]:
        monkeypatch.setattr(runtime, "load_data", lambda *_: LOADED)
        status, _, error = in_process(
            monkeypatch, capsys, "study", "--truth", done[0], *given, "--out", tmp_path / "out"
        )
        assert (status, error.count("\n")) == (2, 1)
        assert message in error
    assert not (tmp_path / "out").exists()


def test_the_long_recipe_of_mil9_has_the_same_supernet_and_a_longer_truth():
    short, long = (
        {
            arm.name: arm.config
            for arm in study.arms(study.Options(space="mil9", recipe=recipe), 55_000, 9, 1)
        }
        for recipe in ("short", "long")
    )
    assert long["supernet"] == short["supernet"]
    assert long["scratch"] == {**short["scratch"], "epochs": 8, "validate_every": 4}


def test_large_spaces_are_sampled():
    from mnas import spaces

    archs = study.networks(spaces.nb_macro(), study.Options(networks=5))
    assert len(set(archs)) == 5
    assert archs == study.networks(spaces.nb_macro(), study.Options(networks=5))
    (run,) = study.arms(study.Options(space="nb_macro"), 100, 5, 1)[0].runs(Path("r"), archs, 1)
    assert run.config["watched"] == archs


BAD = {
    "space": ("study", ["--space", "mil5"], "mil5"),
    "seeds": ("study", ["--seeds", 0], 'Invalid value "0" for --seeds'),
    "dataset": ("study", ["--dataset", "cifar"], "dataset 'cifar' is unknown"),
    "one network": (
        "study",
        ["--networks", 1],
        "1 network is nothing to compare; expected 2 at least",
    ),
    "out": ("study", ["--out", "README.md"], "cannot write to --out README.md: README.md is no"),
    "runs": ("study", ["--runs", "README.md/x"], "cannot write to --runs README.md/x: /"),
    "nothing": ("report", [], "no study is given"),
    "no study": ("report", ["docs"], "docs does not hold study.json"),
    "no page": (
        "report",
        ["results/mil4_mnist", "--headline", "docs"],
        "--headline docs is no file of text",
    ),
    "no marks": (
        "report",
        ["results/mil4_mnist", "--overview", "README.md"],
        "--overview README.md lacks the marks",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_status_2(case, monkeypatch, capsys):
    name, arguments, message = BAD[case]
    monkeypatch.chdir(ROOT)
    status, _, error = in_process(monkeypatch, capsys, name, *arguments)
    assert (status, error.count("\n")) == (2, 1)
    assert message in error


def test_runs_of_other_settings_are_never_counted(done):
    out, runs, _ = done
    before = (out / "rows.jsonl").read_bytes()
    made = tool(
        "study", *SHORT[2:], "--limit-train", 300, "--out", out, "--runs", runs, validation=500
    )
    assert (made.returncode, made.stderr.count("\n")) == (2, 1)
    assert "supernet/seed0 was begun with --limit-train 400, not 300" in made.stderr
    assert (out / "rows.jsonl").read_bytes() == before
