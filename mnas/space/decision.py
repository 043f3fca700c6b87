"""Decision: a variable of a search space, which one place or many of them read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Set
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

_NEW: ContextVar[list[Decision] | None] = ContextVar("_NEW", default=None)


class Decision:
    """A variable with a few values, as the depth of a stage or the width of an embedding.

    values: numbers, names, pairs, sets: whatever the function of a `Choice` takes. A path holds the
    index of one. Two decisions with the same name and values are the same one. labels: the values
    in names of architectures, each a word without "-".

    Raises ValueError without values, for equal ones, and for a name that is no identifier."""

    def __init__(self, name: str, values: Iterable[Any]) -> None:
        if not isinstance(name, str) or not name.isidentifier():
            raise ValueError(
                f"the name of a decision is {name!r}; expected letters, digits and underscores, as "
                "in Decision('depth', (2, 3, 4))"
            )
        if isinstance(values, str) or not isinstance(values, Iterable):
            raise ValueError(
                f"decision {name!r} has the values {values!r}; expected several, as in "
                f"Decision({name!r}, (2, 3, 4))"
            )
        self.name = name
        self.values = tuple(values)
        self.labels = tuple(map(_label, self.values))
        if not self.values:
            raise ValueError(f"decision {name!r} has no values; give it at least one")
        for label in self.labels:
            if self.labels.count(label) > 1:
                raise ValueError(
                    f"decision {name!r} has two values called {label!r}; give each one of its own"
                )
        new = _NEW.get()
        if new is not None:
            new.append(self)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Decision) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash((self.name, self.labels))

    def _key(self) -> tuple[Any, ...]:
        return self.name, self.labels, self.values

    def __len__(self) -> int:
        return len(self.values)

    def __repr__(self) -> str:
        return f"Decision({self.name!r}, {self.values!r})"

    def format(self, index: int) -> str:
        """A value in the name of an architecture: a name as it is, anything else behind the
        decision's."""
        label = self.labels[index]
        return label if isinstance(self.values[index], str) else f"{self.name}={label}"

    def parse(self, text: str) -> int | None:
        """The index of a value by `format`, or by its label alone; None for anything else."""
        label = text.removeprefix(f"{self.name}=")
        return self.labels.index(label) if label in self.labels else None

    def index(self, value: Any) -> int:
        """Of a value or its label. Raises ValueError that lists the values."""
        exact = [i for i, v in enumerate(self.values) if type(v) is type(value) and v == value]
        label = [self.labels.index(value)] if value in self.labels else []
        equal = [i for i, v in enumerate(self.values) if v == value]
        alike = [*exact, *label, *equal]  # 1, True and 1.0 are equal
        if alike:
            return alike[0]
        raise ValueError(f"{self.name}={value!r}; expected one of {', '.join(self.labels)}")


@contextmanager
def noticing() -> Iterator[list[Decision]]:
    """The decisions that are made meanwhile."""
    found: list[Decision] = []
    token = _NEW.set(found)
    try:
        yield found
    finally:
        _NEW.reset(token)


def _label(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return ",".join(map(_label, value))
    if isinstance(value, Set):
        return "+".join(sorted(map(_label, value))) or "none"
    # "-" joins the names of an architecture, and other signs mean something to a shell.
    return re.sub(r"[^\w.+]", "_", str(getattr(value, "__name__", value)))
