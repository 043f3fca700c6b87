"""The size of a space, its input, and what is scored."""

import math
import re
import sys

import numpy as np
import pytest
import torch
from torch import nn

import mnas
from mnas.networks.evaluate import evaluate
from mnas.networks.recalibrate import recalibrate


def huge():
    """A space of 10^20 networks."""
    layers = {f"c{i}": nn.Conv2d(1, 1, 1) for i in range(10)}
    return mnas.SearchSpace(
        lambda: nn.Sequential(*(mnas.Choice(layers) for _ in range(20))), name="huge"
    )


def test_a_space_of_any_size_is_true_and_too_large_a_one_has_no_length(small):
    space = huge()
    assert space.size == 10**20 > sys.maxsize
    assert bool(space)
    assert [1 for _ in [0] if space] == [1]
    assert (space or None) is space
    with pytest.raises(
        OverflowError,
        match=rf"^space 'huge' has {10**20} networks, too many for len\(\); use space.size",
    ):
        len(space)
    assert "100000000000000000000 architectures" in repr(space)
    assert next(space.paths()) == (0,) * 20
    path = space.sample()
    assert space.parse(space.format(path)) == path
    assert space.describe().startswith("20 names")
    assert len(small) == small.size == 4
    assert bool(small)


def test_a_space_need_not_say_what_it_is():
    space = mnas.SearchSpace(lambda: nn.Sequential(mnas.Choice({"a": nn.Conv2d(1, 2, 3)})))
    assert space.about == ""


@pytest.mark.parametrize(
    "shape",
    [28, 0, None, (), (1, 0, 28), (1, -28, 28), (1, 28.0, 28), "1x28x28", (math.nan,), [None]],
)
def test_input_shapes_are_positive_whole_numbers(shape):
    def build():
        return nn.Sequential(mnas.Choice({"a": nn.Conv2d(1, 2, 3)}))

    with pytest.raises(
        ValueError, match=rf"^input_shape={re.escape(repr(shape))}; expected positive whole numbers"
    ):
        mnas.SearchSpace(build, input_shape=shape)
    assert mnas.SearchSpace(build, input_shape=[np.int64(1), 9, 9]).input_shape == (1, 9, 9)


def test_images_and_labels_that_are_scored_fit_together(small):
    net = mnas.Supernet(small)
    model = mnas.export(net, (0, 0))
    images, labels = torch.zeros(4, 1, 28, 28), torch.tensor([0, 1, 2, 9])
    score = evaluate(model, images, labels)
    assert mnas.evaluate_paths(net, [(0, 0)], images, labels) == [score]
    for wrong_images, wrong_labels, message in [
        (images[:0], labels[:0], "no images to score on"),
        (
            images,
            labels[:3],
            r"labels are torch.int64 of shape \(3,\); expected torch.int64 of \(4,\)",
        ),
        (images, labels[:, None], r"of shape \(4, 1\)"),
        (images, labels.float(), "labels are torch.float32"),
        (images, labels - 100, "labels have -100; expected 0 or above"),
        (images, labels + 1, r"logits are \(4, 10\), the largest label is 10"),
    ]:
        for run in (
            lambda x, y: evaluate(model, x, y),
            lambda x, y: mnas.evaluate_paths(net, [(0, 0)], x, y),
        ):
            with pytest.raises(ValueError, match=message):
                run(wrong_images, wrong_labels)
    for size in (0, -1):
        with pytest.raises(
            ValueError, match=rf"^batch_size={size}; expected a whole number above 0$"
        ):
            recalibrate(model, images, size)
