"""Studies beside each other, what people wrote of them, and `mnas report --check`."""

import json

import numpy as np
import pytest
from invented import made_up, matrix, put
from running import ARCHS, in_process
from scipy import stats

from mnas.commands import report
from mnas.studies import figures, statistics
from mnas.studies.pages import shown


def test_studies_are_shown_beside_each_other(tmp_path, monkeypatch, capsys):
    """Three studies of the same networks and one of another data set; every difference by hand."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(figures, "draw", lambda *_: [])  # those of one study: test_report.py
    names = ("one", "one_long", "nested", "other")
    found = {name: made_up(tmp_path / name, seed=number) for number, name in enumerate(names)}
    for name, changes in {
        "one_long": {"recipe": "long"},
        "nested": {"space": "x"},
        "other": {"dataset": "y"},
    }.items():
        about = json.loads((tmp_path / name / "study.json").read_text())
        put(tmp_path / name / "study.json", json.dumps({**about, **changes}))
    marks = {
        part: f"<!-- {part} -->\nold\n<!-- end of {part} -->\n"
        for part in ("headline", *report.OVERVIEW)
    }
    for name in ("a.md", "a.ru.md"):
        (tmp_path / name).write_text(marks["headline"])
    (tmp_path / "o.md").write_text("".join(marks[part] for part in report.OVERVIEW))
    pages = ("--headline", "a.md", "--headline", "a.ru.md", "--overview", "o.md")
    assert in_process(monkeypatch, capsys, "report", *names, *pages)[0] == 0
    english, russian, overview = (
        (tmp_path / name).read_text() for name in ("a.md", "a.ru.md", "o.md")
    )
    assert "| inherited, long recipe" in english
    titles = [(tmp_path / name / "README.md").read_text().splitlines()[0] for name in names[:2]]
    assert titles == [
        f"# mil4 on mnist{recipe}: what weight sharing predicts" for recipe in ("", ", long recipe")
    ]
    assert "nested" not in english.split("Made by")[0]  # another space
    assert f"`tools/report.py {' '.join((*names, *pages))}`" in english
    mean = matrix(found["one"], "supernet", "test_top1").mean(0)
    assert f"| {ARCHS[0]} | {mean[0]:.2f} [" in english
    assert russian == english
    assert all(f"[{name}](../{name}/README.md)" in overview for name in names)
    gap = matrix(found["nested"], "scratch", "test_top1") - matrix(
        found["one"], "scratch", "test_top1"
    )
    line = next(
        line
        for line in overview.splitlines()
        if line.startswith("| nested") and "from scratch" in line
    )
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[2:4] == ["5", shown(*statistics.interval(gap[:, 0]), 3)]
    assert cells[-1] == shown(*statistics.interval(gap.mean(1)), 3)
    assert not any(
        line.startswith("| other")
        for line in overview.split("<!-- against-first -->")[1].splitlines()
    )  # nothing to compare with
    for name in ("tau", "networks"):
        assert (tmp_path / "o" / f"{name}.png").stat().st_size > 5_000


CLAIMS = """
[[claims]]
page = "a.md"
study = "one"
say = ["tau {tau_mean:.2f}", "ceiling {ceiling}", "gap {gap}",
       "{parameters[tau_mean]:.1f} of parameters", "lowest {lowest:.2f}",
       "gain {gain[conv5x5-*].mean:.3f}",
       "on validation {validation_gain[conv5x5-*].low:.3f}"]

[[claims]]
page = "a.md"
study = "one"
beside = "two"
say = ["two references {pooled[tau]:.2f}", "pooled {pooled[conv5x5-conv3x3]:.3f}"]
"""


def test_check_finds_what_the_rows_contradict(tmp_path, monkeypatch, capsys):
    """Numbers in prose by hand; then one page after the other is falsified."""
    monkeypatch.chdir(tmp_path)
    found = made_up(tmp_path / "one", supernets=4, scratch=4)
    other = made_up(tmp_path / "two", scratch=2, seed=1)
    report.write(tmp_path / "one")
    numbers = json.loads((tmp_path / "one" / "summary.json").read_text())
    supernet, scratch = (matrix(found, kind, "test_top1") for kind in ("supernet", "scratch"))
    gains = supernet - scratch.mean(0)
    gain = gains[:, 2:].mean(1) - gains[:, :2].mean(1)
    vals = matrix(found, "supernet", "val_top1") - matrix(found, "scratch", "val_top1").mean(0)
    on_validation = vals[:, 2:].mean(1) - vals[:, :2].mean(1)
    gap = statistics.difference(supernet.mean(1), scratch.mean(1))
    ceiling = shown(numbers["ceiling_mean"], *numbers["ceiling_ci"])
    prose = f"tau {numbers['tau_mean']:.2f}, ceiling {ceiling}, gap {shown(*gap, 3)}, "
    prose += f"-1.0 of parameters, lowest {min(supernet.min(), scratch.min()):.2f},\n"
    prose += f"gain {gain.mean():.3f}, on validation {on_validation.min():.3f}"
    truths = [matrix(rows_of, "scratch", "test_top1") for rows_of in (found, other)]
    tau = stats.kendalltau(*(truth.mean(0) for truth in truths))[0]
    pooled = np.concatenate(truths)[:, ARCHS.index("conv5x5-conv3x3")].mean()
    prose += f", two references {tau:.2f}, pooled {pooled:.3f}"
    page = f"{prose}\n<!-- headline -->\n<!-- end of headline -->\n"
    (tmp_path / "a.md").write_text(page)
    (tmp_path / "claims.toml").write_text(CLAIMS)
    command = ("report", "one", "--headline", "a.md")
    check = (*command, "--check", "--claims", "claims.toml")
    assert in_process(monkeypatch, capsys, *command)[0] == 0
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    assert in_process(monkeypatch, capsys, *check)[::2] == (0, "")
    for name, old, new in (
        ("one/README.md", "## Ranking", "## Other"),
        ("one/summary.json", '"networks": 4', '"networks": 5'),
        ("a.md", "parameters", "macs"),
        ("a.md", "lowest", "highest"),
        ("a.md", "pooled 9", "pooled 8"),
        ("a.md", "| network", "| net"),
    ):
        text = (tmp_path / name).read_text()
        (tmp_path / name).write_text(text.replace(old, new))
        status, _, error = in_process(monkeypatch, capsys, *check)
        assert (status, error.count("\n")) == (1, 1)
        assert name in error
        (tmp_path / name).write_text(text)
    (tmp_path / "one" / "accuracy.png").rename(tmp_path / "a.png")
    status, _, error = in_process(monkeypatch, capsys, *check)
    assert (status, error.count("one/README.md (no accuracy.png)")) == (1, 1)
    (tmp_path / "a.png").rename(tmp_path / "one" / "accuracy.png")
    assert before == {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}


def test_what_people_wrote_is_a_part_of_the_report(tmp_path):
    made_up(tmp_path / "s")
    (tmp_path / "s" / "reading.md").write_text("**Size ranks.** It does.\n")
    report.write(tmp_path / "s")
    assert (
        "\n\n**Size ranks.** It does.\n\n## Accuracy" in (tmp_path / "s" / "README.md").read_text()
    )


@pytest.mark.parametrize(
    "claims",
    [
        "x = ",
        "claims = 3",
        "[[claims]]\npage = 'a.md'",
        CLAIMS.replace("tau_mean:.2f}", "nothing}"),
        None,
    ],
)
def test_claims_that_cannot_be_read_are_one_line(claims, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    made_up(tmp_path / "one")
    (tmp_path / "a.md").write_text("")
    if claims:
        (tmp_path / "claims.toml").write_text(claims)
    check = ("report", "one", "--check", "--claims", "claims.toml")
    status, _, error = in_process(monkeypatch, capsys, *check)
    assert (status, error.count("\n")) == (2, 1), error
    assert "claims.toml" in error
    status, _, error = in_process(monkeypatch, capsys, "report", "one", "--claims", "claims.toml")
    assert (status, error.count("\n")) == (2, 1)


def test_a_machine_that_does_not_name_its_processor_has_a_page(tmp_path, monkeypatch, capsys):
    """As of Linux on ARM: no model name, and sometimes no number of cores."""
    made_up(tmp_path / "one")
    about = json.loads((tmp_path / "one" / "study.json").read_text())
    about["environment"] |= {"processor": "", "cores": None}
    put(tmp_path / "one" / "study.json", json.dumps(about))
    assert in_process(monkeypatch, capsys, "report", tmp_path / "one")[0] == 0
    page = (tmp_path / "one" / "README.md").read_text()
    assert "Unknown processor, unknown number of cores, torch t." in page


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ((-0.0004, -0.004, 0.4), "0.00 [0.00, 0.40]"),  # no minus before what is shown as zero
        ((-0.0004, None, None), "0.00"),
        ((-0.006, -0.4, -0.1), "-0.01 [-0.40, -0.10]"),
    ],
)
def test_a_mean_with_its_interval(numbers, text):
    assert shown(*numbers) == text
