"""The training loop and the run directory, in one process; real processes and kills are in
test_tools.py."""

import copy
import json
from dataclasses import replace

import pytest
import torch

import mnas
from mnas.space.sampler import FairSampler, UniformSampler
from mnas.storage.files import write_atomically
from mnas.storage.strict_json import FolderError
from mnas.training.data import Split, shifted
from mnas.training.run_directory import RunDirectory
from mnas.training.trainer import (
    DivergedError,
    Recipe,
    _options,
    _seeds,
    scratch_trainer,
    supernet_trainer,
)


@pytest.fixture
def splits(mnist):
    return Split(mnist.train.images[:640], mnist.train.labels[:640]), mnist.validation.first(100)


def make(kind, space, splits, seed=3, recipe=None, **options):
    recipe = recipe or Recipe(epochs=3, batch_size=64, lr=0.05)
    if kind == "scratch":
        return scratch_trainer(space, (1, 0), *splits, recipe, seed)
    return supernet_trainer(space, *splits, recipe, seed, sampler=kind, **options)


def finish(trainer):
    return [trainer.advance() for _ in range(trainer.total_steps - trainer.step)]


def equal(a, b):
    if torch.is_tensor(a):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


@pytest.mark.parametrize("stop", [0, 4, 10, 19, 30])
@pytest.mark.parametrize("kind", ["uniform", "fair", "scratch"])
def test_a_checkpoint_at_any_step_continues_bit_for_bit(kind, stop, small, splits, tmp_path):
    whole = make(kind, small, splits)
    losses = finish(whole)
    begun = make(kind, small, splits)
    first = [begun.advance() for _ in range(stop)]
    run = RunDirectory(tmp_path / "run")
    run.create({})
    run.save({"trainer": begun.state_dict()})
    torch.rand(3)  # what happens elsewhere in the process must not matter
    resumed = make(kind, small, splits)
    resumed.load_state_dict(run.load()["trainer"])
    assert first + finish(resumed) == losses
    assert equal(whole.state_dict(), resumed.state_dict())


def test_rows_hold_every_network_after_every_epoch(small, splits):
    trainer = make("uniform", small, splits)
    finish(trainer)
    archs = [small.format(p) for p in small.paths()]
    assert [(r["epoch"], r["arch"]) for r in trainer.rows] == [
        (e, a) for e in (1, 2, 3) for a in archs
    ]
    assert sum(r["updates"] for r in trainer.rows[-4:]) == trainer.total_steps == 30
    last = trainer.rows[-1]
    exported = mnas.export(trainer.module, (1, 1))
    score = mnas.evaluate(exported, *vars(splits[1]).values())
    assert (last["val_top1"], last["val_loss"]) == score


def test_fewer_validations_train_the_same_weights(small, splits):
    recipe = Recipe(epochs=3, batch_size=64, lr=0.05)
    often, seldom = (
        make("uniform", small, splits, recipe=replace(recipe, validate_every=n)) for n in (1, 2)
    )
    assert finish(often) == finish(seldom)
    assert equal(dict(often.module.state_dict()), dict(seldom.module.state_dict()))
    assert [r["epoch"] for r in seldom.rows] == [2] * 4 + [3] * 4
    for number in range(4):
        first, second, row = often.rows[number], often.rows[4 + number], seldom.rows[number]
        sums = first["train_loss"] * first["updates"] + second["train_loss"] * (
            second["updates"] - first["updates"]
        )
        assert row["train_loss"] == pytest.approx(sums / row["updates"])
        assert (row["val_loss"], row["updates"]) == (second["val_loss"], second["updates"])


@pytest.mark.parametrize("kind", ["uniform", "scratch"])
def test_bf16_computes_in_bfloat16_and_keeps_weights_in_float32(kind, small, splits):
    """The first step against the same one by hand: the exported path under autocast, stock SGD."""
    recipe = Recipe(epochs=1, batch_size=64, lr=0.05, precision="bf16")
    trainer = make(kind, small, splits, recipe=recipe)
    path = (1, 0) if kind == "scratch" else next(UniformSampler(small, _seeds(3)[1]))
    model = (
        copy.deepcopy(trainer.module) if kind == "scratch" else mnas.export(trainer.module, path)
    )
    batch = torch.randperm(640, generator=torch.Generator().manual_seed(_seeds(3)[2]))[:64]
    x, y = splits[0].images[batch], splits[0].labels[batch]
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(x)
    loss = torch.nn.functional.cross_entropy(logits.float(), y)
    loss.backward()
    optimizer = torch.optim.SGD(
        model.parameters(), **{**_options(recipe), "lr": trainer.scheduler.get_last_lr()[0]}
    )
    optimizer.step()
    assert trainer.advance() == loss.item()
    assert loss.item() != make(kind, small, splits).advance()
    trained = trainer.module if kind == "scratch" else mnas.export(trainer.module, path)
    assert equal(dict(trained.state_dict()), dict(model.state_dict()))
    assert {p.dtype for p in trainer.module.parameters()} == {torch.float32}


def test_training_may_end_within_an_epoch_and_is_validated_there(small, splits):
    recipe = Recipe(epochs=1.25, batch_size=64, lr=0.05)
    trainer = make("uniform", small, splits, recipe=recipe)
    assert trainer.total_steps == len(finish(trainer)) == 12
    assert sorted({row["epoch"] for row in trainer.rows}) == [1, 1.2]
    assert sum(row["updates"] for row in trainer.rows[-4:]) == 12
    tiny = make("scratch", small, splits, recipe=replace(recipe, epochs=0.001))
    assert (tiny.total_steps, len(finish(tiny)), len(tiny.rows)) == (1, 1, 1)


@pytest.mark.parametrize("kind", ["uniform", "scratch"])
def test_augmented_images_are_shifted_ones_and_continue_bit_for_bit(kind, small, splits):
    recipe = Recipe(epochs=2, batch_size=64, lr=0.05, augment="shift")
    whole, begun = (make(kind, small, splits, recipe=recipe) for _ in range(2))
    # The generator of torch is shared by all trainers of a process: one after the other, as runs
    # are.
    state = torch.get_rng_state()
    losses = finish(whole)
    torch.set_rng_state(state)
    first = [begun.advance() for _ in range(7)]
    saved = copy.deepcopy(begun.state_dict())
    resumed = make(kind, small, splits, recipe=recipe)
    resumed.load_state_dict(saved)
    assert first + finish(resumed) == losses
    torch.set_rng_state(state)
    batch = torch.randperm(640, generator=torch.Generator().manual_seed(_seeds(3)[2]))[:64]
    fresh = make(kind, small, splits, recipe=recipe)
    torch.set_rng_state(state)
    seen = []
    fresh.forward = lambda x, path: seen.append(x) or torch.zeros(len(x), 10, requires_grad=True)
    fresh.advance()
    torch.set_rng_state(state)
    assert torch.equal(seen[0], shifted(splits[0].images[batch]))


def test_the_policy_decides_whether_other_candidates_move(small, splits):
    """A fair round of two candidates takes the others in its second step; the first have momentum
    by then."""
    for policy, still in (("frozen", True), ("torch", False)):
        trainer = make("fair", small, splits, policy=policy)
        first = next(FairSampler(small, _seeds(3)[1]))
        trainer.advance()
        before = {
            key: value.clone()
            for key, value in mnas.export(trainer.module, first).state_dict().items()
        }
        trainer.advance()
        after = mnas.export(trainer.module, first).state_dict()
        assert all(
            torch.equal(after[key], before[key]) is still for key in ("0.weight", "3.weight")
        )


def test_a_network_may_begin_with_given_weights(small, splits):
    net = mnas.Supernet(small)
    start = mnas.export(net, (1, 0)).state_dict()
    recipe = Recipe(epochs=1, batch_size=64)
    trainer = scratch_trainer(small, (1, 0), *splits, recipe, 3, start=start)
    assert equal(dict(trainer.module.state_dict()), dict(start))
    assert trainer.advance() != make("scratch", small, splits, recipe=recipe).advance()


def test_a_supernet_may_watch_chosen_networks(small, splits):
    trainer = make(
        "uniform", small, splits, recipe=Recipe(epochs=1, batch_size=64), watched=[(1, 1), (0, 1)]
    )
    finish(trainer)
    assert [row["arch"] for row in trainer.rows] == ["conv5x5-conv5x5", "conv3x3-conv5x5"]


def test_different_seeds_differ(small, splits):
    losses = [make("uniform", small, splits, seed).advance() for seed in (0, 1)]
    assert losses[0] != losses[1]


def test_validation_changes_nothing(small, splits):
    trainer = make("uniform", small, splits)
    trainer.advance()
    before = trainer.state_dict()["weights"].copy()
    before = {k: v.clone() for k, v in before.items()}
    trainer.score(splits[1])
    assert equal(before, dict(trainer.module.state_dict()))
    assert trainer.module.training


def test_a_small_training_set_is_one_short_batch(small, splits):
    recipe = Recipe(epochs=2, batch_size=64)
    trainer = supernet_trainer(small, splits[0].first(10), splits[1], recipe, seed=0)
    assert (trainer.total_steps, len(finish(trainer))) == (2, 2)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_with_step_and_path(small, splits, poison):
    trainer = make("scratch", small, splits)
    for _ in range(3):
        trainer.advance()
    with torch.no_grad():
        trainer.module[-1].bias.fill_(poison)
    with pytest.raises(DivergedError, match="at step 4 on path conv5x5-conv3x3"):
        trainer.advance()
    assert trainer.step == 3


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    file = tmp_path / "checkpoint.pt"
    write_atomically(file, b"old")

    def full_disk(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(file, b"new")
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]


def test_damaged_and_foreign_checkpoints_are_refused(tmp_path):
    run = RunDirectory(tmp_path / "run")
    run.create({"seed": 1})
    assert run.load() is None
    run.save({"step": torch.tensor(1)})
    file = run.path / "checkpoint.pt"
    whole = file.read_bytes()

    class Evil:
        def __reduce__(self):
            return print, ("unpickled!",)

    torch.save({"format": "mnas-run-4", "x": Evil()}, tmp_path / "newer.pt")
    torch.save({"weights": {}}, tmp_path / "foreign.pt")
    newer, foreign = ((tmp_path / f"{name}.pt").read_bytes() for name in ("newer", "foreign"))
    other = RunDirectory(tmp_path / "other")
    other.create({"seed": 2})
    other.save({"step": torch.tensor(1)})
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for content, message in [
        (whole[:-50], "is damaged, or of another moment of this run"),
        (bytes(flipped), "is damaged, or of another moment of this run"),
        (b"", "is damaged or no checkpoint of mnas"),
        (foreign, "is damaged or no checkpoint of mnas"),
        (newer, r"is a checkpoint of another version of mnas \(mnas-run-4, expected mnas-run-3\)"),
        ((other.path / "checkpoint.pt").read_bytes(), "is a checkpoint of another run"),
    ]:
        file.write_bytes(content)
        with pytest.raises(FolderError, match=message):
            run.load()
    for name in ("checkpoint.pt", "manifest.json"):  # with its digests, too
        (run.path / name).write_bytes((other.path / name).read_bytes())
    with pytest.raises(FolderError, match=r"config\.json is damaged or of another place"):
        RunDirectory(run.path).load()
    (other.path / "checkpoint.pt").unlink()
    other.save({"step": torch.tensor(2)})  # a process that goes on writes it again
    assert other.load()["step"] == 2
    other.save({"step": torch.tensor(3)})
    (other.path / "checkpoint.pt").unlink()
    with pytest.raises(FolderError, match=r"checkpoint\.pt is missing; restore it"):
        other.load()


def test_existing_directories_are_not_overwritten(tmp_path):
    run = RunDirectory(tmp_path / "run")
    run.create({"seed": 1})
    with pytest.raises(FolderError, match="is not empty; --resume continues"):
        run.create({"seed": 1})
    with pytest.raises(FolderError, match="was begun with --seed 1, not 2"):
        run.check_config({"seed": 2})
    assert json.loads((run.path / "config.json").read_text())["environment"]["threads"] >= 1
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FolderError, match="is a file; give --out a directory"):
        RunDirectory(tmp_path / "file").create({})
