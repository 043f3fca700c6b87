"""`mnas rank alone` on real images: rows against networks one by one, kills, and what is wrong."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import ROOT, rows
from PIL import Image
from running import in_process

import mnas
from mnas import reference
from mnas.networks.untrained import az_nas, synflow, zico
from mnas.studies import alone, compute, scored
from mnas.training import data
from mnas.training.recipe import Recipe
from mnas.training.trainer import scratch_trainer

TABLE = reference.get("nb_macro")
NETWORKS = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images of ten classes: 400 to train on and validate."""
    folder, random = tmp_path_factory.mktemp("alone"), np.random.default_rng(0)
    for part, number in (("train", 40), ("test", 1)):
        for label in range(10):
            (folder / "images" / part / str(label)).mkdir(parents=True)
            for n in range(number):
                pixels = random.integers(256, size=(16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / "images" / part / str(label) / f"{n}.png")
    return folder


def options(*given):
    """Those given, and the others of every command here."""
    line = {"--dataset": "folder", "--data-root": "images", "--resolution": 16, "--half": "both"}
    line |= {
        "--networks": NETWORKS,
        "--threads": 1,
        **dict(zip(given[::2], given[1::2], strict=True)),
    }
    return [str(part) for pair in line.items() for part in pair]


def command(*given):
    return [sys.executable, str(ROOT / "tools" / "rank.py"), "alone", *options(*given)]


def run(folder, *arguments):
    return subprocess.run(
        command(*arguments), cwd=folder, capture_output=True, text=True, check=False
    )


def expected(folder, score, arch):
    """The values of a row, by the library."""
    space = mnas.spaces.get("nb_macro", 16)
    path, images = space.parse(arch), data.load("folder", folder / "images", 16)
    train, validation = (
        type(split)(split.images.contiguous(memory_format=torch.channels_last), split.labels)
        for split in (images.train, images.validation)
    )
    torch.manual_seed(1)
    network = mnas.standalone(space, path)
    if score == "synflow":
        return {"synflow": synflow(network, (3, 16, 16))}, 3
    if score == "zico":
        halves = [(train.images[i : i + 64], train.labels[i : i + 64]) for i in (0, 64)]
        return {"zico": zico(network, halves)}, 3 * 128
    if score == "az_nas":
        names = [str(3 + n) for n in range(8) if not isinstance(network[3 + n], torch.nn.Identity)]
        return az_nas(network, names, (3, 16, 16), 64, 1)._asdict(), 3 * 64
    recipe = Recipe(epochs=0.5, batch_size=128, lr=0.1, augment="crop_flip")
    trainer = scratch_trainer(space, path, train, validation, recipe, 1)
    while not trainer.finished:
        trainer.advance()
    last = trainer.rows[-1]
    values = {name: last[name] for name in ("val_loss", "val_top1", "train_loss")}
    return values, 3 * 128 * trainer.total_steps + len(validation)


@pytest.mark.slow
@pytest.mark.parametrize("score", ["synflow", "zico", "az_nas", "short"])
def test_rows_are_those_of_networks_one_by_one(folder, score):
    more = ("--epochs", 0.5, "--jobs", 2) if score == "short" else ()
    done = run(folder, "--score", score, "--start-seed", 1, *more, "--out", score)
    assert done.returncode == 0, done.stderr
    found = rows(folder / score / "rows.jsonl")
    space = mnas.spaces.get("nb_macro", 16)
    paths = scored.drawn([tuple(path) for path in TABLE.paths.tolist()], NETWORKS, 0)
    distinct = {TABLE.network[TABLE.rows[path]] for path in paths}
    assert [TABLE.network[TABLE.rows[space.parse(row["arch"])]] for row in found] == sorted(
        distinct
    )
    torch.set_num_threads(1)
    for row in found[::8]:
        values, images = expected(folder, score, row["arch"])
        assert row["values"] == values
        params, macs = mnas.cost(space, space.parse(row["arch"]))
        assert (row["params"], row["macs"], row["work"]) == (params, macs, macs * images)
        assert row["seconds"] > 0
    total = sum(row["work"] for row in found) / compute.full_training(TABLE)
    assert f"{total:.2g} full trainings" in done.stdout
    assert (folder / score / "both.md").read_text() == done.stdout
    again = run(folder, "--score", score, "--start-seed", 1, *more, "--out", score)
    assert (again.returncode, again.stdout) == (0, done.stdout), again.stderr
    assert rows(folder / score / "rows.jsonl") == found
    assert "git_commit" in json.loads((folder / score / "environment.json").read_text())


@pytest.mark.slow
def test_a_killed_command_goes_on(folder):
    whole = run(folder, "--score", "az_nas", "--out", "whole")
    assert whole.returncode == 0, whole.stderr
    process = subprocess.Popen(
        command("--score", "az_nas", "--out", "killed"),
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    file = folder / "killed" / "rows.jsonl"
    for _ in range(1200):
        if file.exists() and file.stat().st_size:
            os.kill(process.pid, signal.SIGKILL)
            break
        time.sleep(0.05)
    process.wait()
    before = rows(file)
    assert 0 < len(before) < len(rows(folder / "whole" / "rows.jsonl"))
    done = run(folder, "--score", "az_nas", "--out", "killed")
    assert (done.returncode, done.stderr.count("error")) == (0, 0), done.stderr
    after = rows(file)
    assert after[: len(before)] == before

    def same(rows):
        return [{**row, "seconds": 0} for row in rows]

    assert same(after) == same(rows(folder / "whole" / "rows.jsonl"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--start-seed", 5), "has scores with start_seed=0, not 5; give another --out"),
        (("--networks", 23), "has scores with networks=24, not 23; give another --out"),
        (("--networks", "some"), "--networks 'some'; expected all, or a whole number above 0"),
        (("--some", 7), "has scores with some=None, not 7; give another --out"),
        (("--epochs", 1), "--epochs 1 is for --score short; leave it out"),
        (("--space", "mil4"), "no published table of space 'mil4'; expected one of nb_macro"),
        (("--score", "zico"), "has scores with score='az_nas', not 'zico'; give another --out"),
        (("--score", "zico", "--out", "zico"), "has scores with data_sha256='0', not '"),
        (("--score", "short", "--data-root", "none", "--out", "x"), "none"),
        (("--out", "images/train/0/0.png"), "0.png is a file; give --out a directory"),
        (("--out", "images"), "images holds other files; give another --out"),
        (("--out", "/dev/null/x"), "cannot make /dev/null/x (Not a directory); give --out"),
    ],
)
def test_mistakes_are_one_line(given, message, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    settings = {"space": "nb_macro", "resolution": 16, "networks": NETWORKS, "some": None}
    settings |= {"seed": 0, "start_seed": 0, "threads": 1}
    more = {"begun": {"score": "az_nas", "dataset": None, "images": 64}}
    more["zico"] = {"score": "zico", "dataset": "folder", "images": 128, "data_sha256": "0"}
    for name, own in more.items():
        (folder / name).mkdir(exist_ok=True)
        alone.Rows(folder / name, {**settings, **own}).add([], {}, lambda: None)
    line = options("--score", "az_nas", "--out", "begun", *given)
    status, _, error = in_process(monkeypatch, capsys, "rank", "alone", *line)
    assert (status, error.count("\n")) == (2, 1), error
    assert message in error
    assert not (folder / "x").exists()


def test_some_networks_are_of_those_that_supernets_were_scored_on():
    """So that 100 short trainings can stand beside supernets."""
    few, more, many = (alone.networks(TABLE, 600, 0, some) for some in (50, 100, None))
    assert set(few) < set(more) < set(many)
    assert (len(few), len(more)) == (50, 100)
    paths = scored.drawn([tuple(path) for path in TABLE.paths.tolist()], 600, 0)
    known = {TABLE.network[TABLE.rows[path]] for path in paths}
    assert [TABLE.network[TABLE.rows[path]] for path in many] == sorted(known)
    assert all(path in TABLE.distinct.rows for path in many)
    assert len(alone.networks(TABLE, None, 0)) == 3969
    assert more != alone.networks(TABLE, 600, 1, 100)


def test_az_nas_is_assembled_by_ranks():
    parts = [[1, 5, 5, 2], [3.0, 1.0, -np.inf, 2.0]]
    first = np.log(np.array([1, 3.5, 3.5, 2]) / 4)
    second = np.log(np.array([4, 2, 1, 3]) / 4)
    np.testing.assert_allclose(alone.assembled(list(map(np.array, parts))), first + second)


def test_what_is_not_finite_ranks_last():
    paths = [(0,) * 8, (1,) * 8, (2,) * 8]
    made = [{"values": {"zico": value}} for value in (1.5, None, -3.0)]
    settings = {"score": "zico", "resolution": 16}
    found = alone.of_paths(TABLE, settings, made, paths)["ZiCo, 16 px"]
    values = found[[TABLE.rows[path] for path in paths]]
    assert values.argmin() == 1
    assert np.isfinite(values).all()
    assert np.isnan(found).sum() == len(TABLE) - 3
    settings = {"score": "short", "resolution": None, "epochs": 0.25}
    made = [{"values": {"val_loss": v, "val_top1": 0.1}} for v in (1.5, None, 2.0)]
    found = alone.of_paths(TABLE, settings, made, paths)["0.25 epochs from scratch, loss"]
    values = found[[TABLE.rows[path] for path in paths]]
    assert values.argsort().tolist() == [1, 2, 0]
