"""Strict JSON of files that others may have edited: read by types, written without NaN."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")


class FolderError(ValueError):
    """A file or directory cannot be used as asked; the message says why and what to do."""


def dumps(value: Any, indent: int | None = None) -> str:
    """Strict JSON: NaN and infinities are null, numbers of numpy are numbers. Raises ValueError for
    what is neither."""
    return json.dumps(_plain(value), allow_nan=False, indent=indent)


def lines(rows: Iterable[Mapping[str, Any]]) -> str:
    """One JSON object a line."""
    return "".join(dumps(row) + "\n" for row in rows)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    value = plain_number(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ValueError(
        f"a {type(value).__name__} cannot be written as JSON; expected numbers, text, lists, dicts"
    )


def plain_number(value: Any) -> Any:
    """A number of numpy as one of Python's, which JSON and torch's weights_only reader know; all
    else as it is."""
    return (
        value.item()
        if type(value).__module__ == "numpy" and getattr(value, "shape", None) == ()
        else value
    )


def parse(content: bytes, kind: type[T], where: object) -> T:
    """JSON of a type that msgspec knows. Raises FolderError for what is no strict JSON, or of
    another shape."""
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, OverflowError) as error:
        reason = str(error) if isinstance(error, msgspec.MsgspecError) else type(error).__name__
        raise FolderError(f"{where} is damaged ({reason}); restore it") from error


def parse_lines(content: bytes, kind: type, where: object) -> list[dict[str, Any]]:
    """One JSON object a line, each of a type that msgspec knows."""
    found = []
    for number, line in enumerate(content.splitlines(), 1):
        found.append(parse(line, dict, f"line {number} of {where}"))
        checked(found[-1], kind, f"line {number} of {where}")
    return found


def checked(value: Any, kind: Any, where: object) -> None:
    """Raise FolderError unless a parsed value has the shape of a type that msgspec knows."""
    try:
        msgspec.convert(value, kind)
    except (msgspec.MsgspecError, OverflowError) as error:
        raise FolderError(f"{where} does not hold what it should ({error}); restore it") from error
