"""tools/report.py: every number comes from the rows, by hand from invented ones, and the committed pages are true."""

import json
import re

import common
import figures
import numpy as np
import pytest
import report
import study
import study_figures
import study_text
import study_words
from conftest import ROOT, rows
from scipy import stats
from study_rows import Study, study_folder, summary
from test_tools import ARCHS, in_process

from mnas import ranking


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
            put(path / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in found))
    about = {"space": "mil4", "dataset": "mnist", "recipe": "short", "seeds": supernets, "variants": bool(variants)}
    about |= {"failed": [{"run": "scratch x seed 9", "arm": "scratch", "seed": 9, "reason": "loss is nan"}]}
    about |= {"arms": {name: {"sampler": "uniform", "after": None} for name in arms}, "limit_train": None}
    about |= {"limit_test": None, "networks": 16, "seed": 0, "drawn": False, "test_images": 10_000}
    if "fine-tuned" in arms:
        about["arms"]["fine-tuned"]["after"] = "supernet"
    about |= {"environment": {"processor": "p", "cores": 2, "torch": "t"}}
    put(path / "study.json", json.dumps(about))
    return lines["rows"]


def put(file, text):
    """A file of a study, as tools/study.py writes it."""
    study_folder(file.parent).write({file.name: text})


def matrix(found, kind, key):
    seeds = sorted({row["seed"] for row in found if row["kind"] == kind})
    at = {(row["kind"], row["seed"], row["arch"]): row[key] for row in found}
    return np.array([[100 * at[kind, s, a] for a in ARCHS] for s in seeds])


def numbers_of(folder, arm):
    """Accuracy of each seed of an arm, the mean over networks."""
    found = [row for name in ("rows", "variants") for row in rows(folder / f"{name}.jsonl")]
    of_arm = [row for row in found if row.get("variant", row["kind"]) == arm]
    seeds = sorted({row["seed"] for row in of_arm})
    return np.array([100 * np.mean([row["test_top1"] for row in of_arm if row["seed"] == s]) for s in seeds])


def leaves(value, name=""):
    """What is in nested dicts and lists, by its place."""
    if isinstance(value, (dict, list)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(item, f"{name}/{key}")
    else:
        yield name, value


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
def test_damaged_rows_are_one_line_and_status_2(listed, name, damage, tmp_path, monkeypatch, capsys):
    made_up(tmp_path / "s")
    file = tmp_path / "s" / name
    content = file.read_text()[:-9] if damage == "cut" else damage
    put(file, content) if listed else file.write_text(content)
    status, _, error = in_process(monkeypatch, capsys, "report", tmp_path / "s")
    assert (status, error.count("\n")) == (2, 1)
    assert str(tmp_path / "s") in error


def test_the_summary_is_computed_from_the_rows(tmp_path):
    found = made_up(tmp_path / "s")
    for row in found:  # the two sets of pictures disagree about two networks
        row["val_top1"] += {ARCHS[0]: 0.05, ARCHS[2]: -0.05}.get(row["arch"], 0)
    put(tmp_path / "s" / "rows.jsonl", "".join(json.dumps(row) + "\n" for row in found))
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
    supernet_val, val = matrix(found, "supernet", "val_top1"), matrix(found, "scratch", "val_top1")
    named = {e["name"]: e for e in numbers["estimators"]}
    ways = [stats.kendalltau(run, val.mean(0))[0] for run in supernet]
    ways += [stats.kendalltau(run, truth)[0] for run in supernet_val]
    assert named["supernet"]["tau_other_pictures"] == pytest.approx(np.mean(ways))
    ways = [stats.kendalltau(scratch[i], np.delete(val, i, 0).mean(0)).statistic for i in range(len(scratch))]
    ways += [stats.kendalltau(val[i], np.delete(scratch, i, 0).mean(0)).statistic for i in range(len(scratch))]
    assert named["scratch"]["tau_other_pictures"] == pytest.approx(np.mean(ways))
    ways = [stats.kendalltau(range(4), of_pictures)[0] for of_pictures in (val.mean(0), truth)]
    assert named["multiply-accumulates"]["tau_other_pictures"] == pytest.approx(np.mean(ways))
    for estimator in named.values():
        low, high = estimator["tau_other_pictures_ci"]
        assert low <= estimator["tau_other_pictures"] <= high
    elsewhere = {n: study_words.shown(e["tau_other_pictures"], *e["tau_other_pictures_ci"]) for n, e in named.items()}
    assert numbers["tau_of_truths"] == pytest.approx(stats.kendalltau(val.mean(0), truth).statistic) != 1
    picks = matrix(found, "supernet", "val_top1").argmax(1)
    assert numbers["regret_mean"] == pytest.approx(np.mean(truth.max() - truth[picks]))
    assert numbers["inherited_mean"] == pytest.approx(supernet.mean())
    assert numbers["scratch_mean"] == pytest.approx(truth.mean())
    assert numbers["failed_runs"] == 1
    page = (tmp_path / "s" / "README.md").read_text()
    assert "- scratch x seed 9: loss is nan" in page
    assert f"{truth[3]:.2f} [" in page
    assert f"of a supernet {elsewhere['supernet']}; of one seed from scratch {elsewhere['scratch']};" in page


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
    names = ("supernet-fair", "scratch-equal-total", "supernet-equal-updates", "supernet-stock-optimizer")
    names += ("scratch-eighth-of-epochs", "fine-tuned")
    made_up(tmp_path / "s", variants=names)
    drift = [
        {"policy": p, "seed": 0, "step": s, "active": 2e-3, "inactive": 0.0 if p == "frozen" else 1e-3}
        for p in ("frozen", "torch")
        for s in (10, 20)
    ]
    put(tmp_path / "s" / "drift.jsonl", "".join(json.dumps(row) + "\n" for row in drift))
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
    put(tmp_path / "s" / "rows.jsonl", "".join(json.dumps(row) + "\n" for row in all_rows))
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


@pytest.mark.parametrize(
    ("networks", "sentence"), [(2, "Not even a fully right order"), (3, "Not even"), (4, "only a fully right order")]
)
def test_what_few_networks_can_show(networks, sentence, tmp_path):
    found = made_up(tmp_path / "s")
    few = [json.dumps(row) for row in found if row["arch"] in ARCHS[:networks]]
    put(tmp_path / "s" / "rows.jsonl", "\n".join(few) + "\n")
    report.write(tmp_path / "s")
    page = (tmp_path / "s" / "README.md").read_text()
    assert sentence in page
    assert ("below 5 % (p = 0.04" in page) == (networks == 4)


def test_error_bars_never_point_the_wrong_way():
    assert figures.bars([1, 1, 1], [2, 0, None], [3, 4, None]).tolist() == [[0, 1, 0], [2, 3, 0]]


def test_one_bad_error_does_not_squeeze_the_others(tmp_path):
    cases = [([0.7, 0.9, 1.2], "linear"), ([0.7, 0.9, 28], "log"), ([0, 0.9, 28], "linear"), ([0, 0], "linear")]
    with figures.figure(tmp_path / "errors.png", len(cases)) as axes:
        for ax, (errors, _) in zip(axes, cases, strict=True):
            ax.errorbar(range(len(errors)), errors, 2)  # ends of bars, below 0 too, are no errors
            figures.error_axis(ax, errors)
    assert [ax.get_yscale() for ax in axes] == [scale for _, scale in cases]
    assert [ax.get_subplotspec().rowspan.start for ax in axes] == [0, 0, 0, 1]
    assert axes[0].figure.axes == axes  # and no empty ones
    assert axes[0].figure.get_size_inches().tolist() == pytest.approx([3 * 3.6, 2 * 3])
    assert {"1", "2", "5"} <= {label.get_text() for label in axes[1].get_yticklabels()}


def test_what_costs_nothing_stands_left_of_the_aim():
    assert study_figures.places([0, 0, 0.5, 0.5, 1]) == pytest.approx([0.025, 0.028, 0.5, 0.56, 1])
    assert study_figures.places([0, 0.02, 1]) == pytest.approx([0.005, 0.02, 1])


def test_what_few_runs_say_is_called_a_range(tmp_path):
    found = made_up(tmp_path / "s", supernets=3, scratch=3)
    for row in found:  # two supernets pick the best network, one the worst
        if row["kind"] == "supernet":
            row["val_top1"] = float(row["arch"] == ARCHS[3 * (row["seed"] > 0)])
    put(tmp_path / "s" / "rows.jsonl", "".join(json.dumps(row) + "\n" for row in found))
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
    put(file, "\n".join([*others, json.dumps({**json.loads(last), "test_top1": 0.1})]) + "\n")
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


@pytest.mark.parametrize("folder", sorted((ROOT / "results").glob("*/study.json")), ids=lambda f: f.parent.name)
def test_committed_reports_say_what_their_rows_say(folder, tmp_path, monkeypatch):
    source = folder.parent
    monkeypatch.chdir(ROOT)
    found = Study(source.relative_to(ROOT))
    kept, made = (dict(leaves(s)) for s in (json.loads((source / "summary.json").read_text()), summary(found)))
    assert kept == {key: pytest.approx(v) if isinstance(v, float) else v for key, v in made.items()}
    drawn = [file.stem for file in source.glob("*.png")]
    assert (source / "README.md").read_text() == study_text.page(found, summary(found), drawn)


def test_prose_of_the_results_says_what_the_rows_say(monkeypatch):
    monkeypatch.chdir(ROOT)
    prose = " ".join((ROOT / "docs" / "results.md").read_text().split())
    names = ("mil4_mnist", "mil4_mnist_long", "mil9_mnist", "mil9_mnist_long")
    short, long, nine, longer = (Study(common.Path("results", name)) for name in names)

    def gap(study):
        arms = (study.arms[name].test.mean(1) for name in ("supernet", "scratch"))
        return study_words.shown(*ranking.difference(*arms), 3)

    def leads(study, pictures):
        """How much more networks with one layer in the second stage gain from inheriting than the others, a seed."""
        one = np.array([arch.endswith("d1") for arch in study.archs])
        inherited, scratch = (getattr(study.arms[name], pictures) for name in ("supernet", "scratch"))
        less = inherited - scratch.mean(0)
        return less[:, one].mean(1) - less[:, ~one].mean(1)

    lowest = min(arm.test.min() for arm in long.arms.values())
    assert f"of all 80 accuracies the lowest is {lowest:.2f} %" in prose
    assert f"no longer differ ({gap(long)} points)" in prose
    assert f"in the short recipe ({gap(short)})" in prose
    before, after, elsewhere = leads(nine, "test"), leads(longer, "test"), leads(longer, "val")
    assert f"of the {before.mean():.2f} points that networks with one layer" in prose
    assert f"lead the others by, {after.mean():.2f} are left" in prose
    ranges = [f"{found.min():.2f} to {found.max():.2f}" for found in (after, elsewhere)]
    assert f"({ranges[0]}; on the validation pictures {ranges[1]})" in prose
    assert np.array_equal(nine.arms["supernet"].test, longer.arms["supernet"].test)


def test_pages_show_what_the_studies_say(monkeypatch):
    monkeypatch.chdir(ROOT)
    (command,) = re.findall(r"Made by `tools/report.py (.*?)`", (ROOT / "README.md").read_text())
    paths = [common.Path(word) for word in command.split() if word.startswith("results/")]
    pages = [common.Path("README.md"), common.Path("README.ru.md")], common.Path("docs/results.md")
    made = report.shared_pages(tuple(paths), tuple(pages[0]), pages[1])
    assert [part for _, part, _ in made] == ["headline", "headline", *report.OVERVIEW]
    for page, part, text in made:
        assert common.replaced(page.read_text(), part, text) == page.read_text()


def test_studies_are_shown_beside_each_other(tmp_path, monkeypatch, capsys):
    """Three studies of the same networks and one of another data set; every difference by hand."""
    monkeypatch.chdir(tmp_path)
    names = ("one", "one_long", "nested", "other")
    found = {name: made_up(tmp_path / name, seed=number) for number, name in enumerate(names)}
    for name, changes in {"one_long": {"recipe": "long"}, "nested": {"space": "x"}, "other": {"dataset": "y"}}.items():
        about = json.loads((tmp_path / name / "study.json").read_text())
        put(tmp_path / name / "study.json", json.dumps({**about, **changes}))
    marks = {part: f"<!-- {part} -->\nold\n<!-- end of {part} -->\n" for part in ("headline", *report.OVERVIEW)}
    for name in ("a.md", "a.ru.md"):
        (tmp_path / name).write_text(marks["headline"])
    (tmp_path / "o.md").write_text("".join(marks[part] for part in report.OVERVIEW))
    pages = ("--headline", "a.md", "--headline", "a.ru.md", "--overview", "o.md")
    assert in_process(monkeypatch, capsys, "report", *names, *pages)[0] == 0
    english, russian, overview = ((tmp_path / name).read_text() for name in ("a.md", "a.ru.md", "o.md"))
    assert "| inherited, long recipe" in english
    titles = [(tmp_path / name / "README.md").read_text().splitlines()[0] for name in names[:2]]
    assert titles == [f"# mil4 on mnist{recipe}: what weight sharing predicts" for recipe in ("", ", long recipe")]
    assert "nested" not in english.split("Made by")[0]  # another space
    assert f"`tools/report.py {' '.join((*names, *pages))}`" in english
    mean = matrix(found["one"], "supernet", "test_top1").mean(0)
    assert f"| {ARCHS[0]} | {mean[0]:.2f} [" in english
    assert f"| {ARCHS[0]} | {mean[0]:.2f} [".replace(".", ",") in russian
    assert "; " in russian
    assert not re.search(r"\d\.\d", russian.split("Получено")[0])
    assert all(f"[{name}](../{name}/README.md)" in overview for name in names)
    gap = matrix(found["nested"], "scratch", "test_top1") - matrix(found["one"], "scratch", "test_top1")
    line = next(line for line in overview.splitlines() if line.startswith("| nested") and "from scratch" in line)
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[2:4] == ["5", study_words.shown(*ranking.interval(gap[:, 0]), 3)]
    assert cells[-1] == study_words.shown(*ranking.interval(gap.mean(1)), 3)
    assert not any(line.startswith("| other") for line in overview.splitlines())  # nothing to compare with
    for name in ("tau", "networks"):
        assert (tmp_path / "o" / f"{name}.png").stat().st_size > 5_000


def test_rows_that_are_missing_or_unlisted_are_noticed(tmp_path):
    made_up(tmp_path / "s", variants=("supernet-fair",))
    file = tmp_path / "s" / "variants.jsonl"
    content = file.read_text()
    file.unlink()
    with pytest.raises(common.Failure, match=r"variants\.jsonl"):
        Study(tmp_path / "s")
    file.write_text(content)
    study_folder(tmp_path / "s").write({}, remove=["variants.jsonl"])
    file.write_text(content)
    with pytest.raises(common.Failure, match=r"variants\.jsonl"):
        Study(tmp_path / "s")
    file.unlink()
    assert "supernet-fair" not in Study(tmp_path / "s").arms
