"""Networks of published spaces: their parameters and multiply-accumulates, from the papers' own
tables and repositories, and the number of networks.

published/ofa_mbv3.csv: six specialised networks of once-for-all (Cai et al., ICLR 2020; repository
han-cai/files), kernel x expansion of each block by stage, counted on the networks that are made of
the published configurations. NAS-Bench-Macro and Channel-Bench-Macro: tests/reference."""

import csv
import inspect
import itertools
from functools import cache
from math import prod
from pathlib import Path

import pytest
import torch
from conftest import ROOT

import mnas
from mnas.spaces import big

PAGE = (ROOT / "docs" / "spaces.md").read_text()
SPACES = {name: cache(make) for name, make in mnas.spaces.SPACES.items()}


def rows(name):
    with (Path(__file__).parent / "published" / f"{name}.csv").open() as file:
        return list(csv.DictReader(file))


NETWORKS = {
    "mil4": 4,
    "mil4_nested": 4,
    "mil9": 9,
    "nb_macro": 3**8,
    "plain": 8**2,
    "channel_macro_mobilenet": 4**7,
    "channel_macro_resnet": 4**7,
    "nas_bench_201": 5**6,
    "ofa_mbv3": (9**2 + 9**3 + 9**4) ** 5,
    "spos": 4**20,
    "proxyless": 6**6 * 7**15,
    "bignas": 6 * prod(len(w) * len(d) * len(k) for w, d, k, _, _ in big.STAGES),
    "darts": (7**8 * 1 * 3 * 6 * 10) ** 2,
    "bender": (6 + 15) ** 12,
    "autoformer_tiny": 3 * (6**12 + 6**13 + 6**14),
}


def test_every_space_is_here():
    assert set(NETWORKS) == set(mnas.spaces.SPACES)


SLOW = ("bignas", "darts")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in NETWORKS]
)
def test_names_and_sizes(name):
    """And that they are in the table of docs/spaces.md."""
    space = SPACES[name]()
    assert (space.name, space.size) == (name, NETWORKS[name])
    alike = [  # networks in which everything is decided alike
        tuple(min(number, len(decision) - 1) for decision in space.decisions)
        for number in range(max(map(len, space.decisions)))
    ]
    params = [mnas.cost(space, path).params / 1e6 for path in alike]
    file = Path(inspect.getsourcefile(inspect.unwrap(mnas.spaces.SPACES[name])))
    networks = f"{space.size:,}" if space.size < 1e6 else f"{space.size:.3e}".replace("e+", "e")
    lines = len(file.read_text().splitlines())
    cells = [
        str(len(space.decisions)),
        networks,
        f"{min(params):.2f} to {max(params):.2f}",
        f"`{file.name}`, {lines}",
    ]
    assert lines <= 120
    (row,) = [row for row in PAGE.splitlines() if row.startswith(f"| `{name}` |")]
    assert row.endswith(f" | {' | '.join(cells)} |"), cells
    assert space.about == space.about.strip()
    assert 0 < len(space.about) <= 100
    assert "\n" not in space.about


def of_blocks(text):
    """The decisions of once-for-all, by the kernel and expansion of each block."""
    values = {}
    for s, stage in enumerate(text.split(" | ")):
        blocks = stage.split()
        values[f"depth{s}"] = len(blocks)
        for b, block in enumerate(blocks):
            values[f"k{s}{b}"], values[f"e{s}{b}"] = map(int, block.split("x"))
    return values


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, id=row["network"], marks=[pytest.mark.slow] * bool(number))
        for number, row in enumerate(rows("ofa_mbv3"))
    ],
)
def test_once_for_all(row):
    # The slow ones have kernel matrices, too, which an exported network does not show.
    matrices = row["width"] == "1.2" and not row["network"].startswith("flops-389M")
    space = SPACES["ofa_mbv3"](float(row["width"]), matrices)
    assert space.size == 21758655492572485851  # 2.176e19
    path = space.path(of_blocks(row["blocks"]))
    image = torch.zeros(1, 3, int(row["resolution"]), int(row["resolution"]))
    published = (int(row["params"]), int(row["macs"]))
    assert mnas.cost(space, path, example=image) == published


def test_nas_bench_201():
    """By the published formulas, which count ten more for the classifier's bias."""
    space = SPACES["nas_bench_201"]()
    for cell in itertools.islice(space.paths(), 0, None, 331):
        names = list(space.values(cell).values())
        three, one = names.count("nor_conv_3x3"), names.count("nor_conv_1x1")
        assert mnas.cost(space, cell) == (
            73306 + 243040 * three + 28000 * one,
            7783050 + 35389440 * three + 3932160 * one - 10,
        )


def test_cells_of_nas_bench_201_that_compute_the_same():
    """The paper counts 6,466 unique cells: a skip is the node it starts from, and
    what is made of zeros is zero, a term of a sum like others. As sums of what arrives there are
    fewer, though a convolution of nothing is something: the shift of its BatchNorm."""
    edges = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))

    def into(names, node):
        return [(a, name) for (a, b), name in zip(edges, names, strict=True) if b == node]

    def published(names):
        nodes = ["0"]
        for node in (1, 2, 3):
            terms = []
            for a, name in into(names, node):
                if name == "none" or nodes[a] == "#":
                    terms.append("#")
                else:
                    skips = name == "skip_connect"
                    terms.append(nodes[a] if skips else f"({nodes[a]})@{name}")
            nodes.append("+".join(sorted(terms)))
        return nodes[3]

    def computed(names):
        nodes = [("0",)]
        for node in (1, 2, 3):
            terms = []
            for a, name in into(names, node):
                if name == "skip_connect":
                    terms += nodes[a]
                elif name.startswith("nor_conv") or (name == "avg_pool_3x3" and nodes[a]):
                    terms.append(f"{name}({' + '.join(nodes[a])})")
            nodes.append(tuple(sorted(terms)))
        return nodes[3]

    space = SPACES["nas_bench_201"]()
    cells = [tuple(space.values(path).values()) for path in space.paths()]
    assert len(set(cells)) == 15625
    assert len(set(map(published, cells))) == 6466
    assert len(set(map(computed, cells))) == 5545


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("k3", (3154880, 295842496)),
        ("k5", (3211968, 313654976)),
        ("k7", (3297600, 340373696)),
        ("xception", (3870816, 358825920)),
    ],
)
def test_single_path_one_shot(name, published):
    space = SPACES["spos"]()
    assert mnas.cost(space, space.parse("-".join([name] * 20))) == published


def test_autoformer_has_deit():
    """DeiT-Ti (Touvron et al., ICML 2021), counted on the authors' model."""
    space = SPACES["autoformer_tiny"]()
    assert f"{space.size:.3e}" == "2.808e+11"
    ratios = {f"ratio{number}": 4 for number in range(12)}
    path = space.path(ratios, embed=192, depth=12)
    params, macs = mnas.cost(space, path)
    assert params == 5717416
    # The patches' convolution, twelve layers of 197 tokens, attention over them, the classifier.
    of_layer = 197 * (4 * 192**2 + 2 * 4 * 192**2) + 2 * 3 * 64 * 197**2
    assert macs == 196 * 192 * 3 * 16**2 + 12 * of_layer + 192 * 1000


def test_proxyless_mobile():
    """The authors' network for mobile phones, by the kernels and expansions of its blocks."""
    kernels = "5300 7355 7555 5555 7777 7", "3300 3333 6333 6333 6633 6"
    blocks = [
        f"mb{e}_k{k}" if k != "0" else "skip" for k, e in zip(*kernels, strict=True) if k != " "
    ]
    space = SPACES["proxyless"]()
    assert mnas.cost(space, space.parse("-".join(blocks))) == (4080512, 320427584)


def conv(inputs, outputs, kernel=1):
    """Parameters with BatchNorm behind."""
    return inputs * outputs * kernel**2 + 2 * outputs


def separable(width, kernel):
    """Parameters of two depthwise convolutions, each with one of 1x1 and BatchNorm behind."""
    return 2 * (width * kernel**2 + conv(width, width))


@pytest.mark.slow
def test_widths_of_bignas():
    """The parameters by hand, of networks in which all widths change."""
    space = SPACES["bignas"]()
    for path in [space.sample(torch.Generator().manual_seed(seed)) for seed in range(5)]:
        v = space.values(path)
        width = v["stem"]
        params = conv(3, width, 3)
        for s, (*_, expansion) in enumerate(big.STAGES):
            for _ in range(v[f"depth{s}"]):
                inner, outer = width * expansion, v[f"width{s}"]
                gate = max(8, int(inner / 4 + 4) // 8 * 8)
                gate += 8 if gate < 0.9 * inner / 4 else 0
                params += conv(width, inner) if expansion > 1 else 0
                params += inner * v[f"kernel{s}"] ** 2 + 2 * inner  # depthwise
                params += 2 * inner * gate + gate + inner + conv(inner, outer)
                width = outer
        params += conv(width, v["last"]) + 1000 * v["last"] + 1000
        assert mnas.cost(space, path).params == params


def test_sums_of_bender():
    space = SPACES["bender"]()
    chosen = dict.fromkeys((f"block{n}" for n in range(12)), frozenset(("sep3", "sep5")))
    blocks = sum(4 * (separable(c, 3) + separable(c, 5)) for c in (16, 32, 64))
    rest = conv(3, 16, 3) + conv(16, 32, 3) + conv(32, 64, 3) + 650
    assert mnas.cost(space, space.path(chosen)).params == blocks + rest
    alone = space.path(dict.fromkeys(chosen, frozenset(("identity",))))
    assert mnas.cost(space, alone).params == rest
    assert space.format(space.path(block0=frozenset(("sep3", "avg3")))).startswith(
        "block0=avg3+sep3-block1=identity-"
    )


@pytest.mark.slow
def test_cells_of_darts():
    """All separable 3x3, on the pairs that are first: by hand."""
    space = SPACES["darts"]()
    values = {d.name: "sep3" for d in space.decisions if "sep3" in d.labels}
    params, older, newer, width = conv(3, 48, 3), 48, 48, 16
    for kind in ("normal", "normal", "reduce") * 2 + ("normal", "normal"):
        width *= 2 if kind == "reduce" else 1
        params += conv(older, width) + conv(newer, width) + 8 * separable(width, 3)
        older, newer = newer, 4 * width
    assert mnas.cost(space, space.path(values)).params == params + 10 * newer + 10
    # What is done on an input that is not of the pair is no part of the network.
    unused = {**values, "normal1": (0, 2), "normal1_1": "dil5"}
    assert space.format(space.path(unused)).count("sep3") == 16
    assert "dil5" not in space.format(space.path(unused))
