"""The work of tools/benchmark.py under pytest-benchmark. By default each runs once, untimed; timed:

python -m pytest tests/benchmarks/test_suites.py --benchmark-enable
--benchmark-group-by=func,param:space,param:number"""

import pytest

import mnas
from benchmarks import suites

FORMS = ("standalone", "modular", "sliced", "masked", "naive")
SEQUENCES = ("standalone", "modular", "sliced")  # mil9 has no masked form


def one(cases, **labels):
    return next(case for case in cases if labels.items() <= case.labels.items())


@pytest.mark.parametrize(
    ("space", "by"),
    [*(("mil4", by) for by in FORMS), *(("mil9", by) for by in SEQUENCES)],
    ids="-".join,
)
@pytest.mark.parametrize("number", [64, 256])
def test_step(benchmark, space, by, number):
    declared = mnas.spaces.get(space)
    sides = suites.implementations(declared, next(iter(declared.paths())), number)
    assert len(benchmark(sides[by])) == 4


@pytest.mark.parametrize("number", [2, 64])
@pytest.mark.parametrize("by", FORMS[1:])
def test_step_by_number_of_candidates(benchmark, by, number):
    benchmark(suites.implementations(mnas.spaces.plain(candidates=number), (1, 1), 64)[by])


@pytest.mark.parametrize("space", ["mil9"])
@pytest.mark.parametrize("by", ["shared", "loop"])
def test_scores_of_all_paths(benchmark, by, space):
    benchmark(one(suites.evaluate(quick=True), space=space).sides[by])


@pytest.mark.parametrize("by", ["one path, 5x5", "mixture", "separate"])
def test_mixture(benchmark, by):
    benchmark(one(suites.mixture(quick=True)).sides[by])


def test_setting(benchmark):
    assert benchmark(suites.step_with, "mil4", 64, 1, threads=suites.torch.get_num_threads()) > 0
