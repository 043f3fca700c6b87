"""Agreement of a path with everything on, written out over separate modules."""

import copy

import pytest
import torch
from conftest import randomise
from naive import Summed, uneven
from oracle import NaiveChoices
from torch.nn.modules.batchnorm import _BatchNorm

import mnas
from mnas.networks import agreement


def divergence(p, q):
    return (p * (p / q).log()).sum(1)


@pytest.mark.usefixtures("double")
def test_agreement_is_the_symmetric_divergence_from_everything_on():
    space = uneven()
    net = mnas.Supernet(space)
    randomise(net)
    images = torch.randn(12, 1, 12, 12)
    before = copy.deepcopy(net.state_dict())
    found = agreement(net, list(space.paths()), images, batch_size=5)  # parts of 4
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert net.training
    naive = NaiveChoices(space, net)
    for norm in (m for m in naive.modules() if isinstance(m, _BatchNorm)):
        norm.train()
    everything = [torch.ones(3), torch.ones(2)]
    for path, value in zip(space.paths(), found, strict=True):
        total = 0.0
        for x in images.split(4):
            p, q = naive(x, path).softmax(1), Summed(naive)(x, everything).softmax(1)
            total += (divergence(p, q) + divergence(q, p)).sum().item()
        assert value == pytest.approx(total / 12, rel=1e-9)
    assert len({round(value, 6) for value in found}) == space.size


def test_a_path_alone_agrees_with_itself():
    space = mnas.SearchSpace(
        lambda: torch.nn.Sequential(
            mnas.Choice({"a": torch.nn.Conv2d(1, 10, 4)}), torch.nn.Flatten()
        ),
        input_shape=(1, 4, 4),
    )
    (found,) = agreement(mnas.Supernet(space), [(0,)], torch.randn(3, 1, 4, 4))
    assert found == pytest.approx(0, abs=1e-6)


def test_what_is_no_supernet_and_no_images_are_refused(small):
    with pytest.raises(ValueError, match=r"agreement got a Sequential; expected a mnas.Supernet"):
        agreement(mnas.standalone(small, (0, 0)), [(0, 0)], torch.zeros(1, 1, 28, 28))
    with pytest.raises(ValueError, match="got no images"):
        agreement(mnas.Supernet(small), [(0, 0)], torch.zeros(0, 1, 28, 28))
