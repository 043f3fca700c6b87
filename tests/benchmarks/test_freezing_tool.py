"""tools/freezing.py: its errors, its rows, and that the page says what the rows say."""

import json
import re

import pytest
from conftest import ROOT, rows
from extent import WHOLE
from processes import tool
from running import in_process

import mnas

RESULTS = ROOT / "results" / "freezing"
TABLES = ("drift", "cost", "memory")

BAD = {
    "part": (["--only", "speed"], 'Invalid value "speed" for --only'),
    "page": (["--page", "docs/nothing.md"], "--page docs/nothing.md is no file of text"),
    "option": (["--fast"], "Unknown option: --fast"),
    "threads": (["--threads", 0], 'Invalid value "0" for --threads'),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_status_2(case, monkeypatch, capsys):
    arguments, message = BAD[case]
    monkeypatch.chdir(ROOT)
    status, _, error = in_process(monkeypatch, capsys, "freezing", *arguments)
    assert status == 2
    assert message in error
    assert error.count("\n") == 1


def test_a_page_without_marks_is_left_alone(tmp_path, monkeypatch, capsys):
    page = tmp_path / "page.md"
    page.write_text("no marks")
    arguments = ("--only", "memory", "--page", page, "--out", tmp_path / "out")
    status, _, error = in_process(monkeypatch, capsys, "freezing", *arguments)
    assert status == 2
    assert "lacks the marks <!-- memory --> and <!-- end of memory -->" in error
    assert page.read_text() == "no marks"


def test_memory_grows_with_what_was_active(tmp_path, monkeypatch, capsys):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- memory -->\nold\n<!-- end of memory -->\nafter\n")
    arguments = ("--only", "memory", "--page", page, "--out", tmp_path / "out")
    assert in_process(monkeypatch, capsys, "freezing", *arguments)[0] == 0
    measured = rows(tmp_path / "out" / "memory.jsonl")
    assert len(measured) == 10
    for row in measured:
        assert (
            8 * row["active"] <= row["state_bytes"] <= 8 * row["active"] + 4
        )  # two moments; a step count
    text = page.read_text()
    assert text.startswith("before\n<!-- memory -->\n| active")
    assert text.endswith("<!-- end of memory -->\nafter\n")
    assert "old" not in text
    assert (
        "torch" in json.loads((tmp_path / "out" / "memory-config.json").read_text())["environment"]
    )


def test_the_page_says_what_the_rows_say():
    from benchmarks import freezing

    page = (ROOT / "docs" / "freezing.md").read_text()
    for name in TABLES:
        (text,) = re.findall(
            rf"<!-- {name} -->\n(.*?)\n<!-- end of {name} -->", page, flags=re.DOTALL
        )
        measured = rows(RESULTS / f"{name}.jsonl")
        assert text == getattr(freezing, f"{name}_table")(measured)
        config = json.loads((RESULTS / f"{name}-config.json").read_text())
        assert not config["quick"]


def test_the_page_of_spaces_says_what_its_rows_say():
    from benchmarks import spaces

    page = (ROOT / "docs" / "spaces.md").read_text()
    (text,) = re.findall(rf"<!-- {spaces.MEMORY} -->\n(.*?)\n<!-- end of", page, flags=re.DOTALL)
    measured = rows(ROOT / "results" / "spaces" / "memory.jsonl")
    assert text == spaces.table(measured)
    now = list(spaces.measure(mnas.spaces.mil9(), 0))
    assert now == [row for row in measured if row["space"] == "mil9"]


def test_nothing_drifts_in_the_measured_rows():
    measured = rows(RESULTS / "drift.jsonl")
    assert len(measured) == 44
    assert all(row["frozen_max"] == 0 for row in measured if row["by"] == "mnas")
    assert all(
        row["frozen_max"] > 0
        for row in measured
        if row["by"] == "hook" and row["optimizer"] != "Rprop"
    )


@pytest.mark.nightly
def test_quick_run_measures_everything_and_nothing_drifts(tmp_path):
    parts = ("drift", "cost", "memory") if WHOLE else ("drift",)
    for part in parts:
        done = tool("freezing", "--quick", "--only", part, "--out", tmp_path)
        assert done.returncode == 0, done.stderr
        assert ("one of two candidates" in done.stdout) == (part == "cost")
    measured = rows(tmp_path / "drift.jsonl")
    assert {row["frozen_max"] for row in measured if row["by"] == "mnas"} == {0.0}
    if WHOLE:
        assert len(rows(tmp_path / "cost.jsonl")) == 10 * 3 * 7 * 2
