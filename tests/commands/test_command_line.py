"""The command line: wrong ones are one line and status 2; --help needs no torch."""

import re
import subprocess
import sys

import pytest
from conftest import ROOT
from processes import tool
from running import ARCHS, in_process

import mnas
from mnas.commands import COMMANDS

BAD = {
    "no mode": ([], "--mode is missing; expected supernet or scratch"),
    "mode": (
        ["--mode", "nas"],
        'Invalid value "nas" for --mode. Choose from: "supernet", "scratch"',
    ),
    "option": (
        ["--mode", "supernet", "--epoch", 3],
        "Unknown option: --epoch. Did you mean --epochs?",
    ),
    "space": (["--mode", "supernet", "--space", "mil5"], "'mil5' is unknown; expected one of mil4"),
    "dataset": (
        ["--mode", "supernet", "--dataset", "cifar"],
        "'cifar' is unknown; expected one of mnist",
    ),
    "images": (
        ["--mode", "supernet", "--space", "nb_macro"],
        "nb_macro takes images of 3x32x32, mnist has 1x28x28",
    ),
    "bn of a net": (
        ["--mode", "scratch", "--arch", "all", "--bn", "stored"],
        "--bn stored is for --mode supernet",
    ),
    "missing arch": (
        ["--mode", "scratch"],
        "--arch is missing; expected all, random or one of conv3x3-conv3x3",
    ),
    "unknown arch": (
        ["--mode", "scratch", "--arch", "conv7x7-conv3x3"],
        "'conv7x7-conv3x3' is not in space mil4",
    ),
    "short arch": (
        ["--mode", "scratch", "--arch", "conv3x3"],
        "expected one of conv3x3-conv3x3, conv3x3-conv5x5",
    ),
    "arch of a supernet": (["--mode", "supernet", "--arch", ARCHS[0]], "is for --mode scratch"),
    "execution of a net": (
        ["--mode", "scratch", "--arch", "all", "--execution", "masked"],
        "is for --mode supernet",
    ),
    "zero": (
        ["--mode", "supernet", "--epochs", 0],
        'Invalid value "0.0" for --epochs. Must be > 0',
    ),
    "negative": (["--mode", "supernet", "--batch-size", -4], 'Invalid value "-4" for --batch-size'),
    "nan": (["--mode", "supernet", "--lr", "nan"], 'Invalid value "nan" for --lr'),
    "infinite": (["--mode", "supernet", "--lr", "inf"], 'Invalid value "inf" for --lr'),
    "no number": (["--mode", "supernet", "--seed", "x"], '"x" is no whole number. See --help.'),
    "seed with a fraction": (
        ["--mode", "supernet", "--seed", "1.5"],
        'Invalid value for --seed: "1.5" is no whole',
    ),
    "count with a fraction": (
        ["--mode", "supernet", "--batch-size", "1.5"],
        '"1.5" is no whole number',
    ),
    "count as a float": (
        ["--mode", "supernet", "--limit-train", "1e3"],
        '"1e3" is no whole number',
    ),
    "empty start": (
        ["--mode", "scratch", "--arch", ARCHS[0], "--start", ""],
        "--start is empty; give it a value",
    ),
    "empty out": (
        ["--mode", "supernet", "--out="],
        "--out is empty; give it a value or leave it out",
    ),
    "long name": (
        ["--mode", "supernet", "--out", "x" * 256],
        "a name in the path has 256 bytes, expected 255",
    ),
    "long path": (
        ["--mode", "supernet", "--out", "/".join(["x" * 200] * 30)],
        "File name too long",
    ),
    "negative seed": (["--mode", "supernet", "--seed", -1], 'Invalid value "-1" for --seed'),
    "file as out": (
        ["--mode", "supernet", "--out", "setup.cfg"],
        "setup.cfg is a file; give --out a directory",
    ),
    "unwritable out": (["--mode", "supernet", "--out", "/proc/run"], "cannot write to /proc/run"),
    "occupied out": (
        ["--mode", "supernet", "--out", "tests"],
        "tests is not empty; --resume continues",
    ),
    "resume nothing": (
        ["--resume", "--out", "tests"],
        "tests is not a run directory: it has no config.json",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_status_2(case, monkeypatch, capsys):
    arguments, message = BAD[case]
    status, _, error = in_process(monkeypatch, capsys, "train", *arguments)
    assert status == 2
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "train"])
def test_what_torchrun_starts_several_times_is_refused(command, monkeypatch, capsys):
    """Before anything is opened: each would write the same files. One process is any other."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "2")
    status, _, error = in_process(monkeypatch, capsys, command, "--no-such")
    assert (status, error.count("\n")) == (2, 1)
    assert f"error: {command} is for one process, torchrun has started 2; leave out" in error
    assert in_process(monkeypatch, capsys, command, "--help")[0] == 0
    monkeypatch.setenv("WORLD_SIZE", "1")
    status, _, error = in_process(monkeypatch, capsys, command, "--no-such")
    assert (status, "torchrun" in error) == (2, False)


def test_space_help_lists_the_spaces(monkeypatch, capsys):
    status, out, _ = in_process(monkeypatch, capsys, "train", "--space", "help")
    assert status == 0
    assert [line.split()[0] for line in out.splitlines()] == list(mnas.spaces.SPACES)
    (line,) = [line for line in out.splitlines() if line.startswith("nb_macro")]
    assert line.endswith("on images of 3x32x32, 6,561 networks.")


def test_bad_input_in_a_real_process_leaves_nothing(tmp_path):
    for arguments in (
        ["--mode", "scratch", "--arch", "nope"],
        ["--mode", "supernet", "--dataset", "cifar"],
    ):
        done = tool("train", *arguments, cwd=tmp_path)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_help_needs_no_torch():
    flags = {
        "freezing": "--only",
        "spaces": "--page",
        "benchmark": "--only",
        "study": "--seeds",
        "rank": "--networks",
        "search": "--sampler",
        "report": "rows.js",
    }
    for name in COMMANDS:
        script = (
            f"import sys, runpy; sys.modules['torch'] = None; sys.argv = ['{name}.py', '--help'];"
            f"runpy.run_path('tools/{name}.py', run_name='__main__')"
        )
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert flags.get(name, "--arch") in done.stdout


def test_one_command_has_all_the_others(tmp_path):
    def mnas_(*arguments):
        command = [sys.executable, "-m", "mnas", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    done = mnas_("--help")
    assert done.returncode == 0
    assert re.findall(r"^  (\w+)", done.stdout, flags=re.MULTILINE) == list(COMMANDS)
    assert mnas_("--version").stdout == "0.1.0\n"
    assert "Usage: mnas train" in mnas_("train", "--help").stdout
    done = mnas_("trian", "--help")
    assert (done.returncode, done.stderr) == (
        2,
        f"error: command 'trian' is unknown; expected one of {', '.join(COMMANDS)}\n",
    )
    done = mnas_("train", "--mode", "nas")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
