"""Canvases and their atoms: what candidates share, divided into parameters that a path uses whole
or not at all."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import mnas
from mnas.space.canvas import Atom, Canvas, sizes, view


@st.composite
def canvases(draw):
    """Of up to four candidates that lie anywhere, and may lack the tensor."""
    size = draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))

    def part(length):
        step = draw(st.integers(1, 2))
        start = draw(st.integers(0, length - 1))
        return range(start, start + step * (len(range(start, length, step)) - 1) + 1, step)

    regions = [
        tuple(map(part, size)) if draw(st.booleans()) else None
        for _ in range(draw(st.integers(0, 3)))
    ]
    return Canvas(tuple(size), [*regions, tuple(map(part, size))])


@settings(max_examples=200, deadline=None)
@given(canvases())
def test_atoms_divide_a_canvas_by_the_candidates_that_use_it(canvas):
    users = {}  # for each entry
    for index, region in enumerate(canvas.boxes):
        if region is not None:
            inside = torch.zeros(canvas.size, dtype=torch.bool)
            view(inside, region).fill_(True)
            for entry in inside.nonzero().tolist():
                users.setdefault(tuple(entry), set()).add(index)
    seen = torch.zeros(canvas.size)
    for atom in canvas.atoms:
        place = torch.zeros(canvas.size)
        atom.put(torch.ones(atom.shape), place)
        seen += place
        assert place.sum() == math.prod(atom.shape)
        entries = place.nonzero().tolist()
        assert all(users[tuple(entry)] == atom.candidates for entry in entries)
    assert {tuple(entry) for entry in seen.nonzero().tolist()} == set(users)
    assert seen.max() <= 1
    assert len({atom.candidates for atom in canvas.atoms}) == len(canvas.atoms)
    names = [frozenset(map(frozenset, canvas.smallest(atom))) for atom in canvas.atoms]
    assert all(names)
    assert len(set(names)) == len(names)


@settings(max_examples=200, deadline=None)
@given(canvases())
def test_the_atoms_of_a_candidate_are_its_tensor_and_back(canvas):
    values = torch.randn(canvas.size)
    taken = [atom.take(values).clone() for atom in canvas.atoms]
    for index, region in enumerate(canvas.boxes):
        if region is None:
            assert canvas.of(index) == ()
            continue
        made = torch.full(sizes(region), math.nan)
        for number in canvas.of(index):
            atom = canvas.atoms[number]
            assert taken[number].shape == atom.shape
            assert len(atom.shape) == len(canvas.size)
            atom.put(taken[number], made, region)
        assert torch.equal(made, view(values, region))
        for number in canvas.of(index):
            assert torch.equal(canvas.atoms[number].take(made, region), taken[number])


def test_an_atom_keeps_the_leading_dimensions_that_all_of_it_has():
    """So that rules by output channel see what they see of a separate tensor."""
    choice = mnas.Choice({f"k{k}": nn.Conv2d(2, 3, k) for k in (1, 3, 5)}, nested=True)
    assert {name: tuple(p.shape) for name, p in choice.named_parameters()} == {
        "k1:weight": (3, 2, 1, 1),
        "k3:weight": (3, 2, 8, 1),
        "k5:weight": (3, 2, 16, 1),
        "k1:bias": (3,),
    }
    wide = mnas.Choice({f"w{w}": nn.Linear(w, 2 * w) for w in (2, 3)}, nested=True)
    shapes = {name: tuple(p.shape) for name, p in wide.named_parameters()}
    # The wide one adds two rows, and a column to the four that are there: an L.
    assert shapes == {
        "w2:weight": (4, 2),
        "w3:weight": (10, 1),
        "w2:bias": (4,),
        "w3:bias": (2,),
    }


def test_an_atom_is_named_by_the_candidates_that_it_comes_with():
    candidates = {
        "low": nn.Conv2d(1, 1, (1, 3)),
        "high": nn.Conv2d(1, 1, (3, 1)),
        "all": nn.Conv2d(1, 1, (3, 3)),
    }
    choice = mnas.Choice(candidates, nested=True)
    shapes = {key: tuple(choice.get_parameter(key).shape) for key in choice.shared["weight"]}
    assert shapes == {
        "high+low:weight": (1, 1, 1, 1),
        "low:weight": (1, 1, 1, 2),
        "high:weight": (1, 1, 2, 1),
        "all:weight": (1, 1, 2, 2),
    }
    deep = {f"d{d}": nn.Sequential(*[nn.Linear(2, 2) for _ in range(d)]) for d in (1, 2)}
    assert list(mnas.Choice(deep, nested=True).state_dict()) == [
        "d1:0/weight",
        "d1:0/bias",
        "d2:1/weight",
        "d2:1/bias",
    ]


@pytest.mark.parametrize("start", [1, 2])
def test_where_candidates_overlap_the_largest_gives_the_start(start):
    torch.manual_seed(start)
    modules = {f"k{k}": nn.Conv2d(2, 3, k, padding=k // 2) for k in (5, 3)}
    choice = mnas.Choice(copy.deepcopy(modules), nested=True)
    assert torch.equal(choice.candidate(0).weight, modules["k5"].weight)
    assert torch.equal(choice.candidate(1).weight, modules["k5"].weight[:, :, 1:4, 1:4])
    assert choice.k5.weight is None
    assert choice.k3.weight is None


def test_an_atom_of_one_box_is_a_view():
    atom = Atom(frozenset({0}), [(range(0, 4, 2), range(3))])
    values = torch.randn(5, 3)
    assert atom.take(values).untyped_storage().data_ptr() == values.untyped_storage().data_ptr()
    assert torch.equal(atom.take(values), values[:4:2])
