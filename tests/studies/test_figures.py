"""Axes and bars of figures."""

import json
import random

import numpy as np
import pytest
from conftest import rows
from hypothesis import given
from hypothesis import strategies as st
from invented import made_up, put

from mnas.networks.search import Found, Search
from mnas.studies import ablations, figures, fronts, labels, messages, plotting
from mnas.studies.results import Study, summary


def test_error_bars_never_point_the_wrong_way():
    assert plotting.bars([1, 1, 1], [2, 0, None], [3, 4, None]).tolist() == [[0, 1, 0], [2, 3, 0]]


def test_one_bad_error_does_not_squeeze_the_others(tmp_path):
    cases = [
        ([0.7, 0.9, 1.2], "linear"),
        ([0.7, 0.9, 28], "log"),
        ([0, 0.9, 28], "linear"),
        ([0, 0], "linear"),
    ]
    with plotting.figure(tmp_path / "errors.png", len(cases)) as axes:
        for ax, (errors, _) in zip(axes, cases, strict=True):
            ax.errorbar(range(len(errors)), errors, 2)  # ends of bars, below 0 too, are no errors
            plotting.error_axis(ax, errors)
    assert [ax.get_yscale() for ax in axes] == [scale for _, scale in cases]
    assert [ax.get_subplotspec().rowspan.start for ax in axes] == [0, 0, 0, 1]
    assert axes[0].figure.axes == axes  # and no empty ones
    assert axes[0].figure.get_size_inches().tolist() == pytest.approx([3 * 3.6, 2 * 3])
    assert {"1", "2", "5"} <= {label.get_text() for label in axes[1].get_yticklabels()}


def test_what_is_longer_than_its_axis_is_not_cut(tmp_path):
    with plotting.figure(tmp_path / "long.png", title="a title") as (ax,):
        ax.set_xlabel("Kendall's tau with the mean from scratch, and its interval")
    image = plotting.plt.imread(tmp_path / "long.png")[..., :3]
    for edge in (image[:3], image[-3:], image[:, :3], image[:, -3:]):
        assert (edge == 1).all()


def test_a_long_axis_of_errors_may_lie_down(tmp_path):
    with plotting.figure(tmp_path / "errors.png") as (ax,):
        ax.plot([0.7, 0.9, 28], range(3))
        plotting.error_axis(ax, [0.7, 0.9, 28], ax.xaxis)
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "linear")


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=12), st.floats(0.01, 50))
def test_names_lie_apart_in_order_and_no_further_than_they_must(places, gap):
    """The least squares under these distances: minus the distances asked for it is an isotonic
    regression, which is the largest of the smallest means of neighbours (max-min formula)."""
    found = labels.spread(places, gap)
    order = np.argsort(places, kind="stable")
    moved = np.array(found)[order]
    assert (np.diff(moved) >= gap - 1e-6).all()
    asked, number = gap * np.arange(len(places)), len(places)
    y = np.array(places)[order] - asked
    expected = asked + [
        max(min(y[j : k + 1].mean() for k in range(i, number)) for j in range(i + 1))
        for i in range(number)
    ]
    assert moved == pytest.approx(expected, abs=1e-6)


def test_names_stand_where_no_other_points_are():
    places = labels.beside_diagonal([1, 1, 3, 9], [0.5, 1, 8, 9], 2)
    below = [(1, pytest.approx(-0.25), False), (1, pytest.approx(1.75), False)]
    assert places == [*below, (3, pytest.approx(7.5), True), (9, pytest.approx(9.5), True)]


def test_titles_say_what_the_rows_say(tmp_path):
    made_up(tmp_path / "s", variants=("supernet-fair",))
    study = Study(tmp_path / "s")
    inherited, scratch = (study.arms[kind].test.mean(0) for kind in ("supernet", "scratch"))
    assert f"{scratch.max() - scratch.min():.2f} points" in messages.accuracy(study)
    assert messages.scatter(study).startswith(f"{(inherited > scratch).sum()} of 4 networks")
    found = summary(study)
    right = np.isclose(found["tau_per_seed"], 1).sum()
    assert f"{found['tau_mean']:.2f} on average; {right} of 6 order" in messages.taus(study, found)
    # MACs are in the order of the accuracies, parameters in the other one.
    assert "multiply-accumulates: tau 1.00" in messages.frontier(found)
    assert messages.drift(study).startswith("Movement")  # nothing was measured
    study.drift = [{"policy": "torch", "active": 4.0, "inactive": 1.0}]
    assert "25 % as far" in messages.drift(study)
    curve = [(1, 0.8), (2, 0.9)], [(1, 0.9), (2, 0.8)], [(1, 0.7), (2, 0.7)], [(1, 0), (2, 1)]
    study.curves = [
        {"kind": "supernet", "seed": 0, "arch": arch, "epoch": epoch, "val_top1": value}
        for arch, values in zip(study.archs, curve, strict=True)
        for epoch, value in values
    ]
    assert messages.curves(study).startswith("3 of 4")


def test_intervals_in_the_figure_of_taus_are_those_of_the_tables(tmp_path):
    """Which hold the noise of the images where bits are stored; the figure had those over seeds."""
    made_up(tmp_path / "s")
    found = summary(Study(tmp_path / "s"))
    of = {line["name"]: line for line in found["estimators"]}
    of["supernet"]["tau_ci"], of["scratch"]["tau_ci"] = [0.11, 0.12], [0.21, 0.22]
    of["parameters"]["tau_ci"] = [0.31, 0.32]
    shown = figures.rankings(found)
    validation, other = (list(shown)[i] for i in (1, 2))
    assert ("validation → test" in validation, "other images" in other) == (True, True)
    assert shown["supernet"] == (found["tau_per_seed"], of["supernet"]["tau_mean"], 0.11, 0.12)
    ends = of["supernet"]["tau_validation_to_test_ci"]
    assert shown[validation] == ([], of["supernet"]["tau_validation_to_test"], *ends)
    mean = of["scratch"]["tau_mean"]
    assert shown["one run\nfrom scratch"] == (found["ceiling_per_seed"], mean, 0.21, 0.22)
    assert shown["number of\nparameters"] == ([], of["parameters"]["tau_mean"], 0.31, 0.32)
    made_up(tmp_path / "one", scratch=1)  # no ceiling
    assert "one run\nfrom scratch" not in figures.rankings(summary(Study(tmp_path / "one")))


def test_the_title_of_a_front_says_what_half_a_point_of_accuracy_would_save():
    def network(score, macs):
        return Found((0,), "a", score, 10, macs)

    networks = (network(0.95, 4_000_000), network(0.946, 1_000_000), network(0.9, 500_000))
    found = Search(networks, networks[::-1], 3)
    assert (
        fronts.message(found, "macs") == "Best of 3: 95.0 % at 4 M MACs;\n94.6 % costs 25 % of that"
    )
    alone = Search(networks[:1], networks[:1], 1)
    assert fronts.message(alone, "macs") == "Best of 1: 95.0 % at 4 M MACs"


sides = st.floats(1, 60)


@given(
    st.lists(st.tuples(st.floats(0, 900), st.floats(0, 900), sides, sides), min_size=1, max_size=12)
)
def test_names_beside_points_lie_over_no_point_and_no_other_name(given_points):
    """A place of 900 by 900 has room for twelve names of 60 by 60 at most."""
    points, sizes = [g[:2] for g in given_points], [g[2:] for g in given_points]
    marks = [(x - 2, y - 2, x + 2, y + 2) for x, y in points]
    found = labels.beside_points(points, sizes, marks, (-100, -100, 1000, 1000), 6)

    def apart(a, b):
        return a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]

    for number, ((left, bottom, right, top), size) in enumerate(zip(found, sizes, strict=True)):
        assert (right - left, top - bottom) == pytest.approx(size)
        assert -100 <= left < right <= 1000
        assert -100 <= bottom < top <= 1000
        others = [*found[:number], *found[number + 1 :], *marks]
        assert all(apart(found[number], other) for other in others)


@pytest.mark.parametrize("seed", [6, 8, 10])
def test_lines_to_names_cross_no_other_name(seed):
    """Points so close that some names stand away from them."""
    drawn = random.Random(seed)
    points = [(drawn.uniform(150, 250), drawn.uniform(150, 250)) for _ in range(9)]
    marks = [(x - 4, y - 4, x + 4, y + 4) for x, y in points]
    found = labels.beside_points(points, [(80, 12)] * 9, marks, (0, 0, 400, 400), 6)
    lines = [labels.to_box(point, box, 6) for point, box in zip(points, found, strict=True)]
    assert any(lines)
    for x, y, *_ in (place for line in lines for place in line):
        assert not any(a < x < c and b < y < d for a, b, c, d in found)


def test_an_arm_that_lost_runs_is_not_said_to_be_no_different(tmp_path):
    arm = "supernet-stock-optimizer"
    made_up(tmp_path / "s", variants=(arm,))
    (section,) = (s for s in ablations.SECTIONS if s.key == "optimizers")
    told = ablations._message(Study(tmp_path / "s"), section)
    assert told == f"{section.title}: no difference in accuracy that these seeds can tell"
    changed = rows(tmp_path / "s" / "variants.jsonl")
    for row in changed:
        if row["seed"] == 3:
            row["test_top1"] = 0.1
    put(tmp_path / "s" / "variants.jsonl", "".join(json.dumps(row) + "\n" for row in changed))
    about = json.loads((tmp_path / "s" / "study.json").read_text())
    about["failed"].append({"run": "x", "arm": arm, "seed": 8, "reason": "loss is nan"})
    put(tmp_path / "s" / "study.json", json.dumps(about))
    told = ablations._message(Study(tmp_path / "s"), section)
    assert told == f"{arm}: 2 of 7 seeds diverged or collapsed; supernet: 0"
