"""`mnas rank` on a real, short supernet of NAS-Bench-Macro: rows against networks one by one,
kills, and what is wrong."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import ROOT, rows
from PIL import Image

import mnas
from mnas import reference
from mnas.networks.cost import shared_macs
from mnas.storage.files import Folder
from mnas.studies import compared, compute, ranking, scored
from mnas.training import data
from mnas.training.saved import open_run

QUICK = ("--images", 30, "--bn-images", 20, "--threads", 1)


def tool(name, *arguments, cwd):
    command = [sys.executable, ROOT / "tools" / f"{name}.py", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with images of ten classes, and a supernet of one epoch on them."""
    folder, random = tmp_path_factory.mktemp("rank"), np.random.default_rng(0)
    for part, number in (("train", 40), ("test", 1)):
        for label in range(10):
            (folder / "images" / part / str(label)).mkdir(parents=True)
            for n in range(number):
                pixels = random.integers(256, size=(16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / "images" / part / str(label) / f"{n}.png")
    done = tool(
        *("train", "--mode", "supernet", "--space", "nb_macro", "--dataset", "folder"),
        *("--data-root", "images", "--resolution", 16, "--epochs", 1, "--batch-size", 60),
        *("--threads", 1, "--out", "run"),
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    return folder


def rank(folder, *arguments):
    command = ("rank", "--checkpoint", "run", "--data-root", "images", *QUICK, *arguments)
    return tool(*command, cwd=folder)


@pytest.mark.slow
def test_rows_equal_networks_scored_one_by_one_and_the_command_continues(trained):
    wanted = ("--networks", 120, "--out", "whole")
    done = rank(trained, *wanted)
    assert done.returncode == 0, done.stderr
    found = rows(trained / "whole" / "rows.jsonl")
    assert len(found) == 120
    run = open_run(trained / "run")
    loaded = data.load("folder", trained / "images", 16)
    channels_last = torch.channels_last
    images = loaded.validation.images[:30].contiguous(memory_format=channels_last)
    bn_images = loaded.train.images[:20].contiguous(memory_format=channels_last)
    torch.set_num_threads(1)
    net = run.supernet()
    folder = Folder(trained / "whole", scored.FORMAT)
    correct = scored.read_correct(folder, 120)
    assert correct.shape == (120, 30)
    for row in found[::17]:
        path = run.space.parse(row["arch"])
        network = mnas.recalibrate(mnas.export(net, path), bn_images)
        score = mnas.evaluate(network, images, loaded.validation.labels[:30])
        assert (row["val_top1"], row["val_loss"]) == (score.top1, score.loss)
        assert (row["params"], row["macs"]) == mnas.cost(run.space, path)
        with torch.no_grad():
            right = network.eval()(images).argmax(1) == loaded.validation.labels[:30]
        assert correct[found.index(row)].tolist() == right.tolist()
    assert correct.mean(1).tolist() == pytest.approx([row["val_top1"] for row in found])
    assert "| supernet, loss" in done.stdout
    assert (trained / "whole" / "choosing.md").read_text() == done.stdout
    table = {row["score"]: row for row in rows(trained / "whole" / "choosing.jsonl")}

    training = json.loads((trained / "whole" / "supernet.json").read_text())
    assert training["config"] == run.config
    assert training["steps"] == len(loaded.train.images) // 60 == 6
    of_path = compute.macs_of_step(run.space, run.config)
    assert training["macs"] == pytest.approx(3 * of_path * 60 * training["steps"])
    assert training["seconds"] == run.directory.seconds() > 0
    full = f"{training['macs'] / (3 * 50 * 50_000 * 105_660_928):.2g}"
    assert f"| {full} " in done.stdout.partition("| training, 6 steps")[2].partition("\n")[0]

    # The same numbers from rows alone.
    reftable = reference.get("nb_macro")
    choosing, _ = ranking.halves(3969)
    of_network = {}
    for row in found:
        network = reftable.network[reftable.rows[run.space.parse(row["arch"])]]
        if network in choosing:
            of_network.setdefault(network, []).append(-row["val_loss"])
    numbers = sorted(of_network)
    assert table["supernet, loss"]["networks"] == len(numbers)
    scores = [np.mean(of_network[n]) for n in numbers]
    truth = reftable.distinct.accuracies.mean(1)[numbers]
    assert table["supernet, loss"]["tau"] == pytest.approx(ranking.tau(scores, truth))

    # Killed in the middle, and continued: the same rows.
    command = [sys.executable, ROOT / "tools" / "rank.py", "--checkpoint", "run"]
    command += ["--data-root", "images", *QUICK, "--networks", 120, "--out", "killed"]
    process = subprocess.Popen(
        list(map(str, command)), cwd=trained, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    for _ in range(600):
        if (trained / "killed" / "rows.jsonl").exists():
            os.kill(process.pid, signal.SIGKILL)
            break
        time.sleep(0.05)
    process.wait()
    assert len(rows(trained / "killed" / "rows.jsonl")) in (81, 120)
    done = rank(trained, "--networks", 120, "--out", "killed")
    assert done.returncode == 0, done.stderr
    for name in ("rows.jsonl", "choosing.jsonl", "settings.json", "correct.npz"):
        whole, killed = (trained / f / name for f in ("whole", "killed"))
        assert whole.read_bytes() == killed.read_bytes(), name

    done = rank(trained, "--networks", 120, "--out", "whole", "--half", "reporting")
    assert done.returncode == 0, done.stderr
    assert "(half: reporting)" in done.stdout
    assert (trained / "whole" / "choosing.md").exists()

    for arguments, message in (
        (("--networks", 119), "has scores with networks=120, not 119; give another --out"),
        (("--networks", 120, "--bn", "stored"), "scores with bn_images=20, not None; give another"),
        (("--networks", "many"), "--networks 'many'; expected all, or a whole number above 0"),
    ):
        done = rank(trained, *arguments, "--out", "whole")
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert message in done.stderr
    other = trained / "images" / "test" / "0" / "other.png"
    shutil.copy(other.with_name("0.png"), other)
    done = rank(trained, "--networks", 120, "--out", "whole")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "run was begun with other data than folder has now" in done.stderr
    other.unlink()
    done = rank(trained, "--networks", 9, "--out", "few")
    assert done.returncode == 2
    assert "expected 20 at least: raise --networks" in done.stderr
    assert len(rows(trained / "few" / "rows.jsonl")) == 9  # the scores stay

    folder.write({}, remove=["correct.npz"])  # as from before it was kept
    assert scored.read_correct(folder, 120) is None
    done = rank(trained, "--networks", 120, "--out", "whole")
    assert done.returncode == 0, done.stderr
    assert "correct.npz" not in folder.names()


def test_shared_macs_equal_a_naive_count_of_beginnings():
    """NAS-Bench-Macro: what a layer costs depends on its candidate alone, and the head is each
    path's own."""
    space = mnas.spaces.get("nb_macro", 16)
    zero = (0,) * 8

    def of(layer, candidate):
        path = tuple(candidate if n == layer else 0 for n in range(8))
        return mnas.cost(space, path).macs - mnas.cost(space, zero).macs

    def fixed(layer):  # identities that change the shape
        width, side = {0: (64, 8), 2: (128, 4), 5: (256, 2)}.get(layer, (0, 0))
        return width * width // 2 * side**2

    paths = [(1, 1, 2, a, 0, b, 2, c) for a in range(3) for b in range(3) for c in range(3)]
    total = 27 * 16**2 * 32 + len(paths) * (256 * 1280 * 2**2 + 1280 * 10)
    for layer in range(8):
        for beginning in {path[: layer + 1] for path in paths}:
            total += fixed(layer) + of(layer, beginning[-1])
    assert shared_macs(space, paths) == total
    assert shared_macs(space, paths[:1]) == mnas.cost(space, paths[0]).macs


def test_paths_are_drawn_by_the_seed_without_repetition():
    paths = [tuple(path) for path in reference.get("nb_macro").paths.tolist()]
    some = scored.drawn(paths[::-1], 600, 3)
    assert some == sorted(set(some)) == scored.drawn(paths, 600, 3)
    assert len(some) == 600
    assert some != scored.drawn(paths, 600, 4)
    assert scored.drawn(paths, None, 0) == scored.drawn(paths, 10_000, 0) == paths


def test_published_accuracies_as_scores_reach_the_ceiling_and_a_smooth_truth_is_found():
    table = reference.get("nb_macro")
    paths = [tuple(path) for path in table.paths.tolist()]
    made = [
        {"val_loss": 100 - accuracy, "val_top1": accuracy / 100}
        for accuracy in table.accuracies[:, 0]
    ]
    found = compared.compare(table, compared.of_paths(table, made, paths), "reporting")
    by_name = {row["score"]: row for row in found}
    ours, smooth = by_name["supernet, loss"], by_name["supernet, smoothed loss"]
    assert ours["networks"] == 1985
    assert by_name["supernet, top-1"]["tau"] == pytest.approx(ours["tau"])
    assert ours["tau"] > by_name["one training (ceiling)"]["tau"]  # it is a part of the truth
    assert ours["worth"][0] == np.inf
    assert 0.85 < smooth["tau"] < 0.88
    assert ours["tau_interval"][0] < ours["tau"] < ours["tau_interval"][1]
    assert json.dumps(by_name["depth"]["within"]) == "0.0"


def test_a_partly_smoothed_loss_is_between_the_logarithm_and_what_is_linear_in_it():
    table = reference.get("nb_macro")
    paths = scored.drawn([tuple(path) for path in table.paths.tolist()], 300, 1)
    losses = 1 + np.random.default_rng(0).random(300)
    made = [{"val_loss": loss, "val_top1": 0.5} for loss in losses]
    found = compared.of_paths(table, made, paths)
    where = [table.rows[path] for path in paths]
    expected = 0.7 * found["smoothed loss"][where] - 0.3 * np.log(losses)
    np.testing.assert_allclose(found["partly smoothed loss"][where], expected)


def test_one_path_of_each_network_is_drawn_from_those_that_were_scored():
    table = reference.get("nb_macro")
    paths = scored.drawn([tuple(path) for path in table.paths.tolist()], 2000, 1)
    made = [{"val_loss": 1 + n / 1e4, "val_top1": 0.5} for n in range(2000)]
    found = compared.of_paths(table, made, paths)
    one, every = found["loss, one path"], found["loss"]
    kept = np.flatnonzero(~np.isnan(one))
    assert np.array_equal(one[kept], every[kept])
    of_network = {}
    for path in paths:
        of_network.setdefault(table.network[table.rows[path]], []).append(table.rows[path])
    assert sorted(table.network[kept]) == sorted(of_network)  # one of each
    places = [of_network[table.network[row]].index(row) for row in kept]
    twins = [
        place
        for row, place in zip(kept, places, strict=True)
        if len(of_network[table.network[row]]) == 2
    ]
    assert 0.4 < np.mean(twins) < 0.6  # neither always the first nor the last
    again = compared.of_paths(table, made, paths)["loss, one path"]
    assert np.array_equal(one, again, equal_nan=True)
