"""Commands run by the tests, and what two identical runs must share."""

import json
import runpy
import sys

import processes
import torch
from conftest import ROOT

from mnas.commands import process
from mnas.training import data, one_run

ARCHS = ["conv3x3-conv3x3", "conv3x3-conv5x5", "conv5x5-conv3x3", "conv5x5-conv5x5"]
QUICK = ("--limit-train", 1000, "--limit-test", 500, "--batch-size", 50, "--epochs", 2)
SWEEP = (
    "--mode",
    "scratch",
    "--arch",
    "all",
    "--threads",
    1,
    "--limit-test",
    300,
    "--lr",
    0.02,
    "--batch-size",
    50,
)


def in_process(monkeypatch, capsys, name, *arguments, validation=None):
    """A command inside this process; returns its status, stdout and stderr. validation: as for
    `processes.tool`."""
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    monkeypatch.setattr(
        process, "prepare", lambda: None
    )  # hooks and signals of this process are pytest's
    one_run._load.cache_clear()
    monkeypatch.setattr(data, "load", processes.remembering(validation))
    status = 0
    try:
        runpy.run_path(str(ROOT / "tools" / f"{name}.py"), run_name="__main__")
    except SystemExit as exit_:
        status = exit_.code or 0
    return status, *capsys.readouterr()


def same_results(a, b):
    """Everything that two identical runs must share: all files but the seconds."""
    for name in ("config.json", "metrics.jsonl", "checkpoint.pt"):
        assert (a / name).read_bytes() == (b / name).read_bytes(), name
    first, second = (json.loads((d / "summary.json").read_text()) for d in (a, b))
    del first["train_seconds"], second["train_seconds"]
    assert first == second


def same_sweeps(a, b):
    for name in (".", *ARCHS):
        same_results(a / name, b / name)
