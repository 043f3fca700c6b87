"""Which values of decisions are which network: against going through all of them."""

import copy
import itertools
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import mnas
from mnas import Choice, Decision
from mnas.space.coupling import Coupling, Place
from mnas.space.making import signature_of


@st.composite
def couplings(draw):
    """Up to five decisions, read by up to five places that tell some of their values apart."""
    lengths = draw(st.lists(st.integers(1, 3), min_size=1, max_size=5))
    places = []
    for _ in range(draw(st.integers(1, 5))):
        positions = draw(
            st.lists(st.integers(0, len(lengths) - 1), unique=True, min_size=1, max_size=3)
        )
        rows = list(itertools.product(*(range(lengths[i]) for i in positions)))
        numbers = draw(st.lists(st.integers(0, 3), min_size=len(rows), max_size=len(rows)))
        places.append(Place(positions, dict(zip(rows, numbers, strict=True))))
    return Coupling(list(map(range, lengths)), places)


@settings(max_examples=300, deadline=None)
@given(couplings())
def test_networks_are_counted_and_named_as_by_going_through_all_paths(coupling):
    paths = list(itertools.product(*coupling.indices))
    first = {}
    for path in paths:
        first.setdefault(coupling.key(path), path)
    assert coupling.size == len(first)
    assert [coupling.canonical(path) for path in paths] == [first[coupling.key(p)] for p in paths]
    assert list(coupling.networks()) == sorted(first.values())
    for number, place in enumerate(coupling.places):
        for candidate in set(place.table.values()):
            having = [p for p in paths if coupling.key(p)[number] == candidate]
            assert coupling.first({number: candidate}) == (having[0] if having else None)


def test_large_spaces_are_counted_without_going_through_them():
    """As once-for-all: stages of two to four blocks, each with a kernel and a width."""
    places, position = [], 0
    for _ in range(5):
        depth = position
        position += 1
        for block in range(4):
            table = {
                (d, k, e): (1 + 3 * k + e if d + 2 > block else 0)
                for d, k, e in itertools.product(range(3), repeat=3)
            }
            places.append(Place((depth, position, position + 1), table))
            position += 2
    coupling = Coupling([range(3)] * position, places)
    assert coupling.size == (9**2 + 9**3 + 9**4) ** 5
    # A cell that is used again and again adds nothing.
    cell = [Place((edge,), {(i,): i for i in range(5)}) for edge in range(6)]
    assert Coupling([range(5)] * 6, cell * 15).size == 5**6


def depth_and_kernel(blocks=2):
    depth = Decision("depth", range(1, blocks + 1))
    return nn.Sequential(
        *(
            Choice(
                lambda d, k, b=b: nn.Conv2d(1, 1, k, padding=k // 2) if d > b else None,
                depth,
                Decision(f"kernel{b}", (1, 3)),
                nested=True,
            )
            for b in range(blocks)
        ),
        nn.Flatten(),
    )


def test_a_path_has_values_names_and_one_canonical_form():
    space = mnas.SearchSpace(depth_and_kernel, name="s", input_shape=(1, 4, 4))
    assert [d.name for d in space.decisions] == ["depth", "kernel0", "kernel1"]
    assert (space.size, len(space), len(list(space.paths()))) == (6, 6, 6)
    path = space.path(depth=1, kernel1=3)
    assert (path, space.canonical(path)) == ((0, 0, 1), (0, 0, 0))
    assert space.format(path) == space.format((0, 0, 0)) == "depth=1-kernel0=1-kernel1=1"
    assert space.values((1, 0, 1)) == {"depth": 2, "kernel0": 1, "kernel1": 3}
    assert space.parse("depth=2-kernel0=1-kernel1=3") == space.parse("2-1-3") == (1, 0, 1)
    assert space.path({"depth": 2}, kernel0="3") == (1, 1, 0)
    torch.manual_seed(0)
    net, x = mnas.Supernet(space), torch.randn(1, 1, 4, 4)
    assert torch.equal(net(x, (0, 1, 0)), net(x, (0, 1, 1)))
    assert mnas.cost(space, (0, 1, 0)) == mnas.cost(space, (0, 1, 1))
    generator = torch.Generator().manual_seed(0)
    drawn = [space.sample(generator) for _ in range(600)]
    assert set(drawn) == set(space.paths())
    assert 250 < sum(space.values(p)["depth"] == 1 for p in drawn) < 350  # by decisions, not paths
    fair = mnas.FairSampler(space, 0)
    assert all(space.canonical(path) == path for path in (next(fair) for _ in range(20)))


def test_spaces_of_plain_choices_keep_their_paths_and_names():
    space = mnas.spaces.get("mil4")
    assert [d.name for d in space.decisions] == ["choice0", "choice1"]
    assert space.path(choice1="conv5x5") == (0, 1)
    assert space.coupling.plain


class Layer(nn.Linear):
    def __init__(self, inputs=2, scale=1.0, hidden=None, bias=True, mask=None, act=None):
        super().__init__(inputs, 2, bias=bias)
        self.scale = scale
        self.act = act
        if hidden:
            self.hidden = nn.ModuleList([nn.Linear(2, hidden)])
        if mask is not None:
            self.register_buffer("mask", torch.tensor(mask))


DIFFERENT = (
    {},
    {"inputs": 3},
    {"scale": 2.0},
    {"hidden": 3},
    {"hidden": 4},
    {"bias": False},
    {"mask": [1, 0]},
    {"mask": [0, 1]},
    {"mask": [1.0, 0.0]},
    {"act": torch.relu},
    {"act": nn.functional.gelu},
    {"act": lambda x: x},
    {"act": lambda x: x + 1},
)


def test_equal_modules_are_one_candidate_and_no_others():
    signatures = [signature_of(Layer(**options)) for options in DIFFERENT]
    assert len(set(signatures)) == len(DIFFERENT)
    assert [signature_of(Layer(**copy.copy(options))) for options in DIFFERENT] == signatures
    for make in (lambda: nn.LSTM(2, 3), lambda: nn.MultiheadAttention(4, 2), nn.BatchNorm1d(3).cpu):
        assert signature_of(make()) == signature_of(make())
    frozen = Layer()
    frozen.weight.requires_grad_(False)
    hooked = Layer()
    hooked.register_forward_hook(print)
    assert len({signatures[0], signature_of(frozen), signature_of(hooked)}) == 3


def test_candidates_are_the_distinct_modules_of_a_function():
    width, depth = Decision("width", (2, 4)), Decision("depth", (0, 1, 2))
    calls = []

    def make(w, d, *, bias):
        calls.append((w, d, bias))
        return nn.Sequential(nn.Linear(2, w, bias=bias), nn.Linear(w, 2)) if d else None

    choice = Choice(make, width, depth, bias=False, nested=True)
    assert choice.names == ("width=2,depth=0", "width=2,depth=1", "width=4,depth=1")
    assert [choice.table[v] for v in itertools.product(range(2), range(3))] == [0, 1, 1, 0, 2, 2]
    assert calls[:6] == [(w, d, False) for w in (2, 4) for d in (0, 1, 2)]
    assert choice.decisions == (width, depth)
    # Nested: the largest gives the start, and no other has weights of its own.
    assert len(calls) == 7
    by_name = Choice(make, w=width, d=1, bias=True)
    assert by_name.names == ("width=2", "width=4")
    assert all(p.isfinite().all() and p.any() for p in by_name.parameters())


def space(*choices, **options):
    return mnas.SearchSpace(
        lambda: nn.Sequential(*(make() for make in choices), nn.Flatten()),
        name="s",
        input_shape=(1, 4, 4),
        **options,
    )


def conv(inputs, outputs):
    return nn.Conv2d(inputs, outputs, 1)


W, V = ("w", (1, 2)), ("v", (1, 2))
WRONG = {
    "values that do not build": (
        lambda: Choice(nn.Conv2d, 1, Decision("w", (1, -2)), 1),
        "Conv2d fails for w=-2 (",
    ),
    "no module": (
        lambda: Choice(lambda w: w, Decision(*W)),
        "<lambda> returns a int for w=1; expected a torch.nn.Module, or None for nothing",
    ),
    "no decision": (
        lambda: Choice(nn.Linear, 2, 3),
        "a Choice of a function got no Decision; give one among its arguments",
    ),
    "a module": (lambda: Choice(nn.ReLU()), "a Choice got a ReLU; expected a dict of modules"),
    "labels": (
        lambda: Choice({"a": nn.ReLU(), "b": nn.ReLU()}, Decision("op", ("a", "c"))),
        "the candidates a, b are not the values of 'op', a, c; name them alike",
    ),
    "two decisions behind": (
        lambda: Choice({"a": nn.ReLU()}, Decision("op", ("a",)), 3),
        "a Choice of modules got",
    ),
    "a string": (
        lambda: Decision("w", "123"),
        "decision 'w' has the values '123'; expected several",
    ),
    "no values": (lambda: Decision("w", ()), "decision 'w' has no values; give it at least one"),
    "equal values": (lambda: Decision("w", (1, 1)), "decision 'w' has two values called '1'"),
    "no name": (lambda: Decision("w-1", (1,)), "the name of a decision is 'w-1'; expected letters"),
    "one name": (
        lambda: space(
            lambda: Choice(conv, 1, Decision("w", (1, 2))),
            lambda: Choice(conv, Decision("w", (1, 3)), 2),
        ),
        "space 's' has two decisions named 'w', of the values (1, 2) and (1, 3); give each a name",
    ),
    "never read": (
        lambda: space(lambda: Decision("lost", (1, 2)) and Choice(conv, 1, Decision(*W))),
        "space 's' never reads decision 'lost'; give it to a Choice of the model, or leave it out",
    ),
    "widths that do not meet": (
        lambda: space(
            lambda: Choice(conv, 1, Decision(*W), nested=True),
            lambda: Choice(conv, Decision(*V), 1, nested=True),
        ),
        "space 's': w=2, the other decisions at their first values, does not fit into the network "
        "for inputs of 1x4x4, at 'v=1' of choice 1 (",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_mistake_gets_one_sentence_that_names_it(case):
    make, message = WRONG[case]
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


class Unreached(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = (Choice(conv, 1, Decision(n, (1, 2))) for n in "ab")

    def forward(self, x):
        return self.a(x).mean(1)


def test_a_place_that_is_never_run_is_refused():
    message = re.escape("the forward pass never reaches choice 1 (b=1, b=2); call it, or leave it")
    with pytest.raises(ValueError, match=message):
        mnas.SearchSpace(Unreached, input_shape=(1, 4, 4))


def test_paths_and_names_that_are_none_say_what_is():
    s = mnas.SearchSpace(depth_and_kernel, name="s", input_shape=(1, 4, 4))
    for call, message in (
        (
            lambda: s.path(width=3),
            "space s has no decision 'width'; expected one of depth, kernel0",
        ),
        (lambda: s.path(depth=7), "depth=7; expected one of 1, 2"),
        (
            lambda: s.check((0, 0)),
            "must have 3 indices, whole numbers as in (0, 0, 0), one for each of depth, ",
        ),
        (
            lambda: s.parse("depth=2-kernel0=9-kernel1=1"),
            "is not in space s; expected one of depth",
        ),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            call()
