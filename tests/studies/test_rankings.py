"""Rankings beside each other: rows made of published accuracies, numbers against naive ones."""

import json
from itertools import combinations
from statistics import fmean

import numpy as np
import pytest
import torch

import mnas
from mnas import reference
from mnas.commands import compare, rank
from mnas.errors import Failure
from mnas.storage import strict_json
from mnas.storage.files import Folder
from mnas.storage.strict_json import FolderError
from mnas.studies import (
    compute,
    effects,
    ranking,
    rankings,
    rankings_figure,
    rankings_page,
    scored,
    statistics,
)

TABLE = reference.get("nb_macro")
CONFIG = {
    **{"space": "nb_macro", "sampler": "fair", "execution": "sliced", "resolution": 16},
    **{"batch_size": 128, "threads": 1, "limit_train": None},
}


@pytest.fixture(scope="module")
def space():
    return mnas.spaces.get("nb_macro", 16)


def write(path, space, seed, *, noise, macs=1e13, networks=600, **config):
    """A folder as of mnas rank, whose losses are published errors with noise."""
    random, rows = np.random.default_rng(seed), []
    paths = scored.drawn([tuple(path) for path in TABLE.paths.tolist()], networks, 0)
    for one in paths:
        error = 1 - TABLE.accuracies[TABLE.rows[one]].mean() / 100
        loss = error * np.exp(noise * random.standard_normal())
        rows.append({"arch": space.format(one), "val_loss": loss, "val_top1": 1 - error})
        rows[-1] |= mnas.cost(space, one)._asdict()
    chunk = {"paths": networks, "seconds": 5.0, "macs": 1e12, "macs_alone": 2e12}
    settings = {"space": "nb_macro", "resolution": 16, "networks": networks}
    training = {"config": {**CONFIG, "epochs": 6.0, "seed": seed, **config}, "steps": 9}
    path.mkdir()
    Folder(path, scored.FORMAT).write(
        {
            "settings.json": strict_json.dumps({**settings, "images": 2000, "bn_images": 500}),
            "rows.jsonl": strict_json.lines(rows),
            "chunks.jsonl": strict_json.lines([chunk]),
            "supernet.json": strict_json.dumps({**training, "seconds": 60.0, "macs": macs}),
        }
    )
    return path


@pytest.fixture(scope="module")
def folders(tmp_path_factory, space):
    folder = tmp_path_factory.mktemp("rankings")
    made = [write(folder / f"long{s}", space, s, noise=0.1, epochs=15.0) for s in (2, 0, 1)]
    return made + [write(folder / f"short{s}", space, s, noise=0.4, macs=4e12) for s in (0, 1)]


@pytest.fixture(scope="module")
def found(folders):
    read = [rankings.read(path) for path in folders]
    return rankings.recipes(read), rankings.judged(read, "choosing", draws=4)


def test_recipes_are_runs_that_differ_in_their_seed(found):
    recipes, of = found
    assert [recipe.name for recipe in recipes] == [
        "fair, 15 epochs, 16 px",
        "fair, 6 epochs, 16 px",
    ]
    assert [[one.seed for one in recipe.seeds] for recipe in recipes] == [[0, 1, 2], [0, 1]]
    full = 3 * 50 * 50_000 * 105_660_928
    cost = recipes[0].cost(of.table)
    assert cost["total"] == pytest.approx((1e13 + 1e12) / full)
    assert (cost["training_seconds"], cost["scoring_seconds"]) == (60, 5)


def test_numbers_are_those_of_networks_one_by_one(found, space):
    recipes, of = found
    rows = {(r["recipe"], r["score"]): r for r in rankings.qualities(recipes, of, labels=(20,))}
    choosing = set(ranking.halves(3969)[0].tolist())
    taus = []
    for one in recipes[0].seeds:
        losses = {}
        for row in one.rows:
            network = TABLE.network[TABLE.rows[space.parse(row["arch"])]]
            if network in choosing:
                losses.setdefault(network, []).append(row["val_loss"])
        assert sorted(losses) == of.numbers.tolist()
        truth = TABLE.distinct.accuracies.mean(1)[of.numbers]
        taus.append(ranking.tau([-fmean(losses[n]) for n in sorted(losses)], truth))
    row = rows[recipes[0].name, "loss"]
    assert row["tau_of_seeds"] == pytest.approx(taus)
    assert row["tau"] == pytest.approx(list(statistics.interval(taus)))
    assert row["worth"] == list(of.curves["tau"].worth(fmean(taus)))
    more = rows[recipes[0].name, "smoothed loss + 20 trained"]
    assert more["total"] - row["total"] == pytest.approx(compute.trained_networks(TABLE, 20))
    gaps = rankings.differences(list(rows.values()))
    gap = next(g for g in gaps if (g["score"], g["metric"]) == ("loss", "tau"))
    other = rows[recipes[1].name, "loss"]["tau_of_seeds"]
    assert gap["mean"] == pytest.approx(fmean(taus) - fmean(other))
    assert [gap["low"], gap["high"]] == pytest.approx(list(statistics.difference(taus, other))[1:])
    assert gap["word"] == ("different" if gap["low"] > 0 or gap["high"] < 0 else "not told apart")
    single = rankings.differences(rankings.qualities([recipes[0]], of, ()) * 2)
    assert {g["mean"] for g in single if g["score"] == "loss"} == {0}


def test_a_score_that_one_seed_lacks_is_left_out(found, monkeypatch):
    recipes, of = found
    one = recipes[1].seeds[0]
    monkeypatch.setitem(one.scores, "KL to all candidates", one.scores["loss"])
    rows = rankings.qualities([recipes[1]], of, labels=())
    assert {row["score"] for row in rows} == one.scores.keys() - {"KL to all candidates"}


def test_a_supernet_with_trained_networks_is_a_penalised_least_squares(found):
    (recipe, _), of = found
    one, penalty = recipe.seeds[0], 3.0
    random = np.random.default_rng(ranking.HALVES_SEED)
    some = random.choice(of.fitted, 30, replace=False)
    assert not set(some) & set(of.numbers)
    y = np.log(100 - TABLE.distinct.accuracies[some, random.integers(3)])
    hot = ranking.one_hot(TABLE.distinct.paths)
    x = torch.from_numpy(np.column_stack([hot, one.predicted]))
    rest = torch.diag(torch.tensor([0.0] + [penalty**0.5] * 16 + [0.0], dtype=torch.float64))
    target = torch.cat([torch.from_numpy(y), torch.zeros(18, dtype=torch.float64)])
    weights = torch.linalg.lstsq(torch.cat([x[some], rest]), target[:, None]).solution[:, 0]
    expected = of.networks.quality(-(x @ weights).numpy()[of.numbers])
    assert rankings.with_trained(one, of, 30, 1, penalty) == pytest.approx(expected)


@pytest.mark.parametrize("loss", [1.0, 2.3])
def test_a_supernet_that_ranks_nothing_adds_nothing_to_trained_networks(space, tmp_path, loss):
    """All losses are equal, so that the logarithm is 0, or a constant up to rounding."""
    read = rankings.read(write(tmp_path / "one", space, 0, noise=0.1))
    for row in read.rows:
        row["val_loss"] = loss
    of = rankings.judged([read], "choosing", draws=2)
    found = rankings.with_trained(read, of, 50, draws=4)
    random, taus = np.random.default_rng(ranking.HALVES_SEED), []
    for _ in range(4):
        some = random.choice(of.fitted, 50, replace=False)
        errors = np.log(100 - of.everything.runs[some, random.integers(3)])
        design = ranking.one_hot(of.table.distinct.paths)
        scores = -ranking.ridge(design, some, errors, rankings.PRIOR)
        taus.append(ranking.tau(scores[of.numbers], of.networks.truth))
    assert found.tau == pytest.approx(np.mean(taus))


def test_the_smoothed_loss_is_known_of_networks_that_were_not_scored(found):
    one = found[0][0].seeds[0]
    assert np.isfinite(one.predicted).all()
    single = TABLE.realisations == 1
    known = single & ~np.isnan(one.scores["smoothed loss"])
    np.testing.assert_allclose(one.predicted[known], -one.scores["smoothed loss"][known])
    assert known.sum() < single.sum()


def test_a_candidate_that_is_overrated_is_found(found):
    recipes, of = found
    one = recipes[1].seeds[0]
    paths = of.table.distinct.paths
    truth = -np.log(100 - of.everything.truth)
    smooth = -ranking.ridge(ranking.one_hot(paths), of.numbers, -truth[of.numbers], 0)
    wrong = smooth + 0.3 * (paths[:, 4] == 2)
    one.__dict__["scores"] = {"loss": wrong}
    rows = effects.overrated([rankings.Recipe("made", [one])], of)
    del one.__dict__["scores"]
    at = {(row["position"], row["candidate"]): row for row in rows}
    assert max(at, key=lambda place: at[place]["overrated"][0]) == (4, 2)
    for position in range(8):
        for column in ("truth", "supernet"):
            assert sum(at[position, c][column] for c in range(3)) == pytest.approx(0, abs=1e-9)
    # Effects add up to the values that the linear model gives, in its own deviations.
    values = wrong[of.numbers]
    values = (values - values.mean()) / values.std()
    sums = [sum(at[n, c]["supernet"] for n, c in enumerate(p)) for p in paths[of.numbers].tolist()]
    np.testing.assert_allclose(np.subtract(sums, values), np.mean(np.subtract(sums, values)))


def test_what_is_wrong_is_named(tmp_path, space, folders):
    first = rankings.read(folders[0])
    with pytest.raises(ValueError, match=r"are of one recipe and seed 2; leave one out"):
        rankings.recipes([first, first])
    write(tmp_path / "few", space, 0, noise=0, networks=30)
    with pytest.raises(ValueError, match=r"networks of the half 'choosing' have a score"):
        rankings.judged([rankings.read(tmp_path / "few")], "choosing")
    old = Folder(tmp_path / "few", scored.FORMAT)
    old.write({}, remove=["supernet.json"])
    with pytest.raises(FolderError, match="repeat the command of mnas rank that made it"):
        rankings.read(tmp_path / "few")
    for arguments, message in (
        ([], "no ranking is given; expected folders of mnas rank"),
        ([str(tmp_path / "none")], "does not hold settings.json"),
        ([str(tmp_path / "few")], "repeat the command of mnas rank that made it"),
    ):
        with pytest.raises(Failure, match=message) as error:
            rank.app(
                ["compare", *arguments, "--out", str(tmp_path / "out")],
                exit_on_error=False,
                print_error=False,
                result_action="return_value",
            )
        assert error.value.status == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_command_writes_the_same_tables_rows_and_figure_twice(folders, tmp_path, capsys):
    given = list(map(str, folders[1:4]))  # two seeds of one recipe, one of another
    more = ["--together", *given, "--prior", "depth=0.2"]
    for name in ("one", "two"):
        rank.app(
            ["compare", *given, "--out", str(tmp_path / name), *more],
            exit_on_error=False,
            print_error=False,
            result_action="return_value",
        )
    text = (tmp_path / "one" / "README.md").read_text()
    assert capsys.readouterr().out == 2 * text
    assert "of a full training, ranks better than any linear model" in text
    assert "| prior 0.2 depth " in text
    assert "| unknown, ? of ? cores |" in text  # what seconds are of
    assert "| fair, 15 epochs + 6 epochs, 16 px, prior 0.2 depth " in text
    again = " ".join([*given, "--half", "choosing", *more, "--out", "DIR"])
    assert f"`mnas rank compare {again}`" in text
    assert "| fair, 15 epochs + 6 epochs, 16 px " in text  # together, and each by itself
    assert "| fair, 6 epochs, 16 px " in text
    files = sorted(file.name for file in (tmp_path / "one").iterdir())
    assert files == sorted(
        ["README.md", "tau.png", "effects.png", *(f"{n}.jsonl" for n in compare.TABLES)]
    )
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    for name in ("depths", "seeds"):
        assert (tmp_path / "one" / f"{name}.jsonl").read_text().count("\n") > 5, name
    rows = list(map(json.loads, (tmp_path / "one" / "free.jsonl").read_text().splitlines()))
    low, high = rows[0]["tau_range"]
    assert low < rows[0]["tau"] < high


def test_the_figure_shows_thirty_rankings_without_names_over_each_other(
    found, tmp_path, monkeypatch
):
    recipes, of = found
    rows = rankings.qualities(recipes, of, labels=(20, 100))
    own, more = [row for row in rows if row["recipe"] == recipes[0].name], []
    for number, rule in enumerate(("fair", "rule sandwich", "rule fair", "uniform")):
        for epochs in (2, 6, 15):
            for pixels in (16, 32):
                name = f"{rule}, {epochs} epochs, {pixels} px, last checkpoint"
                cost = 0.004 * epochs * pixels / 16 * (1 + number / 2)
                more += [
                    {**row, "recipe": name, "total": cost} for row in own if not row["trained"]
                ]
    free = rankings.free(of)
    free += [
        {**free[1], "score": f"far below all {n}", "tau": -0.5, "within": -0.5} for n in range(9)
    ]
    alone = [
        {**own[0], "score": f"zero-cost {n}", "total": 1e-4 * n, "networks": 100 + n}
        for n in (1, 9)
    ]
    lowest = {"tau": [0.45, 0.4, 0.5], "within": [0.3, 0.25, 0.35]}
    alone.append({**alone[0], **lowest, "score": "lowest", "total": 0.01})
    made = rankings_page.Found(
        *("nb_macro", "choosing", len(of.numbers), free, rankings.trained(of), rows + more, alone),
        *([], [], ["identity", "3x3", "5x5"]),
    )
    drawn = []
    monkeypatch.setattr(rankings_figure, "_write", lambda *arguments: drawn.append(arguments))
    rankings_figure.draw(made, tmp_path / "tau.png")
    for ax in {id(arguments[0]): arguments[0] for arguments in drawn}.values():
        boxes = [box for of_ax, *_, box, _ in drawn if of_ax is ax]
        assert len(boxes) >= 12
        (below,) = [text for text in ax.texts if text.get_text().startswith("below: ")]
        top = ax.transData.inverted().transform(below.get_window_extent().corners())[:, 1].max()
        marks = [line.get_ydata()[0] for line in ax.lines if line.get_marker() == "s"]
        assert top < min(marks)
        for a, b in combinations(boxes, 2):
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
    points = rankings_figure.points(made, "tau")
    assert len(points) >= 30
    assert {"zero-cost 1 (101 networks)", "zero-cost 9"} <= {p.name for p in points}
    assert {p.short for p in points if p.name == "rule fair, 32 px, last checkpoint"} == {
        "2",
        "6",
        "15",
    }
    for point in points:
        near = [r["total"] for r in rows + more + alone] + [0 for _ in free]
        assert any(total <= point.cost <= 1.5 * total for total in near)


def test_the_map_names_what_recipes_overrate_most_on_average(tmp_path):
    rows = [
        {"recipe": name, "position": position, "candidate": candidate, "overrated": [gap, *ends]}
        for name, ends in (("one", (0.01, 0.5)), ("two", (np.nan, np.nan)))
        for position, candidate, gap in (
            *((0, 0, -0.02), (0, 1, 0.02), (1, 0, 0.3 if name == "one" else -0.4)),
            (1, 1, -0.1),
        )
    ]
    made = rankings_page.Found("t", "choosing", 9, [], [], [], [], [], rows, ["identity", "5x5"])
    said = rankings_figure.effects_message(made)
    assert said.startswith(
        "Supernets underrate 5x5 at position 2 most, by 0.10 standard deviations"
    )
    rankings_figure.effects(made, tmp_path / "effects.png")
    assert (tmp_path / "effects.png").stat().st_size > 1000


def test_the_message_says_where_the_best_is_one_seed():
    best = {"recipe": "r", "score": "loss", "trained": 0, "total": 0.077, "tau": [0.9, None, None]}
    for seeds, more in (([0], " (one seed)"), ([0, 1], "")):
        rows = [{**best, "seeds": seeds, "worth": [208.0, 66.0, 630.0]}]
        made = rankings_page.Found("t", "choosing", 9, [], [], rows, [], [], [], [])
        assert rankings_page.message(made) == (
            "r: loss, for 0.077 of a full training, ranks as well as a linear model of "
            f"208 [66, 630] trained networks{more}."
        )


def test_the_map_is_of_the_typical_recipe_not_of_one_that_did_not_train():
    rows = [
        {"recipe": str(n), "position": position, "candidate": 0, "overrated": [gap, 0, 1]}
        for n, gaps in enumerate(((0.1, 0.0), (0.1, 0.05), (-0.9, 0.9)))
        for position, gap in enumerate(gaps)
    ]
    made = rankings_page.Found("t", "choosing", 9, [], [], [], [], [], rows, ["identity"])
    assert rankings_figure.effects_message(made).startswith(
        "Supernets overrate identity at position 1 most, by 0.10 standard deviations (median of"
    )


def test_trained_networks_beside_a_supernet_have_its_colour(found):
    recipes, of = found
    rows = rankings.qualities(recipes, of, labels=(20,))
    for number, row in enumerate(row for row in rows if not row["trained"]):
        row["tau"] = [0.75 - 0.01 * number, np.nan, np.nan]
        row["worth"] = list(of.curves["tau"].worth(row["tau"][0]))
    made = rankings_page.Found(
        *("nb_macro", "choosing", 9, rankings.free(of), rankings.trained(of), rows),
        *([], [], [], ["identity"]),
    )
    best = rankings_page.best(made)
    points = {point.cost: point for point in rankings_figure.points(made, "tau")}
    assert rankings_figure._trained(made, "tau").colour == points[best["total"]].colour
    line = rankings_figure._worth(made)
    assert line.y[0] == line.y[-1] == best["tau"][0]
    curve = {row["cost"]: row["tau"][0] for row in made.trained}
    assert np.interp(np.log(line.x[-1]), np.log(list(curve)), list(curve.values())) == (
        pytest.approx(best["tau"][0], abs=0.003)
    )
