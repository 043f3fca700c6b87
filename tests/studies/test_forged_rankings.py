"""Rankings whose files do not hold what they should, although their digests fit: each is refused,
or used as what it then says, and never ends in an error of the code."""

import contextlib
import json

import pytest
from test_alone_rankings import write_alone
from test_rankings import TABLE, space, write  # noqa: F401

from mnas.storage.files import Folder
from mnas.storage.strict_json import FolderError
from mnas.studies import alone, alone_rankings, rankings, scored

WRONG = ("x", "", -1, 0, 2.5, 1e300, 10**30, None, True, [], [1], {})


def forged(document, where=()):
    """Every member of a document left out, or of another kind: a name, and what is there then."""
    for key, value in document.items():
        rest = {name: other for name, other in document.items() if name != key}
        yield (*where, key), rest
        for wrong in WRONG:
            yield (*where, key, wrong), {**rest, key: wrong}
        if isinstance(value, dict):
            for what, inner in forged(value, (*where, key)):
                yield what, {**rest, key: inner}


def supernet(path):
    (recipe,) = rankings.recipes([rankings.read(path)])
    return recipe.name, recipe.cost(TABLE), recipe.seeds[0].seed


def by_themselves(path):
    read = alone_rankings.read(path)
    return alone.label(read.settings), read.recipe, read.table


@pytest.fixture(scope="module")
def made(tmp_path_factory, space):  # noqa: F811
    folder = tmp_path_factory.mktemp("forged")
    return {
        scored.FORMAT: write(folder / "supernet", space, 0, noise=0.1, networks=120),
        alone.FORMAT: write_alone(folder / "alone", "short", 0, epochs=0.25),
    }


@pytest.mark.parametrize(
    ("kind", "name", "use"),
    [
        (scored.FORMAT, "settings.json", supernet),
        (scored.FORMAT, "supernet.json", supernet),
        (alone.FORMAT, "settings.json", by_themselves),
    ],
)
def test_what_is_forged_is_refused_or_used(made, kind, name, use):
    folder = Folder(made[kind], kind)
    whole, refused = folder.read(name), 0
    for what, content in forged(json.loads(whole)):
        folder.write({name: json.dumps(content)})
        with contextlib.suppress(ValueError):
            try:
                use(folder.path)
            except FolderError:
                refused += 1
            except Exception as error:
                error.add_note(f"{name}: {what}")
                raise
    folder.write({name: whole})
    assert refused > 10
