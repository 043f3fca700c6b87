"""Networks by themselves beside supernets: rows made of published accuracies, numbers against naive
ones."""

import numpy as np
import pytest
from test_rankings import TABLE, write

import mnas
from mnas.commands import rank
from mnas.errors import Failure
from mnas.storage import strict_json
from mnas.storage.files import Folder
from mnas.storage.strict_json import FolderError
from mnas.studies import alone, alone_rankings, compute, ranking, rankings, statistics

SPACE = mnas.spaces.get("nb_macro", 16)


def write_alone(path, score, seed, *, some=None, missing=0, start=0, **more):
    """A folder as of mnas rank alone, whose scores are published accuracies with noise."""
    random, rows = np.random.default_rng(seed), []
    for one in alone.networks(TABLE, 600, 0, some):
        error = 1 - TABLE.accuracies[TABLE.rows[one]].mean() / 100
        error *= np.exp(0.2 * random.standard_normal())
        values = {"zico": 1 - error}
        if score == "short":
            values = {"val_loss": error, "val_top1": 1 - error, "train_loss": 1.0}
        macs = mnas.cost(SPACE, one).macs
        row = {"arch": SPACE.format(one), "params": 1, "macs": macs, "values": values}
        rows.append({**row, "work": 100.0 * macs, "seconds": 2.0})
    settings = {"space": "nb_macro", "score": score, "resolution": 16, "networks": 600, "seed": 0}
    settings |= {"some": some, "start_seed": seed, "threads": 1, **more}
    path.mkdir()
    Folder(path, alone.FORMAT).write(
        {
            "settings.json": strict_json.dumps(settings),
            "rows.jsonl": strict_json.lines(rows[: len(rows) - missing]),
        }
    )
    return path


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rankings")
    zico = [write_alone(folder / f"zico{seed}", "zico", seed) for seed in (0, 1)]
    short = write_alone(folder / "short", "short", 0, some=100, epochs=0.25)
    return [write(folder / "supernet", SPACE, 0, noise=0.1), *zico, short]


@pytest.fixture(scope="module")
def found(folders):
    assert [alone_rankings.is_alone(path) for path in folders] == [False, True, True, True]
    of = rankings.judged([rankings.read(folders[0])], "choosing", draws=4)
    read = [alone_rankings.read(path) for path in folders[1:]]
    return read, of, {row["score"]: row for row in alone_rankings.qualities(read, of, draws=4)}


def test_numbers_are_those_of_networks_one_by_one(found):
    read, of, rows = found
    assert list(rows) == [
        "ZiCo, 16 px",
        "0.25 epochs from scratch, 16 px, loss",
        "0.25 epochs from scratch, 16 px, top-1",
        "0.25 epochs from scratch, 16 px, smoothed loss",
    ]
    full = compute.full_training(TABLE)
    for name, folders, value in (
        ("ZiCo, 16 px", read[:2], lambda v: v["zico"]),
        ("0.25 epochs from scratch, 16 px, loss", read[2:], lambda v: -v["val_loss"]),
    ):
        taus = []
        for one in folders:
            pairs = {}
            for row in one.rows:
                network = TABLE.network[TABLE.rows[SPACE.parse(row["arch"])]]
                if network in of.numbers:
                    pairs[network] = value(row["values"])
            truth = TABLE.distinct.accuracies.mean(1)[list(pairs)]
            taus.append(ranking.tau(list(pairs.values()), truth))
        row = rows[name]
        assert row["tau_of_seeds"] == pytest.approx(taus)
        assert row["tau"] == pytest.approx(list(statistics.interval(taus)), nan_ok=True)
        assert row["networks"] == len(pairs)
        assert row["scored"] == len(folders[0].rows)
        macs = sum(line["macs"] for line in folders[0].rows)
        assert row["total"] == pytest.approx(100 * macs / full)
        assert row["seconds"] == 2.0 * row["scored"]
    assert rows["ZiCo, 16 px"]["networks"] == len(of.numbers)
    assert rows["0.25 epochs from scratch, 16 px, loss"]["networks"] < 70


def test_a_worth_is_of_the_networks_that_were_scored(found):
    read, of, rows = found
    scores = read[2].scores["0.25 epochs from scratch, 16 px, loss"]
    numbers = of.numbers[~np.isnan(scores[of.numbers])]
    every = of.everything
    curve = ranking.exchange(
        TABLE.distinct.paths, every.runs, every.strata, of.fitted, numbers, draws=4
    )
    row = rows["0.25 epochs from scratch, 16 px, loss"]
    assert row["worth"] == list(curve.worth(row["tau"][0]))


def test_losses_of_some_networks_say_what_to_expect_of_all(found):
    read, of, rows = found
    name = "0.25 epochs from scratch, 16 px, smoothed loss"
    assert np.isfinite(read[2].scores[name]).all()
    assert rows[name]["networks"] == len(of.numbers)
    paths = [SPACE.parse(row["arch"]) for row in read[2].rows]
    losses = np.log([row["values"]["val_loss"] for row in read[2].rows])
    hot = ranking.one_hot(np.vstack([paths, TABLE.paths]))  # columns of all candidates
    x = hot[: len(paths)]
    penalty = np.diag([0.0] + [ranking.RIDGE] * (x.shape[1] - 1))
    weights = np.linalg.solve(x.T @ x + penalty, x.T @ losses)
    expected = TABLE.averaged(-hot[len(paths) :] @ weights)
    np.testing.assert_allclose(read[2].scores[name], expected)


def test_no_two_recipes_have_one_name_and_other_images_are_another(tmp_path, found):
    _, of, _ = found
    made = [
        write_alone(tmp_path / "a", "zico", 0, data_sha256="a" * 64),
        write_alone(tmp_path / "b", "zico", 1, data_sha256="a" * 64),
        write_alone(tmp_path / "other images", "zico", 2, data_sha256="b" * 64),
        write_alone(tmp_path / "fewer", "zico", 0, data_sha256="a" * 64, some=200),
        write_alone(tmp_path / "short", "short", 0, data_sha256="a" * 64, some=200, epochs=1),
    ]
    rows = alone_rankings.qualities(list(map(alone_rankings.read, made)), of, draws=4)
    assert [(row["score"], row["seeds"]) for row in rows[:4]] == [
        ("ZiCo, 16 px, data sha256 aaaaaaaa, some None", [0, 1]),
        ("ZiCo, 16 px, data sha256 bbbbbbbb, some None", [2]),
        ("ZiCo, 16 px, data sha256 aaaaaaaa, some 200", [0]),
        ("1 epochs from scratch, 16 px, loss", [0]),
    ]


def compare(*arguments):
    rank.app(
        ["compare", *map(str, arguments)],
        exit_on_error=False,
        print_error=False,
        result_action="return_value",
    )


@pytest.mark.parametrize("score", ["zico", "short"])
def test_what_is_not_finite_ranks_last_without_a_warning(tmp_path, found, score):
    _, of, _ = found
    one = alone_rankings.read(write_alone(tmp_path / score, score, 0, epochs=0.25))
    name = {"zico": "zico", "short": "val_loss"}[score]
    for row in one.rows[::7]:
        row["values"][name] = None
    rows = alone_rankings.qualities([one], of, draws=1)
    assert 0 < rows[0]["tau"][0] < 1
    values = one.scores[rows[0]["score"]]
    last = [TABLE.network[TABLE.rows[SPACE.parse(row["arch"])]] for row in one.rows[::7]]
    rest = np.setdiff1d(np.flatnonzero(~np.isnan(values)), last)
    assert values[last].max() < values[rest].min()


def test_what_is_wrong_is_named(folders, tmp_path, found):
    cut = write_alone(tmp_path / "cut", "zico", 5, missing=3)
    with pytest.raises(FolderError, match=r"networks; repeat its command, which goes on"):
        alone_rankings.read(cut)
    read, of, _ = found
    with pytest.raises(ValueError, match="are of one recipe and seed 0; leave one out"):
        alone_rankings.qualities([read[0], read[0]], of)
    few = alone_rankings.read(write_alone(tmp_path / "few", "zico", 0, some=20))
    with pytest.raises(ValueError, match=r"have a score in .*few; expected 20 at least"):
        alone_rankings.qualities([few], of)
    other = write_alone(tmp_path / "other", "zico", 0)
    other = alone_rankings.read(other)
    other.settings["space"] = "channel_macro_resnet"
    with pytest.raises(ValueError, match="is of space channel_macro_resnet; expected nb_macro"):
        alone_rankings.qualities([other], of)
    with pytest.raises(Failure, match="no ranking is of a supernet") as error:
        compare(*folders[1:], "--out", tmp_path / "out")
    assert error.value.status == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_command_shows_them_in_tables_and_figure(folders, tmp_path, capsys):
    compare(*folders, "--out", tmp_path / "out")
    compare(folders[0], "--out", tmp_path / "without")
    text, _ = capsys.readouterr().out.split("# nb_macro: rankings beside each other")[1:]
    for name in ("| ZiCo, 16 px ", "| 0.25 epochs from scratch, 16 px, smoothed loss "):
        assert text.count(name) == 1
    assert len((tmp_path / "out" / "alone.jsonl").read_text().splitlines()) == 4
    assert (tmp_path / "without" / "alone.jsonl").read_text() == ""
    pictures = [(tmp_path / name / "tau.png").read_bytes() for name in ("out", "without")]
    assert pictures[0] != pictures[1]
