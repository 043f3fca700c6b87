"""What the commands promise to reach by their defaults, on all of MNIST."""

import json

import pytest
from extent import WHOLE
from processes import tool


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["supernet", "scratch"] if WHOLE else ["supernet"])
def test_the_default_jobs_reach_99_percent(mode, tmp_path):
    """At every push one epoch of the supernet, which reaches less; in the whole campaign all."""
    arguments = () if WHOLE else ("--epochs", 1, "--lr", 0.04)
    if mode == "scratch":
        arguments += ("--arch", "all")
    done = tool("train", "--mode", mode, *arguments, "--validate-every", 4, "--out", tmp_path / "a")
    assert done.returncode == 0, done.stderr
    paths = json.loads((tmp_path / "a" / "summary.json").read_text())["paths"]
    assert len(paths) == 4
    assert all(path["test_top1"] >= (0.99 if WHOLE else 0.97) for path in paths)
