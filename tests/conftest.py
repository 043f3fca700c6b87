"""Shared by the tests: the tools as importable modules, real MNIST once, and small networks."""

import json
import os
import shutil
import sys
from pathlib import Path

if (
    "PYTEST_XDIST_WORKER" in os.environ
):  # tests share the cores: threads that wait for one are very slow
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

import mnas
from mnas.storage.files import Folder
from mnas.training import data, run_directory

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # for benchmarks, which is not installed


@pytest.fixture(scope="session")
def mnist():
    return data.load("mnist")


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium, for what people look at in one."""
    api = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    names = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
    program = next(filter(None, map(shutil.which, names)), None)
    if program is None:
        pytest.skip(f"no browser is installed; expected one of {', '.join(names)}")
    with api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield running
        running.close()


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
        for tensor in [
            *module.parameters(),
            *(b for b in module.buffers() if b.is_floating_point()),
        ]:
            tensor.copy_(torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype) - 0.4)


def rows(file):
    return [json.loads(line) for line in Path(file).read_text().splitlines()]


def forget(run, *names):
    """Files of a run, as if they had never been written."""
    Folder(run, run_directory.FORMAT).write({}, remove=names)


@pytest.fixture
def double():
    """Float64, where a sum in another order is equal to 1e-12."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)
