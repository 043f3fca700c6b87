"""Scores of untrained networks against naive counts: sums over all paths, loops over single weights
and positions."""

import copy
import math
from itertools import pairwise, product

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import mnas
from mnas.networks.untrained import az_nas, synflow, zico
from mnas.spaces.blocks import Residual


def net(*layers, seed=0):
    torch.manual_seed(seed)
    network = nn.Sequential(*layers)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):  # whatever they hold must not matter to SynFlow
            nn.init.uniform_(layer.weight, 0.5, 2)
            nn.init.uniform_(layer.bias, -1, 1)
    return network


def test_synflow_is_the_sum_over_all_paths_of_products_of_weights():
    """Three linear layers: each path has three weights, and each of them has its whole product."""
    network = net(
        nn.Linear(3, 4, bias=False), nn.Linear(4, 2, bias=False), nn.Linear(2, 5, bias=False)
    )
    a, b, c = (layer.weight.detach().abs().double().numpy() for layer in network)
    paths = sum(a[j, i] * b[k, j] * c[m, k] for i, j, k, m in product(*map(range, (3, 4, 2, 5))))
    assert synflow(network, (3,)) == pytest.approx(math.log(3 * paths), rel=1e-12)


def test_synflow_leaves_batchnorm_out_and_takes_residuals_and_relus_as_they_are():
    """A pixel, so that kernels of 1x1 are matrices: (B x) + x behind A, a ReLU that passes all."""
    network = net(
        nn.Conv2d(3, 4, 1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        Residual(nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4)),
        nn.Flatten(),
        nn.Linear(4, 2),
    )
    before = copy.deepcopy(network.state_dict())
    a = network[0].weight.detach().abs().double()[:, :, 0, 0]
    b = network[3][0].weight.detach().abs().double()[:, :, 0, 0]
    c, bias = network[5].weight.detach().abs().double(), network[5].bias.detach().abs().double()
    ones = torch.ones(3, dtype=torch.float64)
    through = float((c @ b @ a @ ones).sum())
    around = float((c @ a @ ones).sum())
    expected = 3 * through + 2 * around + float(bias.sum())  # a weight a layer that a path meets
    assert synflow(network, (3, 1, 1)) == pytest.approx(math.log(expected), rel=1e-12)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_zico_equals_a_loop_over_single_weights():
    network = net(
        nn.Conv2d(2, 3, 3, bias=False), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 4)
    )
    before = copy.deepcopy(network.state_dict())
    generator = torch.Generator().manual_seed(1)
    batches = [
        (torch.randn(5, 2, 4, 4, generator=generator), torch.randint(4, (5,), generator=generator))
        for _ in range(3)
    ]
    total = 0.0
    for layer in (0, 4):
        gradients = []
        for images, labels in batches:
            twin = copy.deepcopy(network).train()
            F.cross_entropy(twin(images), labels).backward()
            gradients.append(twin[layer].weight.grad.flatten().double().tolist())
        of_layer = 0.0
        for of_weight in zip(*gradients, strict=True):
            sizes = [abs(g) for g in of_weight]
            if np.std(sizes) > 0:
                of_layer += np.mean(sizes) / np.std(sizes)
        total += math.log(of_layer)
    assert zico(network, batches) == pytest.approx(total, rel=1e-6)
    assert zico(network, batches[:1] * 2) == 0  # no gradient moves
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def naive_traits(features, jacobians):
    """features: (N, C, H, W) arrays; jacobians: of each pair (positions, in, out) products."""
    entropies = []
    for feature in features:
        rows = [
            feature[n, :, y, x]
            for n in range(feature.shape[0])
            for y in range(feature.shape[2])
            for x in range(feature.shape[3])
        ]
        values = np.linalg.svd(np.cov(np.array(rows).T, bias=True), compute_uv=False)
        shares = values / values.sum()
        entropies.append(-sum(p * math.log(p) for p in shares if p > 1e-15))
    norms = [np.linalg.svd(np.mean(products, 0), compute_uv=False)[0] for products in jacobians]
    growth = [b - a for a, b in pairwise(entropies)]
    return sum(entropies), min(growth), float(np.mean([2 - s - 1 / s for s in norms]))


def test_traits_of_az_nas_equal_loops_over_positions():
    """A stem, a block that keeps the size and one of stride 2 without overlap, whose gradients are
    written out by hand."""
    network = net(nn.Conv2d(2, 3, 1), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 5, 2, stride=2), seed=3)
    found = az_nas(network, ["1", "2"], (2, 4, 4), 6, 7)
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(6, 2, 4, 4, generator=generator)
    with torch.no_grad():
        features = [network[0](x)]
        features += [network[1](features[0])]
        features += [network[2](features[1])]
    kept = network[1].weight.detach().double().numpy()[:, :, 0, 0]  # (out, in)
    shrunk = network[2].weight.detach().double().numpy().reshape(5, -1)  # (out, in * 4)
    jacobians = []
    for weight, feature in ((kept, features[1]), (shrunk, features[2])):
        signs = (torch.randint(2, feature.shape, generator=generator) * 2.0 - 1).double().numpy()
        assert set(np.unique(signs)) == {-1.0, 1.0}
        products = []
        for n in range(6):
            for y in range(feature.shape[2]):
                for z in range(feature.shape[3]):
                    sign = signs[n, :, y, z]
                    products.append(np.outer(weight.T @ sign, sign))
        jacobians.append(products)
    expected = naive_traits([f.double().numpy() for f in features], jacobians)
    assert found == pytest.approx(expected, rel=1e-5)


def test_a_block_of_an_orthogonal_map_is_the_most_trainable():
    """2 - s - 1/s has its maximum, 0, at s = 1."""
    scale = nn.Conv2d(4, 4, 1, bias=False)
    found = []
    for factor in (0.5, 1.0, 2.0):
        with torch.no_grad():
            scale.weight.copy_(factor * torch.eye(4)[:, :, None, None])
        network = net(nn.Conv2d(3, 4, 1), copy.deepcopy(scale))
        found.append(az_nas(network, ["1"], (3, 8, 8), 64, 0).trainability)
    assert found[1] == max(found)
    assert found[1] == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize("path", [(0,) * 8, (1, 0, 2, 0, 0, 1, 2, 2)])
def test_scores_of_networks_of_a_published_table_are_finite(path):
    space = mnas.spaces.get("nb_macro", 16)
    torch.manual_seed(0)
    network = mnas.standalone(space, path)
    blocks = [str(3 + n) for n in range(8) if not isinstance(network[3 + n], nn.Identity)]
    images = torch.randn(8, 3, 16, 16)
    scores = [
        synflow(network, (3, 16, 16)),
        zico(network, [(images[:4], torch.arange(4)), (images[4:], torch.arange(4))]),
        *az_nas(network, blocks, (3, 16, 16), 4, 0),
    ]
    assert np.isfinite(scores).all()


@pytest.mark.parametrize("dead", [1, 2])
def test_a_block_that_puts_out_nothing_leaves_no_number(dead):
    """NaN, whichever block it is: the least of numbers with NaN depends on their order."""
    network = nn.Sequential(*(nn.Conv2d(3, 3, 3, padding=1) for _ in range(4)))
    for parameter in network[dead].parameters():
        nn.init.zeros_(parameter)
    found = az_nas(network, ["0", "1", "2", "3"], (3, 8, 8), 4, 0)
    assert math.isnan(found.progressivity)
