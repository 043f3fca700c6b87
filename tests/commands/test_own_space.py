"""A space of the user's own, and images of the user's own: a file is run where the user names it,
and nowhere else; what does not fit is one line and status 2."""

import json
import re
import shutil
import sys

import numpy as np
import pytest
from conftest import rows
from PIL import Image
from processes import tool
from running import in_process, same_results
from test_train_rules import stopped

import mnas
from mnas.spaces import own
from mnas.training.run_directory import RunDirectory

QUICK = ("--limit-train", 300, "--limit-test", 60, "--batch-size", 30, "--epochs", 1)
QUICK += ("--threads", 1, "--lr", 0.02, "--mode", "supernet")
FILE = """
import pathlib
from torch import nn
import mnas

with pathlib.Path(__file__).with_name("ran").open("a") as ran:
    ran.write("x")


class Twice(nn.Sequential):
    def forward(self, x):
        return 2 * x


def build():
    widths = {f"k{k}": nn.Conv2d(1, 4, k, padding=k // 2) for k in (3, 5)}
    head = (Twice(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
    return nn.Sequential(mnas.Choice(widths, nested=True), nn.ReLU(), *head)


def mine():
    return mnas.SearchSpace(build, name="mine")


def wrong():
    return 7


def fails():
    return 1 / 0


def leaves():
    raise SystemExit


def two(width):
    return mine()


number = 3
"""


@pytest.fixture
def file(tmp_path):
    (tmp_path / "space.py").write_text(FILE)
    return tmp_path / "space.py"


@pytest.fixture
def command(monkeypatch, capsys):
    def run(name, *arguments):
        return in_process(monkeypatch, capsys, name, *arguments, validation=60)

    return run


def forgotten(file, monkeypatch):
    """As in a new process: whether the file is run again shows in a file beside it."""
    file.with_name("ran").unlink(missing_ok=True)
    for name in [name for name in sys.modules if name.startswith("mnas_space_")]:
        monkeypatch.delitem(sys.modules, name)
    return file.with_name("ran").exists


def refused(said):
    status, _out, error = said
    assert status == 2, error
    assert len(error.strip().splitlines()) == 1, error
    assert "Traceback" not in error
    return error


def test_a_space_of_ones_own_is_trained_scored_and_exported(command, file, tmp_path, monkeypatch):
    run, space = tmp_path / "run", f"{file}:mine"
    status, said, error = command("train", *QUICK, "--space", space, "--out", run)
    assert status == 0, error
    config = json.loads((run / "config.json").read_text())
    assert config["space"] == space
    assert config["space_sha256"] == own.read(space).sha256
    out = tmp_path / "rows.jsonl"
    ran = forgotten(file, monkeypatch)
    evaluate = ("evaluate", "--checkpoint", run, "--limit-test", 60, "--out", out)
    export = ("export", "--checkpoint", run, "--limit-test", 60, "--arch", "k5")
    export += ("--out", tmp_path / "exported")
    for wanted in (evaluate, export):
        for more in ((), ("--space", "mil4")):
            assert "name the file with --space" in refused(command(*wanted, *more))
    assert not ran()
    status, said, error = command(*evaluate, "--space", space)
    assert status == 0, error
    assert ran()
    assert [row["arch"] for row in rows(out)] == ["k3", "k5"]
    summary = json.loads((run / "summary.json").read_text())
    assert [r["test_top1"] for r in rows(out)] == [p["test_top1"] for p in summary["paths"]]
    ranked = ("rank", "--checkpoint", run, "--images", 20, "--out", tmp_path / "ranked")
    searched = ("search", "--checkpoint", run, "--trials", 2, "--limit-validation", 20)
    for wanted in (ranked, searched):
        assert "name the file with --space" in refused(command(*wanted))
    status, said, error = command(*ranked, "--space", space)
    assert status == 0, error
    assert [row["arch"] for row in rows(tmp_path / "ranked" / "rows.jsonl")] == ["k3", "k5"]
    status, said, error = command(*searched, "--space", space)
    assert status == 0, error
    moved = shutil.copy(file, tmp_path / "moved.py")  # the content is what counts
    status, said, error = command(*export, "--space", f"{moved}:mine")
    assert status == 0, error
    assert "largest difference to the sliced network: 0.00e+00" in said


def test_a_run_with_another_source_is_refused_and_nothing_is_run(
    command, file, tmp_path, monkeypatch
):
    run, space = tmp_path / "run", f"{file}:mine"
    assert command("train", *QUICK, "--space", space, "--out", run)[0] == 0
    before = {f: f.read_bytes() for f in run.iterdir()}
    ran = forgotten(file, monkeypatch)
    resume = ("train", "--resume", "--out", run)
    assert "give it again with --space" in refused(command(*resume))
    assert "was begun with --space" in refused(command(*resume, "--space", "mil4"))
    assert not ran()
    assert command(*resume, "--space", space)[0] == 0
    file.write_text(FILE + "\n# another\n")
    ran = forgotten(file, monkeypatch)
    assert "has changed since" in refused(command(*resume, "--space", space))
    evaluate = ("evaluate", "--checkpoint", run, "--space", space)
    assert "is not the file that the run was begun with: its SHA" in refused(command(*evaluate))
    assert not ran()
    assert {f: f.read_bytes() for f in run.iterdir()} == before


def test_a_directory_that_names_a_file_without_its_digest_runs_nothing(
    command, file, tmp_path, monkeypatch
):
    """A directory from elsewhere, whose manifest its maker has written to fit."""
    assert command("train", *QUICK, "--out", tmp_path / "run")[0] == 0
    directory = RunDirectory(tmp_path / "run")
    config, state = directory.config(), directory.load()
    evil = RunDirectory(tmp_path / "evil")
    evil.create({**config, "space": f"{file}:mine"})
    evil.save({key: state[key] for key in ("trainer", "weights")})
    ran = forgotten(file, monkeypatch)
    for arguments in (
        ("evaluate", "--checkpoint", evil.path),
        ("export", "--checkpoint", evil.path, "--arch", "k3", "--out", tmp_path / "e"),
        ("train", "--resume", "--out", evil.path),
        ("train", *QUICK, "--rule", "distilled", "--teacher", evil.path, "--out", tmp_path / "t"),
    ):
        assert "is unknown; expected one of mil4" in refused(command(*arguments))
    assert not ran()


def test_an_interrupted_run_goes_on_with_the_space_that_is_named(
    command, file, tmp_path, monkeypatch
):
    space = ("--space", f"{file}:mine")
    arguments = ("train", *QUICK, *space, "--augment", "crop_flip", "--resolution", 14)
    arguments += ("--checkpoint-every", 3)
    assert command(*arguments, "--out", tmp_path / "a")[0] == 0
    go_on = stopped(monkeypatch, at=7)
    assert command(*arguments, "--out", tmp_path / "b")[0] == 1
    go_on()
    assert command("train", "--resume", "--out", tmp_path / "b", *space)[0] == 0
    same_results(tmp_path / "a", tmp_path / "b")
    summary = json.loads((tmp_path / "b" / "summary.json").read_text())
    assert [p["macs"] for p in summary["paths"]] == [14**2 * 4 * k**2 + 40 for k in (3, 5)]


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ("none.py:mine", "cannot read .*none.py .No such file"),
        ("space.py", "'.*space.py' is unknown; expected path/to/file.py:function"),
        ("space.py:no", "space.py has no function 'no'; expected one without arguments"),
        ("space.py:number", "has no function 'number'"),
        ("space.py:wrong", "returned a int; expected a mnas.SearchSpace"),
        ("space.py:fails", "space.py:fails raised ZeroDivisionError at line 30: division by zero"),
        ("space.py:leaves", "raised SystemExit at line 34"),
        ("space.py:two", "raised TypeError at line 1: two.. missing 1 required"),
        ("broken.py:mine", "broken.py:mine raised SyntaxError at line 2"),
        (".:mine", "is unknown; expected path/to/file.py:function"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_in_a_line(space, message, command, file, tmp_path):
    (tmp_path / "broken.py").write_text("import mnas\ndef mine(:\n")
    error = refused(command("train", *QUICK, "--space", tmp_path / space, "--out", tmp_path / "r"))
    assert not (tmp_path / "r").exists()
    assert re.search(message, error), error
    error = refused(command("study", "--space", tmp_path / space, "--runs", tmp_path / "runs"))
    assert re.search(message, error), error


def images(root, side=8, classes=3, mode="RGB"):
    shape = (side, side, 3) if mode == "RGB" else (side, side)
    random = np.random.default_rng(0)
    for part, number in (("train", 40), ("test", 10)):
        for c in range(classes):
            folder = root / part / f"class{c:02}"
            folder.mkdir(parents=True)
            for n in range(number):
                pixels = random.integers(256, size=shape, dtype=np.uint8) // 4 + 15 * c
                Image.fromarray(pixels).save(folder / f"{n}.jpg")
    return root


@pytest.mark.parametrize(
    ("made", "more", "message"),
    [
        ({}, (), "nb_macro takes images of 3x32x32, folder has 3x8x8; .*--resolution"),
        ({"mode": "L"}, ("--resolution", 16), "takes images of 3x16x16, folder has 1x16x16"),
        ({"classes": 11}, ("--resolution", 16), "folder has the label 10, .* have 10 logits"),
        ({}, ("--resolution", 0), "resolution"),
        ({}, ("--space", "mil4", "--resolution", 8), "does not fit into the network for inputs"),
        ({}, ("--data-root", "/nowhere"), "cannot read /nowhere/train .No such file"),
    ],
)
def test_what_does_not_fit_a_folder_is_said_in_a_line(made, more, message, tmp_path, command):
    root = ("--dataset", "folder", "--data-root", images(tmp_path / "images", **made))
    out = tmp_path / "run"
    space = () if "--space" in more else ("--space", "nb_macro")
    if "--data-root" in more:
        root = root[:2]
    error = refused(command("train", *QUICK, *space, *root, *more, "--out", out))
    assert re.search(message, error), error
    assert not out.exists()


@pytest.mark.slow
def test_jpegs_are_trained_on_scored_and_exported(tmp_path):
    root = ("--data-root", images(tmp_path / "images", side=20))
    run = tmp_path / "run"
    arguments = ("--space", "nb_macro", "--dataset", "folder", "--resolution", 16, *root)
    arguments += ("--augment", "crop_flip", "--sampler", "fair", *QUICK)
    done = tool("train", *arguments, "--out", run)
    assert done.returncode == 0, done.stderr
    summary = json.loads((run / "summary.json").read_text())
    arch = summary["paths"][0]["arch"]
    wanted = ("--checkpoint", run, "--arch", arch, *root, "--limit-test", 30)
    done = tool("evaluate", *wanted, "--out", tmp_path / "rows")
    assert done.returncode == 0, done.stderr
    (row,) = rows(tmp_path / "rows")
    assert row["test_top1"] == summary["paths"][0]["test_top1"]
    small, full = (mnas.spaces.get("nb_macro", side) for side in (16, 32))
    assert row["macs"] == mnas.cost(small, small.parse(arch)).macs
    assert 0.2 < row["macs"] / mnas.cost(full, full.parse(arch)).macs < 0.3
    done = tool("export", *wanted, "--out", tmp_path / "exported")
    assert done.returncode == 0, done.stderr
    assert "largest difference to the sliced network: 0.00e+00" in done.stdout
    assert "Input: float32 (B, 3, 16, 16)" in (tmp_path / "exported" / "model.py").read_text()


def test_a_file_has_one_name_from_wherever_it_is_given(file, monkeypatch):
    (file.parent / "below").mkdir()
    (file.parent / "link.py").symlink_to(file)
    monkeypatch.chdir(file.parent / "below")
    for given in (
        "../space.py:mine",
        "../link.py:mine",
        "../below/../space.py:mine",
        f"{file}:mine",
    ):
        assert own.read(given).name == f"{file.resolve()}:mine"
    (file.parent / "round.py").symlink_to("round.py")
    for lost in ("~nobody-is-called-so/space.py:mine", "../round.py:mine"):
        with pytest.raises(ValueError, match=r"cannot (find|read) .*; expected path/to/file.py"):
            own.read(lost)


def test_a_model_that_is_no_sequence_is_told_the_formats_that_it_can_leave_in(
    monkeypatch, capsys, tmp_path
):
    (tmp_path / "own.py").write_text(
        FILE.replace(
            "    return nn.Sequential(mnas.Choice(widths, nested=True), nn.ReLU(), *head)",
            "    return Whole(nn.Sequential(mnas.Choice(widths, nested=True), nn.ReLU(), *head))",
        )
        + "\n\nclass Whole(nn.Module):\n    def __init__(self, body):\n        super().__init__()\n"
        "        self.body = body\n\n    def forward(self, x):\n        return self.body(x)\n"
    )
    space, run = ("--space", f"{tmp_path / 'own.py'}:mine"), tmp_path / "run"
    train = in_process(monkeypatch, capsys, "train", *QUICK, *space, "--out", run, validation=100)
    assert train[0] == 0
    line = ("export", "--checkpoint", run, *space, "--arch", "k5", "--limit-test", 60)
    line += ("--out", tmp_path / "exported", "--threads", 1)
    for wanted in ("source", "safetensors"):
        done = in_process(monkeypatch, capsys, *line, "--format", wanted, validation=100)
        assert done[0] == 2
        assert done[2] == (
            "error: cannot write the source of a Whole; put it into a nn.Sequential; or choose "
            "another --format: torch-export or onnx\n"
        )
        assert not (tmp_path / "exported").exists()
