"""The figure of tau against compute, of numbers that are set."""

import numpy as np
from matplotlib import pyplot as plt

from mnas.studies import rankings_figure, rankings_page

NONE = [np.nan, np.nan]


def made(within):
    """A linear model of trained networks that is far above the ceiling, as where trainings of one
    network differ as much as networks do."""
    ceiling = {"score": "one training", "tau": 0.64, "within": within}
    ranges = {"tau_range": [0.63, 0.65], "within_range": [within - 0.01, within + 0.01]}
    free = [{**ceiling, **ranges}, {"score": "MACs", "tau": 0.52, "within": 0.5}]
    taus = {50: 0.66, 100: 0.75, 400: 0.81}
    trained = [
        {"networks": n, "cost": n / 2, "tau": [t, t - 0.02, t + 0.02], "within": [t, t - 0.02, t]}
        for n, t in taus.items()
    ]
    own = {"recipe": "fair", "seeds": [0], "worth": [50.0, 40.0, 60.0], "total": 0.02}
    supernets = [
        {**own, "score": "loss", "trained": 0, "tau": [0.66, *NONE], "within": [0.6, *NONE]},
        {**own, "score": "smoothed loss + 20 trained", "trained": 11, "total": 11.02}
        | {"tau": [0.8, *NONE], "within": [0.7, *NONE]},
    ]
    return rankings_page.Found("t", "both", 9, free, trained, supernets, [], [], [], ["1"])


def panels(found, tmp_path, monkeypatch):
    drawn = []
    with monkeypatch.context() as patched:
        patched.setattr(rankings_figure, "_names", lambda ax, *_: drawn.append(ax))
        patched.setattr(plt, "close", lambda _: None)
        rankings_figure.draw(found, tmp_path / "tau.png")
    plt.close("all")
    return drawn


def test_curves_above_the_ceiling_are_in_the_figure(tmp_path, monkeypatch):
    both = panels(made(within=0.5), tmp_path, monkeypatch)
    assert len(both) == 2
    for ax in both:
        assert ax.get_ylim()[1] > 0.81


def test_networks_of_one_depth_have_one_panel(tmp_path, monkeypatch):
    (ax,) = panels(made(within=0.64), tmp_path, monkeypatch)
    assert ax.get_xlabel().startswith("compute")
