"""Borders of training and of spaces: wrong values are refused in one sentence, and nothing has
changed then."""

import copy
import dataclasses
import math
import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import mnas
from mnas.space.sampler import FairSampler, FixedSampler, UniformSampler
from mnas.training.data import Split
from mnas.training.trainer import Recipe, scratch_trainer, supernet_trainer

NAN, INF = math.nan, math.inf


def split(n, classes=10, seed=0, shape=(1, 28, 28)):
    generator = torch.Generator().manual_seed(seed)
    return Split(
        torch.randn(n, *shape, generator=generator),
        torch.randint(classes, (n,), generator=generator),
    )


def supernet(space, train=None, validation=None, recipe=None, seed=0, **options):
    recipe = recipe or Recipe(1, batch_size=4)
    return supernet_trainer(
        space, train or split(12), validation or split(6, seed=1), recipe, seed, **options
    )


def equal(a, b):
    """Equal states, tensors to the last bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and a == b


def shown(value):
    """How a message writes a value: numbers of numpy as Python's."""
    return re.escape(repr(value.item() if isinstance(value, np.generic) else value))


@pytest.mark.parametrize(
    ("name", "values"),
    {
        "epochs": (0, -1, NAN, INF, True, "1", None, 10**400, np.float64(0), np.array(2.0), 1j),
        "batch_size": (
            0,
            -1,
            1.5,
            2.0,
            NAN,
            True,
            np.bool_(True),
            "8",
            None,
            np.float64(8),
            np.array(8),
        ),
        "lr": (0, -0.1, NAN, INF, True, "0.1", np.float32("nan"), 10**400),
        "momentum": (-0.1, 1, 1.5, NAN, False, "0.9", None),
        "weight_decay": (-1e-9, INF, NAN, True, None, "0"),
        "precision": ("fp16", "", None, 32, ["fp32"]),
        "augment": ("flip", "", None, False, {}),
        "validate_every": (0, -1, 0.5, 1.0, INF, True, None),
    }.items(),
)
def test_a_recipe_refuses_what_is_out_of_range(name, values):
    for value in values:
        with pytest.raises(ValueError, match=rf"^{name}={shown(value)}; expected ") as caught:
            Recipe(**{"epochs": 1, name: value})
        assert "\n" not in str(caught.value)


def test_numbers_of_numpy_become_those_of_python():
    given = {
        "epochs": np.int32(2),
        "batch_size": np.int64(8),
        "lr": np.float64(0.1),
        "momentum": np.float32(0.5),
    }
    recipe = Recipe(
        **given, weight_decay=np.float16(0), precision=np.str_("bf16"), validate_every=np.uint8(3)
    )
    kinds = {name: type(value) for name, value in vars(recipe).items()}
    assert kinds == dict(
        epochs=int,
        batch_size=int,
        lr=float,
        momentum=float,
        weight_decay=float,
        precision=str,
        augment=str,
        validate_every=int,
    )
    assert recipe == Recipe(2, 8, 0.1, 0.5, 0.0, "bf16", validate_every=3)
    assert type(Recipe(2).epochs) is int  # as it was given
    assert type(Recipe(0.25).epochs) is float
    with pytest.raises(ValueError, match="lr=nan"):
        dataclasses.replace(recipe, lr=NAN)


def test_without_momentum_training_is_plain_sgd(small):
    recipe = Recipe(1, batch_size=4, lr=0.1, momentum=0, weight_decay=0.01)
    train = split(12)
    trainer = scratch_trainer(small, (0, 1), train, split(6), recipe, seed=0)
    twin = copy.deepcopy(trainer.module)
    for _ in range(3):
        (rate,) = trainer.scheduler.get_last_lr()
        loss = trainer.advance()
        batch = trainer.batches.order[(trainer.step - 1) * 4 : trainer.step * 4]
        expected = F.cross_entropy(twin(train.images[batch]), train.labels[batch])
        twin.zero_grad()
        expected.backward()
        torch.optim.SGD(twin.parameters(), lr=rate, weight_decay=0.01).step()
        assert loss == expected.item()
    assert equal(dict(trainer.module.state_dict()), dict(twin.state_dict()))
    supernet(small, recipe=recipe).advance()


@pytest.mark.parametrize("seed", [-1, 1.5, True, "1", None, NAN, np.float64(1), [1]])
def test_seeds_are_whole_numbers(small, seed):
    for make in (
        supernet,
        lambda space, seed: scratch_trainer(space, (0, 0), split(8), split(4), Recipe(1), seed),
    ):
        with pytest.raises(
            ValueError, match=rf"^seed={shown(seed)}; expected a whole number, 0 or above$"
        ):
            make(small, seed=seed)


def test_a_seed_of_numpy_is_the_same_seed(small):
    a, b = (supernet(small, seed=seed).module.state_dict() for seed in (3, np.int64(3)))
    assert equal(a, b)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bn": "x"}, r"^bn='x' is unknown; expected one of stored, recalibrate$"),
        ({"bn": None}, r"^bn=None is unknown"),
        ({"sampler": "x"}, r"^sampler='x' is unknown; expected one of uniform, fair$"),
        ({"sampler": ["fair"]}, r"^sampler=\['fair'\] is unknown"),
        ({"execution": "x"}, r"^execution 'x' is unknown"),
        ({"policy": "x"}, r"^policy 'x' is unknown"),
        ({"recipe": {"epochs": 1}}, r"^recipe is a dict; expected a mnas.train.Recipe$"),
        ({"watched": []}, r"^watched are 0 paths, 0 different; expected some, each once$"),
        ({"watched": [(0, 0), [0, 0]]}, r"^watched are 2 paths, 1 different"),
        ({"watched": [(0, 2)]}, r"^path \(0, 2\) has 2 at position 1"),
        ({"watched": [(0, True)]}, r"^path \(0, True\) has True"),
        ({"watched": (0, 0)}, r"^path 0 must have 2 indices"),
        ({"watched": "01"}, r"^watched is a str; expected a list of paths$"),
        ({"watched": 3}, r"^watched is a int; expected a list of paths$"),
    ],
)
def test_trainers_refuse_unknown_options(small, options, message):
    with pytest.raises(ValueError, match=message):
        supernet(small, **options)


def test_watched_paths_may_be_of_numpy_numbers(small):
    trainer = supernet(small, watched=[[np.int64(1), np.int64(0)]])
    while not trainer.finished:
        trainer.advance()
    assert [row["arch"] for row in trainer.rows] == ["conv5x5-conv3x3"]


@pytest.mark.parametrize("where", ["train", "validation"])
def test_splits_that_the_networks_cannot_learn(small, where):
    images = torch.zeros(4, 1, 28, 28)
    empty = Split(images[:0], torch.zeros(0, dtype=torch.int64))
    for wrong, message in [
        (empty, f"^the {where} split is empty; expected one image at least$"),
        (split(4, shape=(3, 32, 32)), f"takes images of 1x28x28, the {where} split has 3x32x32"),
        (
            Split(images, torch.tensor([0, 9, 10, 1])),
            f"^the {where} split has the label 10, the networks .* 10 logits",
        ),
        (
            Split(images, torch.tensor([0, -100, 0, 1])),
            f"^the {where} split has the label -100, the networks",
        ),
        ((images, torch.zeros(4)), f"^the {where} split is a tuple; expected a mnas.data.Split$"),
    ]:
        splits = {"train": split(4), "validation": split(4), where: wrong}
        for make in (
            supernet_trainer,
            lambda space, *a, **k: scratch_trainer(space, (0, 0), *a, **k),
        ):
            with pytest.raises(ValueError, match=message):
                make(small, **splits, recipe=Recipe(1), seed=0)
    with pytest.raises(ValueError, match=r"images of \(4, 1, 28, 28\) and labels of \(3,\)"):
        Split(images, torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"images of torch\.uint8"):
        Split(images.byte(), torch.zeros(4, dtype=torch.int64))


def test_networks_without_logits_are_not_trained():
    space = mnas.SearchSpace(
        lambda: nn.Sequential(mnas.Choice({"a": nn.Conv2d(1, 2, 3)})), name="maps"
    )
    assert space.output_shape == (2, 26, 26)
    with pytest.raises(
        ValueError, match=r"space maps put out \(B, \(2, 26, 26\)\); expected \(B, classes\)$"
    ):
        supernet(space)


def test_a_start_that_does_not_fit_is_named(small):
    start = mnas.export(mnas.Supernet(small), (0, 0)).state_dict()
    arguments = (split(8), split(4), Recipe(1, batch_size=4), 0)
    trainer = scratch_trainer(small, [np.int64(0), 0], *arguments, start=start)
    assert equal(dict(trainer.module.state_dict()), dict(start))
    lacking = {k: v for k, v in start.items() if k != "9.bias"}
    for path, wrong, message in [
        ((1, 0), start, r"^start does not fit conv5x5-conv3x3: .*size mismatch for 0.weight"),
        ((0, 0), lacking, r"^start does not fit conv3x3-conv3x3: .*9.bias"),
        ((0, 0), {}, r"^start does not fit conv3x3-conv3x3: .*Missing key"),
        ((0, 0), 3, r"^start does not fit conv3x3-conv3x3: "),
        ((0, 0), "weights.pt", r"^start does not fit conv3x3-conv3x3: "),
        ((0, 0), {**start, "9.bias": None}, r"^start does not fit conv3x3-conv3x3: "),
        ((0, 9), start, r"^path \(0, 9\) has 9 at position 1"),
        ("00", start, r"^architecture '00' is not in space mil4; expected one of"),
    ]:
        with pytest.raises(ValueError, match=message) as caught:
            scratch_trainer(small, path, *arguments, start=wrong)
        assert "\n" not in str(caught.value)


def damaged(state):
    """States that are not of the training that they are loaded into, each with a part of the
    reason."""
    group = state["optimizer"]["param_groups"][0]
    yield 3, "it is a int"
    yield {}, "it lacks 'weights'"
    for name in state:
        yield {k: v for k, v in state.items() if k != name}, f"it lacks '{name}'"
        yield {**state, name: "text"}, f"its '{name}' is a str"
    yield {**state, "step": 99}, "it is at step 99 of 6, expected one of 6"
    yield {**state, "step": -1}, "it is at step -1 of 6"
    yield {**state, "step": True}, "its 'step' is a bool"
    yield {**state, "step": 4}, "it is at step 4, with a scheduler at 3 and 3 updates"
    yield (
        {**state, "scheduler": {**state["scheduler"], "last_epoch": 2}},
        "it is at step 3, with a scheduler at 2",
    )
    yield {**state, "updates": {}}, "it is at step 3, with a scheduler at 3 and 0 updates"
    yield {**state, "updates": {"a": "3"}}, "unsupported operand"
    yield {**state, "rows": (1,)}, "its 'rows' is a tuple, expected a list"
    yield {**state, "batch_size": 5}, "its 'batch_size' is 5, expected 4"
    yield {**state, "images": 13}, "its 'images' is 13, expected 12"
    yield {**state, "sampler": {}}, "it is of a sampler with [], expected one with ['generator']"
    yield (
        {**state, "sampler": {"generator": torch.zeros(3)}},
        "the state of a generator does not fit",
    )
    yield {**state, "random": torch.zeros(3, dtype=torch.uint8)}, "RNG"
    yield {**state, "epoch_start": torch.zeros(3, dtype=torch.uint8)}, "RNG"
    yield {**state, "weights": {}}, "Missing key(s) in state_dict"
    last = {**state["weights"], "model.9.bias": torch.zeros(3)}
    yield {**state, "weights": last}, "size mismatch for model.9.bias"
    yield {**state, "optimizer": {}}, "param_groups"
    for name, value in [("momentum", 0.5), ("weight_decay", 0.0), ("max_lr", 3.0)]:
        optimizer = {**state["optimizer"], "param_groups": [{**group, name: value}]}
        yield (
            {**state, "optimizer": optimizer},
            f"its optimizer has {name} {value}, expected {group[name]}",
        )


def test_a_state_of_another_training_changes_nothing(small):
    def trainer(steps, seed=0):
        made = supernet(small, recipe=Recipe(2, batch_size=4), seed=seed)
        for _ in range(steps):
            made.advance()
        return made

    state = copy.deepcopy(trainer(3).state_dict())
    other = trainer(2, seed=5)
    before = copy.deepcopy(other.state_dict())
    for wrong, reason in damaged(state):
        with pytest.raises(ValueError, match=re.escape(reason)) as caught:
            other.load_state_dict(wrong)
        assert str(caught.value).startswith("the state is not of this training: ")
        assert str(caught.value).endswith("; give it the same arguments")
        assert "\n" not in str(caught.value)
        assert equal(dict(other.state_dict()), dict(before)), reason
    other.advance()  # goes on, and as if nothing had been tried
    assert equal(dict(other.state_dict()), dict(trainer(3, seed=5).state_dict()))
    other.load_state_dict(state)
    assert equal(dict(other.state_dict()), state)
    uninterrupted = trainer(6)
    while not other.finished:
        other.advance()
    assert equal(dict(other.state_dict()), dict(uninterrupted.state_dict()))


def test_samplers_take_the_states_of_their_own_kind(small):
    wide = mnas.spaces.plain(candidates=3, channels=(2, 2), hidden=3)
    uniform, fair, fixed = UniformSampler(small, 0), FairSampler(small, 0), FixedSampler((0, 1))
    foreign = FairSampler(wide, 0)
    foreign.left = [[2], []]
    for sampler, state in [
        (uniform, fair.state_dict()),
        (uniform, {}),
        (uniform, None),
        (uniform, {"generator": "x"}),
        (fair, uniform.state_dict()),
        (fair, foreign.state_dict()),
        (fair, {**fair.state_dict(), "left": None}),
        (fair, {**fair.state_dict(), "left": [[]]}),
        (fair, {**fair.state_dict(), "left": [3, 4]}),
        (fair, {"left": [[0], [1]], "generator": torch.zeros(2)}),
        (fixed, uniform.state_dict()),
    ]:
        before = copy.deepcopy(sampler.state_dict())
        with pytest.raises(ValueError, match="expected "):
            sampler.load_state_dict(state)
        assert equal(sampler.state_dict(), before)
