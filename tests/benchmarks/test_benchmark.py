"""tools/benchmark.py: what it compares with is right, its errors, its rows, and that the page says
what they say."""

import json
import re
import shutil

import pytest
import torch
from conftest import ROOT, rows
from extent import WHOLE
from processes import tool
from running import in_process
from torch import nn

import mnas
from benchmarks import suites
from benchmarks.benchmark import PARTS
from benchmarks.page import FIGURES, TABLES
from benchmarks.yardsticks import Modular, NaiveMerged

RESULTS = ROOT / "results" / "benchmarks"


@pytest.mark.parametrize("name", ["mil4", "mil9"])
def test_the_modular_supernet_is_the_same_network(name):
    space = mnas.spaces.get(name)
    nets = []
    for make in (mnas.Supernet, Modular):
        torch.manual_seed(0)
        nets.append(make(space))
    x = torch.randn(3, *space.input_shape)
    for path in space.paths():
        assert torch.equal(nets[0](x, path), nets[1](x, path))


def test_the_naive_supernet_is_the_same_network_and_zeroes_gradients():
    space = mnas.spaces.plain(candidates=3, channels=(2, 3), hidden=5)
    nets = []
    for make in (mnas.Supernet, NaiveMerged):
        torch.manual_seed(0)
        nets.append(make(space).double())
    x = torch.randn(3, *space.input_shape, dtype=torch.float64)
    for path in space.paths():
        torch.testing.assert_close(nets[0](x, path), nets[1](x, path), rtol=1e-12, atol=1e-12)
    nets[1].zero_grad()
    nets[1](x, (0, 2)).square().sum().backward()
    first, second = (nets[1].stages[number].weight.grad for number in (0, 3))
    assert [bool(g.any()) for g in (*first, *second)] == [True, False, False, False, False, True]
    border = torch.ones(5, 5, dtype=torch.bool)
    border[1:4, 1:4] = False
    assert not second[2][..., border].any()
    assert not first[0][..., border].any()


def test_what_is_no_convolution_has_no_naive_form():
    space = mnas.SearchSpace(
        lambda: nn.Sequential(nn.Flatten(), mnas.Choice({"a": nn.Linear(784, 2)}))
    )
    with pytest.raises(ValueError, match="written for convolutions"):
        NaiveMerged(space)


BAD = {
    "suite": (["--only", "speed"], 'Invalid value "speed" for --only'),
    "page": (["--page", "docs/nothing.md"], "--page docs/nothing.md is no file of text"),
    "page without marks": (
        ["--page", "docs/design.md"],
        "--page docs/design.md lacks the marks <!-- step -->",
    ),
    "rows": (
        ["--redraw", "--out", "docs"],
        "docs does not hold step.jsonl; restore it, or measure its rows again",
    ),
    "both": (["--redraw", "--quick"], "--redraw is for the page, which --quick leaves alone"),
    "threads": (["--threads", 0], 'Invalid value "0" for --threads'),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_status_2(case, monkeypatch, capsys):
    arguments, message = BAD[case]
    monkeypatch.chdir(ROOT)
    status, _, error = in_process(monkeypatch, capsys, "benchmark", *arguments)
    assert (status, error.count("\n")) == (2, 1)
    assert message in error


@pytest.mark.nightly
def test_a_quick_run_writes_rows_and_leaves_the_page_alone(tmp_path):
    page = (ROOT / "docs" / "benchmarks.md").read_bytes()
    parts = PARTS if WHOLE else ("mixture", "settings")
    for part in parts:
        done = tool("benchmark", "--quick", "--only", part, "--out", tmp_path / "out")
        assert done.returncode == 0, done.stderr
    assert page == (ROOT / "docs" / "benchmarks.md").read_bytes()
    counts = {
        "step": 4 * 5 * 4,
        "scaling": 2 * 4 * 3,
        "evaluate": 2 * 2,
        "mixture": 3 * 4,
        "settings": 4,
        "sweep": 3,
        "rules": 7 * 3 + 2 * 3,
    }
    assert {file.stem for file in (tmp_path / "out").glob("*.jsonl")} == set(parts)
    for suite in parts:
        measured = rows(tmp_path / "out" / f"{suite}.jsonl")
        assert len(measured) == counts[suite]
        assert all(seconds > 0 for row in measured for seconds in row["seconds"])
        config = json.loads((tmp_path / "out" / f"{suite}-config.json").read_text())
        assert config["quick"]
        assert "torch" in config["environment"]


@pytest.mark.parametrize("suite", PARTS)
def test_the_page_says_what_the_rows_say(suite):
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    (text,) = re.findall(rf"<!-- {suite} -->\n(.*?)\n<!-- end of", page, flags=re.DOTALL)
    assert TABLES[suite](rows(RESULTS / f"{suite}.jsonl")) == text


def test_the_page_is_made_from_the_rows_alone(tmp_path, monkeypatch, capsys):
    page = tmp_path / "page.md"
    shutil.copy(ROOT / "docs" / "benchmarks.md", page)
    text = page.read_text()
    page.write_text(re.sub(r"(<!-- step -->\n).*?(<!-- end)", r"\1\2", text, flags=re.DOTALL))
    status, _, error = in_process(
        monkeypatch, capsys, "benchmark", "--redraw", "--page", page, "--out", RESULTS
    )
    assert (status, error) == (0, "")
    assert page.read_text() == text
    for part in FIGURES:
        assert (tmp_path / "page" / f"{part}.png").stat().st_size > 5_000
        assert f"](benchmarks/{part}.png)" in text
        assert (ROOT / "docs" / "benchmarks" / f"{part}.png").is_file()


# torch before 2.13 warns about its own profiler.
@pytest.mark.filterwarnings("ignore:Warning. Profiler clears events:UserWarning")
def test_memory_is_what_the_step_holds_at_its_peak():
    """A layer whose output alone counts: 1,000 x 1,000 numbers, and as many for the gradient of the
    sum."""
    x = torch.zeros(1000, 1000)

    def side():
        torch.ones(1000, 1000).mul_(2).add(x)
        return [0.0]

    assert suites.peak_bytes(side) == 2 * 4 * 1000 * 1000
