"""Rankings of several supernets beside each other, from the rows that `mnas rank` has written, and
of networks by themselves, from `mnas rank alone`.

- `mnas rank compare rankings/* --out results/ranking/compared`

Rankings that differ in their seed alone are one recipe. OUT gets README.md with all tables, the
figures tau.png and effects.png, and the rows of all. Nothing is trained or scored."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter

from mnas.commands.options import UserPath
from mnas.errors import Failure, make, user_input, writing

TABLES = (
    *("free", "trained", "supernets", "alone"),
    *("differences", "effects", "intervals", "paired", "depths", "seeds"),
)
app = App(name="compare", help=__doc__, help_format="markdown", version_flags=())


@app.default
def main(
    *rankings: Annotated[UserPath, Parameter(help="Folders of mnas rank and mnas rank alone.")],
    out: Annotated[UserPath, Parameter(help="Where tables, rows and figure are written.")],
    half: Annotated[
        Literal["choosing", "reporting", "both"],
        Parameter(
            help="The networks to compare: those that recipes are chosen on, or those reported."
        ),
    ] = "choosing",
    together: Annotated[
        tuple[UserPath, ...],
        Parameter(
            consume_multiple=True,
            negative=(),
            help="Also compare the mean of these folders' scores, seed by seed, as one estimator.",
        ),
    ] = (),
    without: Annotated[
        tuple[UserPath, ...],
        Parameter(
            consume_multiple=True,
            negative=(),
            help="Leave out the networks that these folders have scored: what was looked at "
            "before.",
        ),
    ] = (),
    prior: Annotated[
        tuple[str, ...],
        Parameter(
            consume_multiple=True,
            negative=(),
            help="Also compare each with what is free added to its scores, all in standard "
            "deviations: NAME=WEIGHT, as depth=0.15 ReLUs=0.15.",
        ),
    ] = (),
) -> None:
    given = rankings
    rankings += tuple(path for path in together if path not in rankings)
    if not rankings:
        raise Failure("no ranking is given; expected folders of mnas rank", status=2)
    from tqdm.auto import tqdm

    from mnas import spaces
    from mnas.storage import strict_json
    from mnas.storage.files import write_atomically
    from mnas.studies import alone_rankings, rankings_figure, rankings_page, uncertainty
    from mnas.studies import rankings as studied
    from mnas.studies.by_depth import by_depth
    from mnas.studies.by_seed import by_seed
    from mnas.studies.effects import overrated
    from mnas.studies.together import as_one, with_prior

    added = _prior(prior)
    by_themselves = [path for path in rankings if alone_rankings.is_alone(path)]
    if alone_together := [path for path in together if path in by_themselves]:
        raise Failure(
            f"{alone_together[0]} is of networks by themselves; --together expects folders of "
            "supernets",
            status=2,
        )
    supernets_of = [path for path in rankings if path not in by_themselves]
    if not supernets_of:
        raise Failure("no ranking is of a supernet; expected one at least to compare with", 2)
    with user_input():
        read = [studied.read(path) for path in supernets_of]
        recipes = studied.recipes(read)
        if together:
            recipes.append(as_one(recipes, together))
        if added:
            recipes += [with_prior(recipe, added) for recipe in recipes]
        read_alone = [alone_rankings.read(path) for path in by_themselves]
        seen = [studied.read(path) for path in without]
        of = studied.judged(read, half, without=seen)
        alone = alone_rankings.qualities(read_alone, of)
    make(out)  # before minutes of work

    def each(what: str) -> Iterable[studied.Recipe]:
        return tqdm(recipes, what, unit="recipe", disable=None, leave=False)

    supernets = studied.qualities(each("scores"), of)
    drawn = uncertainty.over_networks(each("other networks"), of)
    space = spaces.get(of.table.name)
    found = rankings_page.Found(
        title=of.table.name,
        half=half,
        networks=len(of.numbers),
        free=studied.free(of, added),
        trained=studied.trained(of),
        supernets=supernets,
        alone=alone,
        differences=studied.differences(supernets),
        effects=overrated(recipes, of),
        intervals=uncertainty.intervals(each("other images"), of, supernets, drawn),
        paired=uncertainty.paired(recipes, supernets, drawn),
        candidates=[str(value) for value in space.choices[-1]],
        depths=by_depth(recipes, of),
        seeds=by_seed(recipes, of),
        command=_command(
            given, half, {"--together": together, "--without": without, "--prior": prior}
        ),
    )
    with writing(out):
        for name in TABLES:
            write_atomically(out / f"{name}.jsonl", strict_json.lines(getattr(found, name)))
        rankings_figure.draw(found, out / "tau.png")
        rankings_figure.effects(found, out / "effects.png")
        text = rankings_page.page(found)
        write_atomically(out / "README.md", text)
    print(text, end="")


def _prior(given: tuple[str, ...]) -> dict[str, float]:
    found: dict[str, float] = {}
    for text in given:
        name, _, number = text.rpartition("=")
        try:
            weight = float(number)
        except ValueError:
            weight = math.nan
        if not (name and math.isfinite(weight) and weight):
            raise Failure(
                f"--prior {text}: expected a name and a weight other than 0, as depth=0.25", 2
            )
        if name in found:
            raise Failure(f"--prior {text}: {name} is given twice; leave one out", 2)
        found[name] = weight
    return found


def _command(given: Sequence[Path], half: str, options: Mapping[str, Sequence[Any]]) -> str:
    """What makes the page again, wherever."""
    more = [word for name, of in options.items() if of for word in (name, *map(str, of))]
    words = ["mnas", "rank", "compare", *map(str, given), "--half", half, *more, "--out", "DIR"]
    return shlex.join(words)
