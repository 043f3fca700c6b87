"""Names of recipes: what they differ in, and no more."""

from test_rankings import space, write  # noqa: F401

from mnas.studies import rankings


def test_no_two_recipes_have_one_name(space, tmp_path):  # noqa: F811
    made = [
        write(tmp_path / sampler, space, 0, noise=0.1, rule="sandwich", sampler=sampler)
        for sampler in ("fair", "uniform")
    ]
    names = [recipe.name for recipe in rankings.recipes(list(map(rankings.read, made)))]
    assert names == [
        f"rule sandwich, {sampler} paths, 6 epochs, 16 px" for sampler in ("fair", "uniform")
    ]


def test_scores_of_averaged_weights_are_a_recipe_of_their_own(tmp_path, space):  # noqa: F811
    folder = write(tmp_path / "one", space, 0, noise=0.1, keep_checkpoints=3)
    single, kept = rankings.read(folder), rankings.read(folder)
    averaged = rankings.read(folder)
    del single.training["config"]["keep_checkpoints"]
    averaged.settings["average"] = 3
    assert single.recipe == kept.recipe  # what is kept and not used makes no difference
    names = [recipe.name for recipe in rankings.recipes([single, averaged])]
    assert names == [
        f"fair, 6 epochs, 16 px, {what}" for what in ("last checkpoint", "mean of 3 checkpoints")
    ]


def test_a_setting_of_one_rule_alone_is_not_in_the_names_of_others(tmp_path, space):  # noqa: F811
    folder = write(tmp_path / "one", space, 0, noise=0.1)
    plain, sandwich = rankings.read(folder), rankings.read(folder)
    sandwich.training["config"].update(rule="sandwich", random_paths=2)
    assert [recipe.name for recipe in rankings.recipes([plain, sandwich])] == [
        "fair, 6 epochs, 16 px",
        "rule sandwich, 6 epochs, 16 px, random paths 2",
    ]


def test_what_most_recipes_have_is_not_in_names(tmp_path, space):  # noqa: F811
    folder = write(tmp_path / "one", space, 0, noise=0.1)
    made = [rankings.read(folder) for _ in range(3)]
    settings = [(0.1, "frozen"), (0.1, "torch"), (0.2, "frozen")]
    for one, (rate, policy) in zip(made, settings, strict=True):
        one.training["config"].update(lr=rate, policy=policy)
    assert [recipe.name for recipe in rankings.recipes(made)] == [
        "fair, 6 epochs, 16 px",
        "fair, 6 epochs, 16 px, momentum off the path drifting",
        "fair, 6 epochs, 16 px, lr 0.2",
    ]
    made = [rankings.read(folder) for _ in range(3)]
    for one, policy in zip(made[:2], ("frozen",) * 2, strict=True):
        one.training["config"].update(policy=policy)
    made[1].training["config"].update(epochs=2.0)
    assert [recipe.name for recipe in rankings.recipes(made)] == [
        "fair, 6 epochs, 16 px",
        "fair, 2 epochs, 16 px",
        "fair, 6 epochs, 16 px, no policy",
    ]
