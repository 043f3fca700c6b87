"""Images other than those that a run was trained with: no command reads a number off them."""

import re
import shlex
import signal

import numpy as np
import pytest
from PIL import Image
from test_own_space import QUICK, refused
from test_own_space import command as command

from mnas.training.trainer import Trainer

SPACE = """
from torch import nn
import mnas


def build():
    convolutions = {f"k{k}": nn.Conv2d(3, 4, k, padding=k // 2) for k in (3, 5)}
    head = (nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    return nn.Sequential(mnas.Choice(convolutions), *head)


def mine():
    return mnas.SearchSpace(build, name="mine", input_shape=(3, 9, 9))
"""


def images(root, seed):
    random = np.random.default_rng(seed)
    for part, number in (("train", 40), ("test", 5)):
        for label in "ab":
            (root / part / label).mkdir(parents=True)
            for n in range(number):
                pixels = random.integers(256, size=(9, 9, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / label / f"{n}.png")
    return root


@pytest.fixture
def made(tmp_path):
    """The arguments for a space and for a folder, and another folder with images of its form."""
    (tmp_path / "space.py").write_text(SPACE)
    own = ("--space", f"{tmp_path / 'space.py'}:mine")
    return own, images(tmp_path / "own", 0), images(tmp_path / "other", 1)


def test_no_command_scores_a_run_on_other_images(made, command, tmp_path):
    space, own, other = made
    run = tmp_path / "run"
    arguments = ("--dataset", "folder", "--data-root", own, *QUICK, *space, "--out", run)
    assert command("train", *arguments)[0] == 0
    for name, more in (
        ("evaluate", ()),
        ("search", ("--trials", 2)),
        ("export", ("--arch", "k3")),
        ("rank", ()),
    ):
        out = tmp_path / f"of_{name}"
        wanted = (name, "--checkpoint", run, *space, *more, "--threads", 1, "--out", out)
        wanted += ("--data-root",)
        error = refused(command(*wanted, other))
        assert "was begun with other data than folder has now (SHA-256" in error
        assert "give --data-root those of the run" in error
        assert not out.exists()
        status, _, error = command(*wanted, own)
        assert status == 0, error
        assert out.exists()
    search = ("search", "--checkpoint", run, *space, "--data-root", own, "--trials", 2)
    error = refused(command(*search, "--storage", tmp_path / "log", "--out", tmp_path / "log"))
    assert "the front would be written over the search; give them two files" in error


def test_runs_of_other_images_are_none_of_a_study(made, command, tmp_path):
    space, own, other = made
    study = ("study", *space, "--dataset", "folder", "--seeds", 1, "--epochs", 0.5, "--jobs", 1)
    study += ("--threads", 1, "--runs", tmp_path / "runs", "--out", tmp_path / "results")
    status, _, error = command(*study, "--data-root", own)
    assert status == 0, error
    before = {file: file.read_bytes() for file in (tmp_path / "results").glob("*.jsonl")}
    error = refused(command(*study, "--data-root", other))
    assert "was begun with other data than folder has now" in error
    assert "choose another directory: --runs" in error
    assert before == {file: file.read_bytes() for file in (tmp_path / "results").glob("*.jsonl")}


def test_what_a_stopped_run_says_continues_it(made, command, tmp_path, monkeypatch):
    space, *_ = made
    monkeypatch.chdir(tmp_path)
    arguments = ("--dataset", "folder", "--data-root", "own", *QUICK, *space, "--out", "run")
    advance = Trainer.advance
    monkeypatch.setattr(
        Trainer, "advance", lambda self: (advance(self), signal.raise_signal(signal.SIGINT))[0]
    )
    status, _, error = command("train", *arguments)
    monkeypatch.setattr(Trainer, "advance", advance)
    assert status == 130, error
    how = re.search(r"continue with (--resume .*)", error)[1]
    assert how.endswith("--data-root own")
    assert command("train", *shlex.split(how))[0] == 0


def test_one_value_has_no_variance(made, command, tmp_path):
    space, own, _ = made
    run, images = tmp_path / "run", ("--data-root", own)
    train = ("train", "--mode", "supernet", *space, "--dataset", "folder", *images, "--threads", 1)
    train += ("--resolution", 1, "--limit-train", 20, "--epochs", 1, "--batch-size")
    error = refused(command(*train, 1, "--out", tmp_path / "one"))
    assert "a BatchNorm gets one value a channel, which has no variance; raise --batch" in error
    assert command(*train, 10, "--out", run)[0] == 0
    rank = ("rank", "--checkpoint", run, *space, *images, "--threads", 1, "--bn-images", 1)
    error = refused(command(*rank, "--out", tmp_path / "ranked"))
    assert "expected two values a channel: give it more images" in error
