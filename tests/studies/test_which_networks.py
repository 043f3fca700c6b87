"""Which networks are compared: not those that were trained, nor those that were looked at."""

import numpy as np
import pytest
from test_rankings import space, write  # noqa: F401

from mnas.commands import rank
from mnas.errors import Failure
from mnas.studies import ranking, rankings


def test_trained_networks_beside_a_supernet_are_not_judged(space, tmp_path):  # noqa: F811
    read = rankings.read(write(tmp_path / "one", space, 0, noise=0.3, networks=200))
    of = rankings.judged([read], "both", draws=1)
    assert set(of.numbers) <= set(of.fitted)
    found = rankings.with_trained(read, of, 900, draws=2)
    random, design = (
        np.random.default_rng(ranking.HALVES_SEED),
        ranking.one_hot(of.table.distinct.paths),
    )
    taus = []
    for _ in range(2):
        some = random.choice(of.fitted, 900, replace=False)
        runs = of.everything.runs
        errors = np.log(100 - runs[some, random.integers(runs.shape[1])])
        scores = -ranking.ridge(design, some, errors, rankings.PRIOR, free=read.predicted)
        others = [network for network in of.numbers if network not in set(some.tolist())]
        assert 20 < len(others) < len(of.numbers)
        taus.append(ranking.tau(scores[others], of.everything.truth[others]))
    assert found.tau == np.mean(taus)


def test_networks_that_were_looked_at_are_left_out(space, tmp_path):  # noqa: F811
    paths = [write(tmp_path / str(s), space, s, noise=0.1) for s in (0, 1)]
    read = [rankings.read(path) for path in paths]
    seen = rankings.read(write(tmp_path / "seen", space, 5, noise=0.2, networks=200))
    every = set(rankings.judged(read, "reporting", draws=2).numbers.tolist())
    found = rankings.judged(read, "reporting", draws=2, without=[seen])
    looked_at = {n for n, score in enumerate(seen.scores["loss"]) if score == score}
    assert 20 < len(every & looked_at) < len(every) - 20
    assert set(found.numbers.tolist()) == every - looked_at
    command = ["compare", *map(str, paths), "--without", str(paths[0])]
    with pytest.raises(Failure, match=r"^0 networks .* or leave out fewer with --without") as error:
        rank.app(
            [*command, "--out", str(tmp_path / "out")],
            exit_on_error=False,
            print_error=False,
            result_action="return_value",
        )
    assert error.value.status == 2
    assert not (tmp_path / "out").exists()
    seen.settings["space"] = "channel_macro_mobilenet"
    with pytest.raises(ValueError, match="seen is of channel_macro_mobilenet; expected nb_macro"):
        rankings.judged(read, "reporting", draws=2, without=[seen])
