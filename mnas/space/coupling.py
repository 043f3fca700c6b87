"""Which values of decisions are which network.

A network is the tuple of candidates, one a place (its *key*). Where places read decisions that
others read, too, or candidates do not depend on all of their decisions, several paths are one
network. Each network has one canonical path, the first of its paths."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, reduce
from itertools import product
from math import prod
from operator import mul

from torch import Tensor

Path = tuple[int, ...]
"""One index of a value for each decision, in the order in which the places first read them."""
Key = tuple[int, ...]
"""One index of a candidate for each place, in the order in which the model registers them."""


class Place:
    """positions: of the decisions that it reads, in the path. table: the candidate for their
    values."""

    def __init__(self, positions: Sequence[int], table: Mapping[Path, int]) -> None:
        self.positions, self.table = tuple(positions), dict(table)
        self.rows: dict[int, list[Path]] = {}
        """The values that give a candidate."""
        for values, candidate in self.table.items():
            self.rows.setdefault(candidate, []).append(values)

    def weights(self, entries: Sequence[int | Tensor]) -> dict[int, Tensor]:
        """By candidate, of a mixture. entries: for each decision an index, or a tensor with a
        weight for each value; a candidate has the sum of the products of its values' weights."""
        found: dict[int, Tensor] = {}
        for values, candidate in self.table.items():
            pairs = list(zip(entries, values, strict=True))
            if all(isinstance(entry, Tensor) or entry == value for entry, value in pairs):
                weight = reduce(
                    mul, (entry[value] for entry, value in pairs if isinstance(entry, Tensor))
                )
                found[candidate] = found[candidate] + weight if candidate in found else weight
        return dict(sorted(found.items()))


class Coupling:
    """The places of a space, and the decisions that they share. indices: for each decision those of
    the values that it can have."""

    def __init__(self, indices: Sequence[Sequence[int]], places: Sequence[Place]) -> None:
        self.indices, self.places = tuple(map(tuple, indices)), tuple(places)

    def within(self, fixed: Mapping[int, int]) -> Coupling:
        """What is left where these decisions have one value each. Values and candidates keep their
        numbers."""
        indices = [[fixed[i]] if i in fixed else known for i, known in enumerate(self.indices)]
        places = []
        for place in self.places:
            of = place.positions
            left = {
                values: candidate
                for values, candidate in place.table.items()
                if all(value in indices[i] for i, value in zip(of, values, strict=True))
            }
            places.append(Place(of, left))
        return Coupling(indices, places)

    def key(self, path: Sequence[int]) -> Key:
        return tuple([p.table[tuple([path[i] for i in p.positions])] for p in self.places])

    @cached_property
    def size(self) -> int:
        """The number of networks, exact and without going through them: of the places' keys, as
        words that an automaton accepts whose states are what the decisions can be that are read on
        both sides. Words are counted over sets of states, so that none counts twice."""
        distinct = {(p.positions, tuple(p.table.items())): p for p in self.places}
        places = self._near(list(distinct.values()))
        last = {i: number for number, p in enumerate(places) for i in p.positions}
        live: tuple[int, ...] = ()
        counts: dict[frozenset[Path], int] = {frozenset({()}): 1}
        for number, place in enumerate(places):
            after = tuple(i for i in dict.fromkeys((*live, *place.positions)) if last[i] > number)
            grown: dict[frozenset[Path], int] = {}
            for states, count in counts.items():
                # By candidate: what the decisions of `after` can be then.
                found: dict[int, set[Path]] = {}
                for state in states:
                    known = dict(zip(live, state, strict=True))
                    for values, candidate in place.table.items():
                        own = dict(zip(place.positions, values, strict=True))
                        if all(known.get(i, v) == v for i, v in own.items()):
                            both = known | own
                            found.setdefault(candidate, set()).add(tuple(both[i] for i in after))
                for reachable in found.values():
                    key = frozenset(reachable)
                    grown[key] = grown.get(key, 0) + count
            counts, live = grown, after
        return sum(counts.values())

    @staticmethod
    def _near(places: list[Place]) -> list[Place]:
        """In an order in which what reads the same decisions is close together."""
        ordered: list[Place] = []
        open_: set[int] = set()
        while places:
            best = min(places, key=lambda p: (len(set(p.positions) - open_), len(p.positions)))
            places.remove(best)
            ordered.append(best)
            still = {i for p in places for i in p.positions}
            open_ = (open_ | set(best.positions)) & still
        return ordered

    @cached_property
    def plain(self) -> bool:
        """Whether every path is a network of its own."""
        return self.size == prod(map(len, self.indices))

    def canonical(self, path: Path) -> Path:
        """The first path of the same network."""
        if self.plain:
            return tuple(path)
        return self.first(dict(enumerate(self.key(path))))

    def first(self, wanted: Mapping[int, int]) -> Path | None:
        """The first path, in the order of tuples, that has the wanted candidates at these places;
        None if there is none."""
        places = [(self.places[n], candidate) for n, candidate in wanted.items()]
        rows = [(place.positions, place.rows.get(candidate, [])) for place, candidate in places]
        reading: dict[int, list[int]] = {}
        for number, (positions, _) in enumerate(rows):
            for i in positions:
                reading.setdefault(i, []).append(number)

        def go_on(path: list[int], left: list[list[Path]]) -> list[int] | None:
            while len(path) < len(self.indices):
                i = len(path)
                numbers = reading.get(i, ())
                if not numbers:
                    path.append(self.indices[i][0])
                    continue
                column = {n: rows[n][0].index(i) for n in numbers}
                values = set.intersection(*({r[column[n]] for r in left[n]} for n in numbers))
                for value in sorted(values):
                    narrowed = list(left)
                    for n in numbers:
                        narrowed[n] = [r for r in left[n] if r[column[n]] == value]
                    if len(values) == 1:
                        path.append(value)
                        left = narrowed
                        break
                    found = go_on([*path, value], narrowed)
                    if found is not None:
                        return found
                else:
                    return None
            return path

        found = go_on([], [of_place for _, of_place in rows])
        return None if found is None else tuple(found)

    def networks(self) -> Iterator[Path]:
        """The canonical paths of all networks, in the order of tuples."""
        for path in product(*self.indices):
            if self.plain or self.canonical(path) == path:
                yield path
