"""Killed at any write and continued = uninterrupted, in every mode. Real processes, real
SIGKILL."""

import json
import shutil

import processes
import pytest
from extent import share

SHORT = (
    "--limit-train",
    128,
    "--batch-size",
    64,
    "--epochs",
    2,
    "--threads",
    1,
    "--checkpoint-every",
    1,
)
MODES = {
    "supernet": ("--mode", "supernet", "--sampler", "fair"),
    "nested, masked": (
        "--mode",
        "supernet",
        "--space",
        "mil4_nested",
        "--execution",
        "masked",
        "--bn",
        "stored",
        "--keep-checkpoints",
        2,
    ),
    "mil9, bf16": (
        "--mode",
        "supernet",
        "--space",
        "mil9",
        "--precision",
        "bf16",
        "--augment",
        "shift",
    ),
    "scratch": ("--mode", "scratch", "--arch", "conv3x3-conv5x5"),
    "sweep": ("--mode", "scratch", "--arch", "all", "--validate-every", 2),
}
STUDY = ("--seeds", 1, "--limit-train", 64, "--limit-test", 20, "--threads", 1, "--jobs", 1)
KILLS = 1  # a mode; in the whole campaign at every write


def content(folder):
    """What two identical runs share: all files but the seconds, and the digests that know them."""
    found = {}
    for file in sorted(folder.rglob("*")):
        name = str(file.relative_to(folder))
        if (
            file.is_dir()
            or file.name in ("times.json", "manifest.json", ".lock")
            or file.suffix == ".png"
        ):
            continue
        if file.name == "summary.json":
            found[name] = {
                k: v for k, v in json.loads(file.read_text()).items() if k != "train_seconds"
            }
        else:
            found[name] = file.read_bytes()
    return found


@pytest.fixture(scope="module")
def run_tool():
    """A tool in a process of its own, killed at a write if asked to be: its status (negative: the
    signal), stdout, stderr, and how often it wrote."""

    def run(name, *arguments, step=None, timeout=120):
        forked = processes.context()
        ours, theirs = forked.Pipe(duplex=False)
        child = forked.Process(target=processes.alone, args=(name, arguments, step, theirs))
        child.start()
        theirs.close()
        try:
            if not ours.poll(timeout):
                child.kill()
                raise AssertionError(f"{name} {arguments} hangs")
            said = ours.recv()
        except EOFError:
            said = None
        child.join()
        return said or (child.exitcode, "", "", None)

    return run


@pytest.mark.slow
@pytest.mark.parametrize("mode", share(MODES, 3))
def test_a_run_that_is_killed_at_any_write_is_continued_bit_for_bit(mode, run_tool, tmp_path):
    arguments = (*MODES[mode], *SHORT)
    status, _, error, number = run_tool("train", *arguments, "--out", tmp_path / "whole")
    assert (status, error) == (0, "")
    expected = content(tmp_path / "whole")
    for step in share(range(number), KILLS):
        out = tmp_path / "killed"
        assert run_tool("train", *arguments, "--out", out, step=step)[0] == -9
        # Killed again, at another write, while it goes on; then to the end.
        begun = (out / "config.json").exists()
        again = ("--resume", "--checkpoint-every", 1) if begun else arguments
        if step % 3 == 0:
            run_tool("train", *again, "--out", out, step=step // 2)
            begun = (out / "config.json").exists()
        again = ("--resume", "--checkpoint-every", 1) if begun else arguments
        status, _, error, _ = run_tool("train", *again, "--out", out)
        assert (status, error) == (0, ""), (mode, step)
        assert content(out) == expected, (mode, step)
        assert not [p for p in out.rglob(".*") if p.name != ".lock"], (
            mode,
            step,
        )  # .lock: killed after the end
        shutil.rmtree(out)


@pytest.mark.slow
def test_a_study_that_is_killed_at_any_write_is_continued(run_tool, tmp_path):
    def study(folder, step=None):
        return run_tool(
            "study", *STUDY, "--runs", folder / "runs", "--out", folder / "out", step=step
        )

    def rows(folder):
        lines = (folder / "out" / "rows.jsonl").read_text().splitlines()
        differs = {"seconds", "started"}
        return [{k: v for k, v in json.loads(line).items() if k not in differs} for line in lines]

    status, _, error, number = study(tmp_path / "whole")
    assert (status, error) == (0, "")
    for step in share(range(number), KILLS):
        folder = tmp_path / str(step)
        assert study(folder, step)[0] == -9
        status, _, error, _ = study(folder)
        assert (status, error) == (0, ""), step
        assert rows(folder) == rows(tmp_path / "whole"), step
        shutil.rmtree(folder)
