"""Shared by the tests: the tools as importable modules, real MNIST once, and small networks."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import mnas
from mnas import checkpoint, data
from mnas.files import Folder

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))


@pytest.fixture(scope="session")
def mnist():
    return data.load("mnist")


@pytest.fixture
def small():
    """The space of four networks, narrow, so that many steps take little time."""
    return mnas.spaces.mil4(channels=(3, 5), hidden=7)


def batches(n, size=4, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(n):
        x = torch.randn(size, 1, 28, 28, generator=generator, dtype=dtype)
        yield x, torch.randint(10, (size,), generator=generator)


def randomise(module, seed=0):
    """Defaults (zero biases, unit affines) hide slicing errors: random numbers everywhere."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in [*module.parameters(), *(b for b in module.buffers() if b.is_floating_point())]:
            tensor.copy_(torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype) - 0.4)


def tool(name, *arguments, cwd=ROOT, **options):
    """A tool as a user runs it: a real process. Returns it with stdout and stderr as text."""
    command = [sys.executable, str(ROOT / "tools" / f"{name}.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=600, check=False, **options)


def rows(file):
    return [json.loads(line) for line in Path(file).read_text().splitlines()]


def forget(run, *names):
    """Files of a run, as if they had never been written."""
    Folder(run, checkpoint.FORMAT).write({}, remove=names)
