"""tools/study.py and tools/report.py: what is trained, that it resumes, and that every number comes from the rows."""

import json
import re
import shutil

import common
import drift
import figures
import numpy as np
import one_run
import pytest
import report
import study
import study_text
import study_words
import sweep
import torch
from conftest import ROOT, rows, tool
from scipy import stats
from study_rows import Study, summary
from test_tools import ARCHS, in_process

from mnas import ranking

SHORT = ("--limit-train", 400, "--limit-test", 200, "--threads", 1, "--jobs", 1)
FIELDS = {"kind", "seed", "arch", "val_top1", "test_top1", "test_loss", "params", "macs", "steps", "seconds", "images"}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A real study of one seed, as short as one can be."""
    folder = tmp_path_factory.mktemp("study")
    out, runs = folder / "out", folder / "runs"
    made = tool("study", *SHORT, "--out", out, "--runs", runs)
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
    assert "\n1 supernet, 1 run from scratch of each network. Trained by" in page


def test_finished_runs_are_kept_failed_ones_are_shown_and_tried_again(done, tmp_path):
    out, runs = tmp_path / "out", tmp_path / "runs"
    shutil.copytree(done[0], out)
    shutil.copytree(done[1], runs)
    broken = runs / "scratch" / f"{ARCHS[1]}-seed1000"
    (broken / "summary.json").unlink()
    whole = (broken / "checkpoint.pt").read_bytes()
    (broken / "checkpoint.pt").write_bytes(whole[:-100])
    before = (runs / "supernet" / "seed0" / "summary.json").stat().st_mtime_ns
    made = tool("study", *SHORT, "--out", out, "--runs", runs)
    assert made.returncode == 1
    assert made.stderr.count("\n") == 1
    assert f"1 of 5 runs failed (scratch {ARCHS[1]} seed 1000: " in made.stderr
    assert "continue with the same command" in made.stderr
    assert "Traceback" not in made.stderr
    assert len(rows(out / "rows.jsonl")) == 7
    assert json.loads((out / "study.json").read_text())["failed"][0]["run"] == f"scratch {ARCHS[1]} seed 1000"
    (broken / "checkpoint.pt").write_bytes(whole)
    made = tool("study", *SHORT, "--out", out, "--runs", runs)
    assert (made.returncode, made.stderr) == (0, "")
    keep = [{k: v for k, v in row.items() if k != "seconds"} for row in rows(out / "rows.jsonl")]
    assert keep == [{k: v for k, v in row.items() if k != "seconds"} for row in rows(done[0] / "rows.jsonl")]
    assert (runs / "supernet" / "seed0" / "summary.json").stat().st_mtime_ns == before


def test_a_network_starts_with_the_weights_of_a_finished_supernet(done, tmp_path, monkeypatch, capsys):
    supernet = tmp_path / "supernet"
    shutil.copytree(done[1] / "supernet" / "seed0", supernet)
    given = ("--mode", "scratch", "--arch", ARCHS[1], "--start", supernet, "--lr", 1e-9, "--epochs", 1)
    limits = ("--limit-train", 400, "--limit-test", 200, "--threads", 1, "--out", tmp_path / "run")
    (supernet / "summary.json").rename(tmp_path / "kept")
    status, _, error = in_process(monkeypatch, capsys, "train", *given, *limits)
    assert (status, error.count("\n")) == (2, 1)
    assert f"--start {supernet} is not finished; continue it with --resume --out {supernet} first" in error
    (tmp_path / "kept").rename(supernet / "summary.json")
    assert in_process(monkeypatch, capsys, "train", *given, *limits)[0] == 0
    weights = common.open_run(tmp_path / "run").weights[ARCHS[1]]
    expected = one_run.exported(supernet, "mil4", ARCHS[1])
    assert weights.keys() == expected.keys()
    assert all(torch.allclose(weights[name], expected[name], atol=1e-6) for name in expected)


def test_drift_is_measured_once(done, tmp_path, monkeypatch):
    config = json.loads((done[1] / "supernet" / "seed0" / "config.json").read_text())
    config.pop("environment")
    loaded = one_run.load(config, tmp_path)
    monkeypatch.setattr(common, "configure_runtime", lambda *_: None)
    monkeypatch.setattr(drift, "EVERY", 1)
    rows = drift.kept(tmp_path / "drift.json", config, loaded, 1)
    assert [(row["policy"], row["step"]) for row in rows] == [(p, s) for p in drift.POLICIES for s in (1, 2, 3)]
    frozen, stock = ([row["inactive"] for row in rows if row["policy"] == policy] for policy in drift.POLICIES)
    assert frozen == [0, 0, 0]
    assert any(stock)
    monkeypatch.setattr(drift, "measure", lambda *_: ["anew"])
    assert drift.kept(tmp_path / "drift.json", config, loaded, 1) == rows
    assert drift.kept(tmp_path / "drift.json", {**config, "lr": 0.01}, loaded, 1) == ["anew"]


def test_a_report_leaves_nothing_of_an_earlier_one(tmp_path):
    made_up(tmp_path / "s", variants=("supernet-fair",))
    report.write(tmp_path / "s")
    assert (tmp_path / "s" / "samplers.png").exists()
    (tmp_path / "s" / "variants.jsonl").unlink()
    report.write(tmp_path / "s")
    assert not (tmp_path / "s" / "samplers.png").exists()
    assert "samplers" not in (tmp_path / "s" / "README.md").read_text()


@pytest.mark.parametrize("damage", ["{}", "[1]", "cut"])
@pytest.mark.parametrize("name", ["rows.jsonl", "study.json"])
def test_damaged_rows_are_one_line_and_status_2(name, damage, tmp_path, monkeypatch, capsys):
    made_up(tmp_path / "s")
    file = tmp_path / "s" / name
    file.write_text(file.read_text()[:-9] if damage == "cut" else damage)
    status, _, error = in_process(monkeypatch, capsys, "report", tmp_path / "s")
    assert (status, error.count("\n")) == (2, 1)
    assert str(tmp_path / "s") in error


def made_up(path, supernets=6, scratch=5, seed=0, variants=()):
    """A study of invented accuracies: every number of the report can be computed by hand from them."""
    path.mkdir()
    random = np.random.default_rng(seed)
    quality = np.array([0.90, 0.91, 0.93, 0.96])
    arms = {"supernet": ("supernet", supernets), "scratch": ("scratch", scratch)}
    arms |= {name: ("supernet" if "supernet" in name else "scratch", supernets) for name in variants}
    lines = {"rows": [], "variants": []}
    for name, (kind, number) in arms.items():
        for s in range(number):
            s += study.FIRST_SCRATCH_SEED * (kind == "scratch")
            for i, arch in enumerate(ARCHS):
                row = {
                    "kind": kind,
                    "seed": s,
                    "arch": arch,
                    "test_top1": round(quality[i] + random.normal(0, 0.01), 4),
                }
                row |= {"val_top1": round(quality[i] + random.normal(0, 0.01), 4), "test_loss": 0.1, "images": 1000}
                row |= {"params": 10 - i, "macs": 100 + i, "steps": 10, "seconds": 2.0}
                lines["rows" if name == kind else "variants"].append(row if name == kind else {"variant": name, **row})
    for name, found in lines.items():
        if found:
            (path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
    about = {"space": "mil4", "dataset": "mnist", "recipe": "short", "seeds": supernets, "variants": bool(variants)}
    about |= {"failed": [{"run": "scratch x seed 9", "arm": "scratch", "seed": 9, "reason": "loss is nan"}]}
    about |= {"arms": {name: {"sampler": "uniform", "after": None} for name in arms}, "limit_train": None}
    about |= {"limit_test": None, "networks": 16, "seed": 0, "drawn": False, "test_images": 10_000}
    if "fine-tuned" in arms:
        about["arms"]["fine-tuned"]["after"] = "supernet"
    about |= {"environment": {"processor": "p", "cores": 2, "torch": "t"}}
    (path / "study.json").write_text(json.dumps(about))
    return lines["rows"]


def matrix(found, kind, key):
    seeds = sorted({row["seed"] for row in found if row["kind"] == kind})
    at = {(row["kind"], row["seed"], row["arch"]): row[key] for row in found}
    return np.array([[100 * at[kind, s, a] for a in ARCHS] for s in seeds])


def test_the_summary_is_computed_from_the_rows(tmp_path):
    found = made_up(tmp_path / "s")
    report.write(tmp_path / "s")
    numbers = json.loads((tmp_path / "s" / "summary.json").read_text())
    supernet, scratch = matrix(found, "supernet", "test_top1"), matrix(found, "scratch", "test_top1")
    truth = scratch.mean(0)
    taus = [stats.kendalltau(run, truth).statistic for run in supernet]
    assert numbers["tau_per_seed"] == pytest.approx(taus)
    assert numbers["tau_mean"] == pytest.approx(np.mean(taus))
    assert numbers["tau_ci"][0] <= numbers["tau_mean"] <= numbers["tau_ci"][1]
    others = [stats.kendalltau(scratch[i], np.delete(scratch, i, 0).mean(0)).statistic for i in range(len(scratch))]
    assert numbers["ceiling_mean"] == pytest.approx(np.mean(others))
    val = matrix(found, "scratch", "val_top1")
    elsewhere = {e["name"]: e["tau_validation_truth"] for e in numbers["estimators"]}
    assert elsewhere["supernet"] == pytest.approx(np.mean([stats.kendalltau(run, val.mean(0))[0] for run in supernet]))
    others = [stats.kendalltau(scratch[i], np.delete(val, i, 0).mean(0)).statistic for i in range(len(scratch))]
    assert elsewhere["scratch"] == pytest.approx(np.mean(others))
    assert elsewhere["multiply-accumulates"] == pytest.approx(stats.kendalltau(range(4), val.mean(0)).statistic)
    assert numbers["tau_of_truths"] == pytest.approx(stats.kendalltau(val.mean(0), truth).statistic)
    picks = matrix(found, "supernet", "val_top1").argmax(1)
    assert numbers["regret_mean"] == pytest.approx(np.mean(truth.max() - truth[picks]))
    assert numbers["inherited_mean"] == pytest.approx(supernet.mean())
    assert numbers["scratch_mean"] == pytest.approx(truth.mean())
    assert numbers["failed_runs"] == 1
    page = (tmp_path / "s" / "README.md").read_text()
    assert "- scratch x seed 9: loss is nan" in page
    assert f"{truth[3]:.2f} [" in page
    assert f"of a supernet {elsewhere['supernet']:.2f}; of one seed from scratch {elsewhere['scratch']:.2f};" in page


def test_seeds_that_lack_a_network_are_left_out_of_rankings_and_still_in_the_rows(tmp_path):
    made_up(tmp_path / "s")
    file = tmp_path / "s" / "rows.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1]))
    report.write(tmp_path / "s")
    numbers = json.loads((tmp_path / "s" / "summary.json").read_text())
    assert (numbers["scratch_seeds"], numbers["seeds_left_out"]) == (4, 1)
    assert "## Seeds that lack a network" in (tmp_path / "s" / "README.md").read_text()
    assert "- scratch seed 1004\n" in (tmp_path / "s" / "README.md").read_text()


def test_estimators_and_variants_are_reported_at_their_cost(tmp_path):
    names = ("supernet-fair", "scratch-equal-total", "supernet-equal-updates", "supernet-stock-optimizer")
    names += ("scratch-eighth-of-epochs", "fine-tuned")
    made_up(tmp_path / "s", variants=names)
    drift = [
        {"policy": p, "seed": 0, "step": s, "active": 2e-3, "inactive": 0.0 if p == "frozen" else 1e-3}
        for p in ("frozen", "torch")
        for s in (10, 20)
    ]
    (tmp_path / "s" / "drift.jsonl").write_text("".join(json.dumps(row) + "\n" for row in drift))
    report.write(tmp_path / "s")
    found = {e["name"]: e for e in json.loads((tmp_path / "s" / "summary.json").read_text())["estimators"]}
    assert set(found) == {"parameters", "multiply-accumulates", "supernet", "scratch", *names}
    assert found["scratch"]["compute"] == 1
    assert found["supernet"]["compute"] == pytest.approx(0.25)  # one network a step, as many steps as one run
    assert found["fine-tuned"]["compute"] == pytest.approx(1.25)  # and what it begins with
    assert found["fine-tuned"]["seconds"] == pytest.approx(1.25)
    page = (tmp_path / "s" / "README.md").read_text()
    for title in ("Equal budgets", "Samplers", "stock optimizer", "Fine-tuning", "Drift", "Estimators"):
        assert title in page
    assert "which is 50% of what entries in use move" in page
    gap = numbers_of(tmp_path / "s", "fine-tuned") - numbers_of(tmp_path / "s", "supernet")
    said = re.search(r"- fine-tuned less supernet \(seed by seed, n = 6\): (.*?) points of accuracy", page).group(1)
    assert said == study_words.shown(*ranking.interval(gap), 3)
    for name in ("frontier", "drift", "budgets", "samplers", "optimizers", "fine-tuning"):
        assert f"({name}.png)" in page
        assert (tmp_path / "s" / f"{name}.png").stat().st_size > 5_000


def test_the_regret_of_one_run_from_scratch_leaves_that_run_out(tmp_path):
    made_up(tmp_path / "s")
    all_rows = rows(tmp_path / "s" / "rows.jsonl")
    for row in all_rows:  # two runs pick the worst network
        if row["kind"] == "scratch" and row["seed"] < 1002 and row["arch"] == ARCHS[0]:
            row["val_top1"] = 0.999
    (tmp_path / "s" / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in all_rows))
    found = {e["name"]: e for e in summary(Study(tmp_path / "s"))["estimators"]}
    of_scratch = [row for row in all_rows if row["kind"] == "scratch"]
    test, val = (matrix(of_scratch, "scratch", key) for key in ("test_top1", "val_top1"))
    others = [np.delete(test, i, 0).mean(0) for i in range(len(test))]
    lost = [truth.max() - truth[pick] for truth, pick in zip(others, val.argmax(1), strict=True)]
    assert found["scratch"]["regret_mean"] == pytest.approx(np.mean(lost))
    assert found["parameters"]["tau_mean"] == -1
    low, high = found["parameters"]["tau_ci"]
    assert -1 <= low <= high < 0  # of the truth's noise
    assert found["multiply-accumulates"]["tau_mean"] == 1


def numbers_of(folder, arm):
    """Accuracy of each seed of an arm, the mean over networks."""
    found = [row for name in ("rows", "variants") for row in rows(folder / f"{name}.jsonl")]
    of_arm = [row for row in found if row.get("variant", row["kind"]) == arm]
    seeds = sorted({row["seed"] for row in of_arm})
    return np.array([100 * np.mean([row["test_top1"] for row in of_arm if row["seed"] == s]) for s in seeds])


@pytest.mark.parametrize(
    ("networks", "sentence"), [(2, "Not even a fully right order"), (3, "Not even"), (4, "only a fully right order")]
)
def test_what_few_networks_can_show(networks, sentence, tmp_path):
    found = made_up(tmp_path / "s")
    few = [json.dumps(row) for row in found if row["arch"] in ARCHS[:networks]]
    (tmp_path / "s" / "rows.jsonl").write_text("\n".join(few) + "\n")
    report.write(tmp_path / "s")
    page = (tmp_path / "s" / "README.md").read_text()
    assert sentence in page
    assert ("below 5 % (p = 0.04" in page) == (networks == 4)


def test_pictures_of_a_run_smaller_than_a_batch_are_counted_as_they_are(tmp_path):
    config = {"batch_size": 128, "limit_train": None, "seed": 0}
    plan, path = study.Plan("fine-tuned", "scratch", config), {"arch": ARCHS[0], "test_top1": 0.5}
    run = one_run.Run(tmp_path, {**config, "limit_train": 7}, "a")
    outcome = {"steps": 4, "train_seconds": 1.0, "paths": [path]}
    files, failed = study.collected({plan: [run]}, {run.path: outcome}, 100)
    assert (files["variants"][0]["images"], failed) == (28, [])
    outcome.pop("steps")
    with pytest.raises(common.Failure, match=r"is damaged \(KeyError\('steps'\)\); remove it"):
        study.collected({plan: [run]}, {run.path: outcome}, 100)


def test_after_a_signal_nothing_more_is_measured(tmp_path, monkeypatch, capsys):
    def stopped(runs, *_, **__):
        return [common.Failure("stopped before it began", status=143)] * len(runs)

    monkeypatch.setattr(sweep, "train", stopped)
    monkeypatch.setattr(drift, "kept", lambda *_: pytest.fail("drift was measured"))
    status, _, error = in_process(
        monkeypatch, capsys, "study", "--variants", "--out", tmp_path / "out", "--runs", tmp_path / "runs"
    )
    assert (status, error.count("\n")) == (143, 1)
    assert "stopped with 0 of 20 runs finished" in error
    assert len(json.loads((tmp_path / "out" / "study.json").read_text())["failed"]) == 24  # fine-tuning never began


def test_error_bars_never_point_the_wrong_way():
    assert figures.bars([1, 1, 1], [2, 0, None], [3, 4, None]).tolist() == [[0, 1, 0], [2, 3, 0]]


def test_one_bad_error_does_not_squeeze_the_others(tmp_path):
    for errors, scale in (([0.7, 0.9, 1.2], "linear"), ([0.7, 0.9, 28], "log")):
        with figures.figure(tmp_path / "errors.png", 4) as axes:
            axes[0].plot(errors)
            figures.error_axis(axes[0])
        assert axes[0].get_yscale() == scale
        assert [ax.get_subplotspec().rowspan.start for ax in axes] == [0, 0, 0, 1]
    assert "1" in [label.get_text() for label in axes[0].get_yticklabels()]


def test_what_few_runs_say_is_called_a_range(tmp_path):
    found = made_up(tmp_path / "s", supernets=3, scratch=3)
    for row in found:  # two supernets pick the best network, one the worst
        if row["kind"] == "supernet":
            row["val_top1"] = float(row["arch"] == ARCHS[3 * (row["seed"] > 0)])
    (tmp_path / "s" / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
    report.write(tmp_path / "s")
    assert "A bootstrap of 3 runs is hardly more than their range" in (tmp_path / "s" / "README.md").read_text()
    assert json.loads((tmp_path / "s" / "summary.json").read_text())["regret_ci"][0] == 0
    made_up(tmp_path / "t", supernets=6, scratch=5)
    report.write(tmp_path / "t")
    assert "hardly more than" not in (tmp_path / "t" / "README.md").read_text()


def test_collapsed_networks_are_named_and_counted(tmp_path):
    made_up(tmp_path / "s")
    report.write(tmp_path / "s")
    assert "## Networks that collapsed" not in (tmp_path / "s" / "README.md").read_text()
    file = tmp_path / "s" / "rows.jsonl"
    *others, last = file.read_text().splitlines()
    file.write_text("\n".join([*others, json.dumps({**json.loads(last), "test_top1": 0.1})]) + "\n")
    report.write(tmp_path / "s")
    assert f"- scratch {ARCHS[3]} seed 1004: 10.00 %\n" in (tmp_path / "s" / "README.md").read_text()
    numbers = json.loads((tmp_path / "s" / "summary.json").read_text())
    assert (numbers["collapsed_networks"], numbers["scratch_seeds"]) == (1, 5)


def test_one_supernet_gives_no_interval_and_nothing_is_said_of_one(tmp_path):
    made_up(tmp_path / "s", supernets=1)
    report.write(tmp_path / "s")
    page = (tmp_path / "s" / "README.md").read_text()
    assert "one-sided" in page
    assert "The interval of the mean tau" not in page


def test_fine_tuning_is_as_long_as_what_it_is_compared_with():
    arms = {arm.name: arm.config for arm in study.arms(study.Options(variants=True, recipe="long"), 55_000, 4, 1)}
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
    assert same == {k: v for k, v in arms["supernet-stock-optimizer"].config.items() if k != "policy"}
    assert arms["supernet-stock-optimizer"].config["policy"] == "torch"
    tuned = arms["fine-tuned"].runs(common.Path("r"), ARCHS, 2)
    assert [run.config["start"] for run in tuned] == ["r/supernet/seed0"] * 4 + ["r/supernet/seed1"] * 4
    page = (ROOT / "docs" / "method.md").read_text()
    assert all(f"`{name}`" in page for name in arms if name not in ("scratch-eighth-of-data",))


def test_large_spaces_are_sampled():
    from mnas import spaces

    archs = study.networks(spaces.nb_macro(), study.Options(networks=5))
    assert len(set(archs)) == 5
    assert archs == study.networks(spaces.nb_macro(), study.Options(networks=5))
    (run,) = study.arms(study.Options(space="nb_macro"), 100, 5, 1)[0].runs(common.Path("r"), archs, 1)
    assert run.config["watched"] == archs


BAD = {
    "space": ("study", ["--space", "mil5"], "mil5"),
    "seeds": ("study", ["--seeds", 0], 'Invalid value "0" for --seeds'),
    "dataset": ("study", ["--dataset", "cifar"], "dataset 'cifar' is unknown"),
    "one network": ("study", ["--networks", 1], "1 network is nothing to compare; expected 2 at least"),
    "out": ("study", ["--out", "README.md"], "cannot write to --out README.md: README.md is no"),
    "runs": ("study", ["--runs", "README.md/x"], "cannot write to --runs README.md/x: /"),
    "nothing": ("report", [], "no study is given"),
    "no study": ("report", ["docs"], "docs/study.json is missing or damaged"),
    "no page": ("report", ["results/mil4_mnist", "--headline", "docs"], "--headline docs is no file of text"),
    "no marks": ("report", ["results/mil4_mnist", "--overview", "README.md"], "--overview README.md lacks the marks"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_status_2(case, monkeypatch, capsys):
    name, arguments, message = BAD[case]
    monkeypatch.chdir(ROOT)
    status, _, error = in_process(monkeypatch, capsys, name, *arguments)
    assert (status, error.count("\n")) == (2, 1)
    assert message in error


def leaves(value, name=""):
    """What is in nested dicts and lists, by its place."""
    if isinstance(value, (dict, list)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(item, f"{name}/{key}")
    else:
        yield name, value


@pytest.mark.parametrize("folder", sorted((ROOT / "results").glob("*/study.json")), ids=lambda f: f.parent.name)
def test_committed_reports_say_what_their_rows_say(folder, tmp_path, monkeypatch):
    source = folder.parent
    monkeypatch.chdir(ROOT)
    found = Study(source.relative_to(ROOT))
    kept, made = (dict(leaves(s)) for s in (json.loads((source / "summary.json").read_text()), summary(found)))
    assert kept == {key: pytest.approx(v) if isinstance(v, float) else v for key, v in made.items()}
    drawn = [file.stem for file in source.glob("*.png")]
    assert (source / "README.md").read_text() == study_text.page(found, summary(found), drawn)


def test_pages_show_what_the_studies_say(monkeypatch):
    monkeypatch.chdir(ROOT)
    (command,) = re.findall(r"Made by `tools/report.py (.*?)`", (ROOT / "README.md").read_text())
    paths = [common.Path(word) for word in command.split() if word.startswith("results/")]
    pages = [common.Path("README.md"), common.Path("README.ru.md")], common.Path("docs/results.md")
    made = report.shared_pages(tuple(paths), tuple(pages[0]), pages[1])
    assert [part for _, part, _ in made] == ["headline", "headline", *report.OVERVIEW]
    for page, part, text in made:
        assert common.replaced(page.read_text(), part, text) == page.read_text()


def test_runs_of_other_settings_are_never_counted(done):
    out, runs, _ = done
    before = (out / "rows.jsonl").read_bytes()
    made = tool("study", *SHORT[2:], "--limit-train", 300, "--out", out, "--runs", runs)
    assert (made.returncode, made.stderr.count("\n")) == (2, 1)
    assert "supernet/seed0 was begun with --limit-train 400, not 300" in made.stderr
    assert (out / "rows.jsonl").read_bytes() == before


def test_studies_are_shown_beside_each_other(tmp_path, monkeypatch, capsys):
    """Three studies of the same networks and one of another data set; every difference by hand."""
    monkeypatch.chdir(tmp_path)
    names = ("one", "one_long", "nested", "other")
    found = {name: made_up(tmp_path / name, seed=number) for number, name in enumerate(names)}
    for name, changes in {"one_long": {"recipe": "long"}, "nested": {"space": "x"}, "other": {"dataset": "y"}}.items():
        about = json.loads((tmp_path / name / "study.json").read_text())
        (tmp_path / name / "study.json").write_text(json.dumps({**about, **changes}))
    marks = {part: f"<!-- {part} -->\nold\n<!-- end of {part} -->\n" for part in ("headline", *report.OVERVIEW)}
    for name in ("a.md", "a.ru.md"):
        (tmp_path / name).write_text(marks["headline"])
    (tmp_path / "o.md").write_text("".join(marks[part] for part in report.OVERVIEW))
    pages = ("--headline", "a.md", "--headline", "a.ru.md", "--overview", "o.md")
    assert in_process(monkeypatch, capsys, "report", *names, *pages)[0] == 0
    english, russian, overview = ((tmp_path / name).read_text() for name in ("a.md", "a.ru.md", "o.md"))
    assert "| inherited, long recipe" in english
    assert "nested" not in english.split("Made by")[0]  # another space
    assert f"`tools/report.py {' '.join((*names, *pages))}`" in english
    mean = matrix(found["one"], "supernet", "test_top1").mean(0)
    assert f"| {ARCHS[0]} | {mean[0]:.2f} [" in english
    assert f"| {ARCHS[0]} | {mean[0]:.2f} [".replace(".", ",") in russian
    assert "; " in russian
    assert not re.search(r"\d\.\d", russian.split("Сделано")[0])
    assert all(f"[{name}](../{name}/README.md)" in overview for name in names)
    gap = matrix(found["nested"], "scratch", "test_top1") - matrix(found["one"], "scratch", "test_top1")
    line = next(line for line in overview.splitlines() if line.startswith("| nested") and "from scratch" in line)
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[2:4] == ["5", study_words.shown(*ranking.interval(gap[:, 0]), 3)]
    assert cells[-1] == study_words.shown(*ranking.interval(gap.mean(1)), 3)
    assert overview.count("| other") == 0
    for name in ("tau", "networks"):
        assert (tmp_path / "o" / f"{name}.png").stat().st_size > 5_000
