"""A wheel in a fresh environment, away from the source: the main job runs, and what it lacks is
named."""

import json
import shutil
import site
import subprocess
import sys
import venv

import pytest
from conftest import ROOT

SHORT = ("--limit-train", "100", "--limit-test", "50", "--threads", "1", "--jobs", "1")


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """An environment with the wheel, and with the packages that it depends on from this one."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("mnas", "setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.delenv("PYTHONPATH", raising=False)  # of other tests: pip would find mnas there
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", "dist", "."], cwd=folder, check=True)
    for name in ("mnas", "setup.cfg"):  # the source is gone
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    venv.create(folder / "env", with_pip=False)
    python = folder / "env" / "bin" / "python"
    (wheel,) = (folder / "dist").glob("mnas-*.whl")
    subprocess.run([*pip, "--python", python, "install", "--no-deps", wheel], check=True)
    monkeypatch.undo()
    (packages,) = (folder / "env" / "lib").glob("python*/site-packages")
    # A line of a .pth file is a path alone: the editable mnas there is not found through it.
    (packages / "others.pth").write_text("\n".join(site.getsitepackages()))
    return folder / "env" / "bin"


def run(fresh, cwd, *command, without=()):
    """without: packages that are as if they were not installed."""
    environment = {"PATH": f"{fresh}:/usr/bin:/bin", "HOME": str(cwd)}
    if without:
        (cwd / "hidden").mkdir(exist_ok=True)
        (cwd / "hidden" / "sitecustomize.py").write_text(
            "from importlib.machinery import PathFinder\n"
            "real = PathFinder.find_spec\n"
            "def find_spec(name, path=None, target=None):\n"
            f"    return None if name in {without!r} else real(name, path, target)\n"
            "PathFinder.find_spec = find_spec\n"
        )
        environment["PYTHONPATH"] = str(cwd / "hidden")
    return subprocess.run(
        [fresh / command[0], *command[1:]],
        cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip


@pytest.mark.slow
def test_the_main_job_runs_from_a_wheel(fresh, tmp_path):
    done = run(fresh, tmp_path, "python", "-c", "import mnas; print(mnas.__file__)")
    assert str(fresh.parent) in done.stdout, done.stderr
    done = run(fresh, tmp_path, "mnas", "study", *SHORT, "--out", "out", "--runs", "runs")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["networks"] == 4
    assert (tmp_path / "out" / "accuracy.png").stat().st_size > 5_000
    (supernet,) = (tmp_path / "runs" / "supernet").iterdir()
    export = ("export", "--checkpoint", supernet, "--arch", "conv3x3-conv5x5", "--out", "net")
    done = run(fresh, tmp_path, "python", "-m", "mnas", *export)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "net" / "model.py").exists()
    done = run(fresh, tmp_path, "mnas", "benchmark")
    assert done.returncode == 2
    assert done.stderr.startswith("error: benchmark is not installed; clone the repository")


@pytest.mark.nightly
def test_what_extras_bring_is_named_where_it_is_missing(fresh, tmp_path):
    hidden = ("matplotlib", "scipy", "torchvision")
    done = run(fresh, tmp_path, "mnas", "study", *SHORT, without=hidden)
    expected = "error: matplotlib is not installed; pip install 'mnas[report]'\n"
    assert (done.returncode, done.stderr) == (2, expected)
    train = ("train", "--mode", "supernet", "--limit-train", "64", "--limit-test", "20")
    done = run(fresh, tmp_path, "mnas", *train, "--epochs", "1", "--out", "run", without=hidden)
    assert (done.returncode, done.stderr) == (0, "")
    done = run(fresh, tmp_path, "mnas", *train, "--dataset", "kmnist", without=hidden)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "torchvision is not installed" in done.stderr
    assert "mnas[data]" in done.stderr
