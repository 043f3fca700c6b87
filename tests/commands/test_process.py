"""Streams that are gone, full or closed do not end a training, and Ctrl-C is one line at any
moment; real processes."""

import itertools
import shlex
import signal
import subprocess
import sys

import pytest
from conftest import ROOT

TRAIN = (
    sys.executable,
    str(ROOT / "tools" / "train.py"),
    "--mode",
    "scratch",
    "--arch",
    "conv3x3-conv3x3",
    "--limit-train",
    "500",
    "--epochs",
    "0.5",
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("streams", "status", "message"),
    [
        ("2>errors | head -1; exit ${PIPESTATUS[0]}", 0, ""),
        (
            ">/dev/full 2>errors",
            1,
            "error: cannot write to standard output (No space left on device); what was written "
            "to files is complete\n",
        ),
        (">/dev/null 2>&-; status=$?; touch errors; exit $status", 0, ""),
        (">&- 2>errors", 0, ""),
    ],
)
def test_a_training_ends_well_whatever_becomes_of_its_streams(streams, status, message, tmp_path):
    command = (
        f"{shlex.join((*TRAIN, '--limit-test', '50', '--out', str(tmp_path / 'run')))} {streams}"
    )
    done = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, capture_output=True, timeout=120, check=False
    )
    assert done.returncode == status
    assert (tmp_path / "errors").read_text() == message
    assert (tmp_path / "run" / "summary.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["train", "evaluate", "search", "export", "study", "report", "benchmark", "freezing", "spaces"],
)
def test_ctrl_c_while_a_tool_begins_is_one_line(name, tmp_path):
    """At any import after the first of ours: before it, Python's own start answers. Moments are
    counted in imports and not in seconds, which differ from machine to machine."""
    arguments = {"train": TRAIN[2:], "evaluate": ("--checkpoint", "x"), "report": ("x",)}.get(
        name, ()
    )
    if name == "export":
        arguments = ("--checkpoint", "x", "--arch", "y", "--out", "z")
    command = [sys.executable, "-X", "importtime", str(ROOT / "tools" / f"{name}.py"), *arguments]
    for moment in (1, 100, 400, 900):
        process = subprocess.Popen(
            command,
            cwd=tmp_path,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        imported = (line.rsplit("|")[-1].strip() for line in process.stderr)
        assert any(module == "mnas.commands" for module in imported)
        for _ in itertools.islice(imported, moment):
            pass
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
        if process.returncode != 2:  # it has already said that x is no run
            said = [line for line in error.splitlines() if not line.startswith("import time:")]
            assert (process.returncode, said) == (130, ["error: interrupted"]), moment
