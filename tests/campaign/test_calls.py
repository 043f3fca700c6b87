"""Hundreds of wrong calls of the library: a ValueError or TypeError in words, and the next right
call works."""

import math

import pytest
import torch
from conftest import batches
from torch import nn

import mnas
from mnas.studies import statistics
from mnas.training import data, trainer

WRONG = (
    None,
    True,
    -1,
    0,
    1.5,
    math.nan,
    math.inf,
    10**30,
    "",
    "x",
    b"x",
    (),
    [],
    {},
    object(),
    int,
    len,
    1j,
    torch.zeros(0),
    torch.zeros(2, 3),
    torch.full((2, 1, 28, 28), math.nan),
    nn.ReLU(),
    {"a": 1},
    [[1]],
    (9, 9),
    (0,),
)


def calls(space):
    """Name: a function, and its right arguments by name."""
    net = mnas.Supernet(space)
    path = (0, 1)
    images, labels = next(batches(1, 8))
    split = data.Split(images, labels)
    data_ = {
        "train": split,
        "validation": split,
        "recipe": trainer.Recipe(1, batch_size=4),
        "seed": 0,
    }

    def gradient_mask(masks, statistics):
        return mnas.GradientMask(nn.Linear(3, 2), masks, statistics=statistics)

    masks = {"weight": torch.ones(2, 3, dtype=torch.bool)}
    return {
        "Supernet": (mnas.Supernet, {"space": space, "execution": "sliced"}),
        "SearchSpace": (
            mnas.SearchSpace,
            {"build": space.build, "name": "n", "input_shape": (1, 28, 28), "about": ""},
        ),
        "Choice": (
            mnas.Choice,
            {"candidates": {"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)}, "nested": False},
        ),
        "net": (net, {"x": images, "path": path}),
        "subnet": (net.subnet, {"path": path}),
        "check": (space.check, {"path": path}),
        "format": (space.format, {"path": path}),
        "parse": (space.parse, {"arch": space.format(path)}),
        "cost": (mnas.cost, {"space": space, "path": path}),
        "export": (mnas.export, {"net": net, "path": path}),
        "standalone": (mnas.standalone, {"space": space, "path": path}),
        "evaluate": (
            mnas.evaluate,
            {"model": net.subnet(path), "images": images, "labels": labels},
        ),
        "evaluate_paths": (
            mnas.evaluate_paths,
            {"net": net, "paths": [path], "images": images, "labels": labels, "bn_images": images},
        ),
        "recalibrate": (
            mnas.recalibrate,
            {"model": net.subnet(path), "images": images, "batch_size": 4},
        ),
        "UniformSampler": (mnas.UniformSampler, {"space": space, "seed": 0}),
        "FairSampler": (mnas.FairSampler, {"space": space, "seed": 0}),
        "GradientMask": (gradient_mask, {"masks": masks, "statistics": False}),
        "MaskedOptimizer": (
            mnas.MaskedOptimizer,
            {"optimizer_class": torch.optim.SGD, "parameters": net, "policy": "frozen", "lr": 0.1},
        ),
        "Split": (data.Split, {"images": images, "labels": labels}),
        "load": (data.load, {"dataset": "mnist"}),
        "Recipe": (
            trainer.Recipe,
            {
                "epochs": 1,
                "batch_size": 4,
                "lr": 0.1,
                "momentum": 0.9,
                "weight_decay": 0.0,
                "precision": "fp32",
                "augment": "none",
                "validate_every": 1,
            },
        ),
        "supernet_trainer": (trainer.supernet_trainer, {"space": space, **data_}),
        "scratch_trainer": (trainer.scratch_trainer, {"space": space, "path": path, **data_}),
        "kendall": (statistics.kendall, {"scores": [1.0, 2.0, 3.0], "truth": [1.0, 3.0, 2.0]}),
    }


def _name(value):
    return value.__name__ if isinstance(value, type) else type(value).__name__


@pytest.mark.slow
def test_a_wrong_value_in_any_argument_is_refused_in_words(small):
    unclear, number = {}, 0
    for name, (function, right) in calls(small).items():
        function(**right)
        for argument in right:
            for value in WRONG:
                number += 1
                try:
                    function(**{**right, argument: value})
                except (TypeError, ValueError) as error:
                    if not str(error):
                        unclear[name, argument, repr(value)[:40]] = "says nothing"
                except Exception as error:
                    # An object of another class lacks a method, which Python says; images of
                    # another shape, torch.
                    lacks = isinstance(error, AttributeError) and f"'{_name(value)}'" in str(error)
                    shape = isinstance(
                        error, RuntimeError
                    ) and f"size: {list(getattr(value, 'shape', ()))}" in str(error)
                    if lacks or shape:
                        continue
                    unclear[name, argument, repr(value)[:40]] = f"{type(error).__name__}: {error}"[
                        :160
                    ]
        function(**right)
    print(f"\n{number} calls, {len(unclear)} unclear", *unclear.items(), sep="\n")
    assert not unclear
    assert number >= 200
