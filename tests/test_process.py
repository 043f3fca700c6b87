"""Streams that are gone, full or closed do not end a training; real processes."""

import shlex
import subprocess
import sys

import pytest
from conftest import ROOT

TRAIN = (
    sys.executable,
    str(ROOT / "tools" / "train.py"),
    "--mode",
    "supernet",
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
            "error: cannot write to standard output (No space left on device); what was written to files is complete\n",
        ),
        (">/dev/null 2>&-; status=$?; touch errors; exit $status", 0, ""),
        (">&- 2>errors", 0, ""),
    ],
)
def test_a_training_ends_well_whatever_becomes_of_its_streams(streams, status, message, tmp_path):
    command = f"{shlex.join((*TRAIN, '--limit-test', '50', '--out', str(tmp_path / 'run')))} {streams}"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, timeout=120, check=False)
    assert done.returncode == status
    assert (tmp_path / "errors").read_text() == message
    assert (tmp_path / "run" / "summary.json").exists()
