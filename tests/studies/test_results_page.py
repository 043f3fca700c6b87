"""What docs/results.md says in words, from the rows."""

import re

from conftest import ROOT

from mnas.studies.estimators import estimator
from mnas.studies.results import Study, summary

PAGE = " ".join((ROOT / "docs" / "results.md").read_text().split())
ON_MNIST = ("mil4_mnist", "mil4_mnist_long", "mil4_nested_mnist", "mil9_mnist", "mil9_mnist_long")


def of(name):
    return summary(Study(ROOT / "results" / name))


def test_which_estimators_meet_the_target():
    """At least 90 % of the ceiling's tau at no more than 10 % of the compute."""
    meet = set()
    for name in (*ON_MNIST, "mil4_fashion"):
        found = of(name)
        meet |= {
            (name, line["name"])
            for line in found["estimators"]
            if line["compute"] <= 0.1 and line["tau_mean"] >= 0.9 * found["ceiling_mean"]
        }
    free = {line for line in meet if line[1] in ("parameters", "multiply-accumulates")}
    assert {name for name, what in free if what == "parameters"} == set(ON_MNIST)
    trained = ("mil4_mnist_long", "scratch-equal-total of mil4_mnist")
    assert meet - free == {trained}
    line = estimator(of(trained[0]), trained[1])
    assert f"(tau {line['tau_mean']:.2f} at {line['compute']:.2f} of the compute)" in PAGE
    low, high = line["tau_ci"]
    assert f"with an interval of [{low:.2f}, {high:.2f}], by luck" in PAGE


def test_in_how_many_supernets_the_pick_loses_less_than_a_random_one():
    count, gains = {}, []
    for name in (*ON_MNIST, "mil4_fashion"):
        found = of(name)
        lost, chance = found["regret_per_seed"], found["regret_of_chance"]
        count[name] = (sum(one < chance for one in lost), len(lost))
        gains.append(chance - found["regret_mean"])
    said = re.search(
        r"loses (\S+) and (\S+) points less than a random one on average, and less in (\d+) and "
        r"(\d+) of 10 supernets; it does in (\d+) of 10 in `mil4_nested_mnist`, in all 5 on "
        r"Fashion-MNIST and in all 3 of `mil9`",
        PAGE,
    )
    assert said.groups()[:2] == tuple(f"{gain:.3f}" for gain in gains[:2])
    assert [count[name] for name in ON_MNIST[:3]] == [(int(n), 10) for n in said.groups()[2:]]
    assert count["mil4_fashion"] == (5, 5)
    assert count["mil9_mnist"] == count["mil9_mnist_long"] == (3, 3)
