"""Search against all networks of a small space, whose scores are known from a table."""

import importlib
import random
import re
from typing import ClassVar

import pytest
import torch
from conftest import ROOT
from processes import LOADED
from torch import nn

import mnas
from mnas.networks.search import SAMPLERS, front

module = importlib.import_module("mnas.networks.search")  # there is a function of that name
optuna = pytest.importorskip("optuna")


def table(space, seed=0):
    """A score for each network, by its name."""
    draw = random.Random(seed)
    return {arch: round(draw.random(), 4) for arch in space.names()}


class Scorer:
    """Looks scores up, and notes what it is asked."""

    def __init__(self, space, seed=0):
        self.space, self.table, self.asked = space, table(space, seed), []

    def __call__(self, paths):
        archs = [self.space.format(path) for path in paths]
        self.asked += archs
        return [self.table[arch] for arch in archs]


def true_front(space, scores, by, budget=None):
    """By comparing all with all."""
    costs = {arch: mnas.cost(space, space.parse(arch)) for arch in scores}
    within = [a for a in scores if budget is None or costs[a].macs <= budget]

    def beaten(one):
        return any(
            scores[o] >= scores[one]
            and getattr(costs[o], by) <= getattr(costs[one], by)
            and (scores[o], getattr(costs[o], by)) != (scores[one], getattr(costs[one], by))
            for o in within
        )

    return {arch for arch in within if not beaten(arch)}


@pytest.fixture(scope="module")
def mil9():
    return mnas.spaces.mil9()


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("by", ["macs", "params"])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_true_front_of_a_small_space_is_found(sampler, by, seed, mil9):
    score = Scorer(mil9, seed)
    found = mnas.search(mil9, score, trials=300, sampler=sampler, by=by, seed=seed, batch=8)
    assert {n.arch for n in found.front} == true_front(mil9, score.table, by)
    assert [getattr(n, by) for n in found.front] == sorted(getattr(n, by) for n in found.front)
    assert found.networks[0].score == max(score.table.values())
    assert all((n.params, n.macs) == mnas.cost(mil9, n.path) for n in found.networks)
    assert len(score.asked) == len(set(score.asked)) == 9  # each once
    assert found.trials < 300  # it ends when all are known


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_nothing_over_a_budget_is_scored(sampler, mil9):
    score = Scorer(mil9)
    costs = sorted(mnas.cost(mil9, path).macs for path in mil9.paths())
    most = costs[4]
    found = mnas.search(mil9, score, trials=200, sampler=sampler, max_macs=most)
    assert all(mnas.cost(mil9, mil9.parse(arch)).macs <= most for arch in score.asked)
    assert {n.arch for n in found.front} == true_front(mil9, score.table, "macs", most)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("most", [None, 4])
def test_with_the_score_as_only_aim_the_best_within_the_budget_is_found(sampler, most, mil9):
    score = Scorer(mil9)
    costs = {arch: mnas.cost(mil9, mil9.parse(arch)).macs for arch in score.table}
    budget = most and sorted(costs.values())[most]
    found = mnas.search(
        mil9, score, trials=200, sampler=sampler, aims="score", max_macs=budget, batch=8
    )
    within = {a: s for a, s in score.table.items() if budget is None or costs[a] <= budget}
    assert {n.arch: n.score for n in found.networks} == within
    assert found.networks[0].arch == found.front[-1].arch == max(within, key=within.__getitem__)
    assert len(score.asked) == len(set(score.asked))


@pytest.mark.parametrize("sampler", ["tpe", "nsga2"])
def test_a_second_aim_draws_elsewhere(sampler):
    """The score is what cost would have: a second aim, few MACs, pulls against it."""
    space = mnas.spaces.nb_macro()
    largest = mnas.cost(space, (2,) * 8).macs
    macs = {}

    def score(paths):
        macs.update({path: mnas.cost(space, path).macs / largest for path in paths})
        return [macs[path] for path in paths]

    means = []
    for aims in ("score", "score,cost"):
        macs.clear()
        mnas.search(space, score, trials=160, sampler=sampler, aims=aims)
        means.append(sum(sorted(macs.values())[-20:]) / 20)
    assert means[0] > means[1]


def test_a_search_of_one_aim_goes_on_and_is_told_from_one_of_two(mil9, tmp_path):
    options = {"storage": tmp_path / "search.log", "sampler": "tpe", "batch": 2}
    first = Scorer(mil9)
    mnas.search(mil9, first, trials=4, aims="score", **options)
    again = Scorer(mil9)
    found = mnas.search(mil9, again, trials=300, aims="score", **options)
    assert not set(first.asked) & set(again.asked)
    assert {n.arch: n.score for n in found.networks} == again.table
    for aims, other in (("score", "score,cost"), ("score,cost", "score")):
        options["name"] = aims  # of a study of its own
        mnas.search(mil9, Scorer(mil9), trials=2, aims=aims, **options)
        message = f"has aims='{aims}', not '{other}'; give it the same settings, another storage"
        with pytest.raises(ValueError, match=message):
            mnas.search(mil9, Scorer(mil9), trials=4, aims=other, **options)


def test_front_of_random_tables_equals_all_against_all(mil9):
    for seed in range(50):
        scores = {arch: round(value, 1) for arch, value in table(mil9, seed).items()}  # with ties
        networks = [
            module.Found(p, mil9.format(p), scores[mil9.format(p)], *mnas.cost(mil9, p))
            for p in mil9.paths()
        ]
        for by in ("macs", "params"):
            ours = {(n.score, getattr(n, by)) for n in front(networks, by)}
            archs = true_front(mil9, scores, by)
            assert ours == {(n.score, getattr(n, by)) for n in networks if n.arch in archs}


@pytest.mark.parametrize("kind", ["file", "sqlite"])
def test_a_search_goes_on_where_it_was_stopped(kind, mil9, tmp_path):
    where = tmp_path / "search.log"
    storage = where if kind == "file" else f"sqlite:///{tmp_path}/search.db"
    options = {"sampler": "random", "batch": 2, "storage": storage, "name": "mine"}

    class Stopped(Exception):
        pass

    stopping = Scorer(mil9)

    def score(paths):
        if len(stopping.asked) >= 4:
            raise Stopped
        return stopping(paths)

    with pytest.raises(Stopped):
        mnas.search(mil9, score, trials=100, **options)
    rest = Scorer(mil9)
    found = mnas.search(mil9, rest, trials=100, **options)
    assert not set(rest.asked) & set(stopping.asked)
    assert set(rest.asked) | set(stopping.asked) == set(rest.table)
    assert {n.arch: n.score for n in found.networks} == rest.table
    again = Scorer(mil9)
    assert mnas.search(mil9, again, trials=100, **options)[:2] == found[:2]
    assert not again.asked
    with pytest.raises(ValueError, match=r"has by='macs', not 'params'; give it the same settings"):
        mnas.search(mil9, again, trials=100, by="params", **options)


@pytest.mark.parametrize("left", [-1, -9, -300, 20])
def test_a_search_goes_on_behind_a_line_that_was_cut(left, mil9, tmp_path):
    options = {"storage": tmp_path / "search.log", "sampler": "random", "batch": 2}
    first = Scorer(mil9)
    mnas.search(mil9, first, trials=6, **options)
    content = options["storage"].read_bytes()
    options["storage"].write_bytes(content[:left])  # as a full disk leaves it
    again = Scorer(mil9)
    found = mnas.search(mil9, again, trials=100, **options)
    assert {n.arch: n.score for n in found.networks} == again.table
    assert len(set(again.asked) & set(first.asked)) <= (2 if left < 0 else 6)
    assert mnas.search(mil9, again, trials=100, **options)[:2] == found[:2]


@pytest.mark.parametrize("content", ["my notes", "my notes\n", '{"a": 1}', "[1]\n"])
def test_a_file_of_something_else_is_left_as_it_is(content, mil9, tmp_path):
    file = tmp_path / "notes"
    file.write_text(content)
    with pytest.raises(ValueError, match=r"cannot hold a search \(it holds something else\)"):
        mnas.search(mil9, Scorer(mil9), storage=file)
    assert file.read_text() == content


def test_a_study_of_something_else_is_no_search(mil9, tmp_path):
    storage = f"sqlite:///{tmp_path / 'studies.db'}"
    study = optuna.create_study(storage=storage, study_name=mil9.name, directions=["maximize"] * 2)
    study.optimize(lambda trial: (trial.suggest_float("x", 0, 1), 0.0), n_trials=1)
    with pytest.raises(ValueError, match="'mil9' there is a study of something else; give another"):
        mnas.search(mil9, Scorer(mil9), storage=storage)
    assert len(mnas.search(mil9, Scorer(mil9), storage=storage, name="mine", trials=4).front)


def test_equal_networks_are_scored_once_and_trials_suggest_canonical_paths():
    space = mnas.spaces.SPACES["channel_macro_mobilenet"]()
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
    for _ in range(20):
        path = mnas.suggest(study.ask(), space)
        assert path == space.canonical(path)


def test_a_supernet_is_searched(mil9):
    net = mnas.Supernet(mil9)
    images, labels = LOADED.validation.images[:100], LOADED.validation.labels[:100]

    def score(paths):
        return [s.top1 for s in mnas.evaluate_paths(net, paths, images, labels)]

    found = mnas.search(mil9, score, trials=60)
    for network in found.networks:
        alone = mnas.evaluate(mnas.export(net, network.path), images, labels)
        assert network.score == alone.top1


def test_latency_is_measured_of_networks_within_the_other_budgets_once_each(mil9, tmp_path):
    measured = []
    macs = {p: mnas.cost(mil9, p).macs for p in mil9.paths()}
    most = sorted(macs.values())[5]

    def latency(paths):
        measured.extend(paths)
        return [p[0] + p[1] / 10 for p in paths]

    score = Scorer(mil9)
    options = {"by": "latency", "latency": latency, "max_latency": 1.1, "max_macs": most}
    options |= {"sampler": "random", "storage": tmp_path / "search.log"}
    found = mnas.search(mil9, score, trials=200, **options)
    within = {p for p in macs if macs[p] <= most}
    assert sorted(measured) == sorted(within)  # none twice
    fast = {p for p in within if p[0] + p[1] / 10 <= 1.1}
    assert {n.path: n.latency for n in found.networks} == {p: p[0] + p[1] / 10 for p in fast}
    scores = {p: score.table[mil9.format(p)] for p in fast}
    beaten = {
        p
        for p in fast
        for o in fast - {p}
        if scores[o] >= scores[p] and o[0] + o[1] / 10 <= p[0] + p[1] / 10
    }
    assert {n.path for n in found.front} == fast - beaten
    del measured[:]
    assert mnas.search(mil9, score, trials=200, **options)[:2] == found[:2]
    assert not measured  # the storage knows


def test_real_latencies_of_exported_networks(mil9):
    net = mnas.Supernet(mil9).train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    latency = mnas.networks.Latency(net, LOADED.validation.images[:2], repeats=3)
    paths = [*mil9.paths()]
    first = latency(paths)
    assert all(0 < ms < 60_000 for ms in first)
    assert latency(list(reversed(paths))) == list(reversed(first))  # known, not measured again
    assert net.training
    assert all(before[name].equal(tensor) for name, tensor in net.state_dict().items())
    with pytest.raises(ValueError, match="repeats=0; expected a whole number above 0"):
        mnas.networks.Latency(net, LOADED.validation.images[:2], repeats=0)


class Noted(nn.Linear):
    """Notes that it runs."""

    runs: ClassVar[list[int]] = []

    def forward(self, x):
        self.runs.append(self.out_features)
        return super().forward(x)[..., :10]


def test_networks_are_measured_in_turns():
    space = mnas.SearchSpace(
        lambda: nn.Sequential(
            nn.Flatten(), mnas.Choice({str(n): Noted(64, n) for n in (10, 20, 30)})
        ),
        input_shape=(1, 8, 8),
    )
    latency = mnas.networks.Latency(mnas.Supernet(space), torch.randn(4, 1, 8, 8), repeats=8)
    Noted.runs.clear()
    latency([(0,), (1,), (2,), (1,)])
    warm, runs = Noted.runs[:-24], Noted.runs[-24:]
    assert set(warm) == {10, 20, 30}
    rounds = [tuple(runs[n : n + 3]) for n in range(0, 24, 3)]
    assert all(sorted(one) == [10, 20, 30] for one in rounds)
    assert len(set(rounds)) > 1  # in other orders


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": "best"}, "sampler='best'; expected one of random, tpe, nsga2"),
        ({"aims": "cost"}, "aims='cost'; expected 'score,cost' or 'score'"),
        ({"by": "seconds"}, "by='seconds'; expected one of params, macs, latency"),
        ({"by": "latency"}, 'by="latency" needs latency=, a function of paths'),
        ({"max_latency": 2}, "max_latency=2 needs latency=, a function of paths"),
        ({"max_latency": -1.0}, "max_latency=-1.0; expected milliseconds, a number above 0"),
        ({"trials": 0}, "trials=0; expected a whole number above 0"),
        ({"batch": 1}, "batch=1; expected a whole number above 1"),
        ({"max_macs": 1.5}, "max_macs=1.5"),
        ({"storage": "no/such/folder/file"}, "no/such/folder is no directory"),
        ({"storage": "setup.cfg"}, "storage='setup.cfg' cannot hold a search"),
        ({"storage": "nosql://here"}, "storage='nosql://here' cannot hold a search"),
    ],
)
def test_wrong_options_are_refused(options, message, mil9, monkeypatch):
    monkeypatch.chdir(ROOT)
    before = (ROOT / "setup.cfg").read_bytes()
    with pytest.raises(ValueError, match=message) as refused:
        mnas.search(mil9, Scorer(mil9), **options)
    assert "\n" not in str(refused.value)
    assert (ROOT / "setup.cfg").read_bytes() == before


def test_scores_must_be_numbers_one_a_path(mil9):
    for score in (lambda paths: [], lambda paths: [float("nan")] * len(paths)):
        with pytest.raises(ValueError, match="expected a finite number for each"):
            mnas.search(mil9, score)
    with pytest.raises(ValueError, match="score is a dict"):
        mnas.search(mil9, table(mil9))


def test_without_optuna_the_extra_is_named(mil9, monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"optuna is not installed; pip install 'mnas\[search\]'"):
        mnas.search(mil9, Scorer(mil9))


def test_the_page_runs(capsys):
    page = (ROOT / "docs" / "search.md").read_text()
    names = {"__name__": "example"}
    for example in re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL):
        exec(example, names)
    printed = {line.split()[0] for line in capsys.readouterr().out.splitlines()}
    space, score = names["space"], names["score"]
    scores = {arch: score([space.parse(arch)])[0] for arch in space.names()}
    assert printed == true_front(space, scores, "macs", 2_000_000)
