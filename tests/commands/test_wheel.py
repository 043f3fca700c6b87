"""A wheel in a fresh environment, away from the source: the main job runs, types are found, and
what it lacks is named."""

import json
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile

import pytest
from conftest import ROOT

SHORT = ("--limit-train", "100", "--limit-test", "50", "--threads", "1", "--jobs", "1")


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """An environment with a wheel that was built from the source distribution, and with the
    packages that it depends on from this one."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("mnas", "setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.delenv("PYTHONPATH", raising=False)  # of other tests: pip would find mnas there
    build = [sys.executable, "-m", "build", "--outdir", "dist", "."]
    subprocess.run(build, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    for name in ("mnas", "setup.cfg"):  # the source is gone
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    venv.create(folder / "env", with_pip=False)
    python = folder / "env" / "bin" / "python"
    (wheel,) = (folder / "dist").glob("mnas-*.whl")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--python", python, "install", "--no-deps", wheel], check=True)
    monkeypatch.undo()
    (packages,) = (folder / "env" / "lib").glob("python*/site-packages")
    # A line of a .pth file is a path alone: the editable mnas there is not found through it.
    (packages / "others.pth").write_text(
        "\n".join(path for path in sys.path if path.endswith("site-packages"))
    )
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
def test_both_distributions_have_all_files_of_the_package(fresh):
    (wheel,), (source,) = (
        list((fresh.parents[1] / "dist").glob(f"mnas-*{end}")) for end in (".whl", ".tar.gz")
    )
    in_wheel = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("mnas/")}
    listing = subprocess.run(
        ["git", "ls-files", "mnas"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert in_wheel == set(listing.stdout.split())
    with tarfile.open(source) as archive:
        in_source = {name.partition("/")[2] for name in archive.getnames()}
    assert in_wheel <= in_source


@pytest.mark.slow
def test_the_types_of_an_installed_package_are_found(fresh, tmp_path):
    """No type is Any: `assert_type` in what is checked fails for that."""
    script = shutil.copy(ROOT / "tests" / "commands" / "typed.py", tmp_path)
    mypy = [sys.executable, "-m", "mypy", "--strict", "--python-executable", fresh / "python"]
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run(
        [*mypy, script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    done = run(fresh, tmp_path, "python", "typed.py")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
def test_extras_run_from_a_wheel(fresh, tmp_path):
    train = ("train", "--mode", "supernet", "--limit-train", "64", "--limit-test", "20")
    log = ("--log", "tensorboard", "--threads", "1")
    done = run(fresh, tmp_path, "mnas", *train, "--epochs", "1", *log, "--out", "run")
    assert list((tmp_path / "run" / "tensorboard").iterdir())
    assert (done.returncode, done.stderr) == (0, "")
    for command in (
        ("search", "--checkpoint", "run", "--trials", "2", "--limit-validation", "20"),
        ("export", "--checkpoint", "run", "--arch", "random", "--format", "onnx", "--out", "net"),
    ):
        done = run(fresh, tmp_path, "mnas", *command)
        assert done.returncode == 0, done.stderr
    extras = (
        "from importlib.metadata import metadata as m; print(*m('mnas').get_all('Provides-Extra'))"
    )
    done = run(fresh, tmp_path, "python", "-c", extras)
    assert {"onnx", "search", "log", "report", "data", "safetensors", "dask"} <= set(
        done.stdout.split()
    )


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
