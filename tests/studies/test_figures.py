"""Axes and bars of figures."""

import pytest

from mnas.studies import figures, plotting


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


def test_what_costs_nothing_stands_left_of_the_aim():
    assert figures.places([0, 0, 0.5, 0.5, 1]) == pytest.approx([0.025, 0.028, 0.5, 0.56, 1])
    assert figures.places([0, 0.02, 1]) == pytest.approx([0.005, 0.02, 1])
