"""Recipes of supernets by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

SHORT = ("rule", "sampler", "epochs", "resolution")  # are in every name


def names(found: Sequence[dict[str, Any]]) -> list[str]:
    """Of recipes: what they differ in, of settings other than those that are in every name. What
    more than half have is not said, where there are three recipes or more."""
    keys = sorted({key for one in found for key in one})
    varied = [
        key
        for key in keys
        if key not in SHORT and len({repr(one.get(key)) for one in found}) > 1 and key != "data"
    ]
    usual = {key: _usual([repr(one.get(key)) for one in found]) for key in varied}
    names = []
    for one in found:
        rule = one.get("rule", "single_path")
        how = one["sampler"] if rule == "single_path" else f"rule {rule}"
        if (
            rule != "single_path"
            and len({o["sampler"] for o in found if o.get("rule") == rule}) > 1
        ):
            how += f", {one['sampler']} paths"
        size = f", {one['resolution']} px" if "resolution" in one else ""
        own = [key for key in varied if repr(one.get(key)) != usual[key]]
        own = [
            key
            for key in own
            if key.startswith("scored ")
            or one.get(key) is not None
            or usual[key] not in (None, "None")  # to lack what others have is to be said
        ]
        more = "".join(f", {said(key, one.get(key))}" for key in own)
        names.append(f"{how}, {one['epochs']:g} epochs{size}{more}")
    return names


def _usual(values: Sequence[str]) -> str | None:
    value, number = Counter(values).most_common(1)[0]
    return value if number > len(values) / 2 and len(values) > 2 else None


def said(key: str, value: Any) -> str:
    """A setting of a recipe in plain words."""
    if key == "scored bn_images":
        return f"statistics of {value:,} images" if value else "stored statistics"
    if key == "scored images":
        return f"scored on {value:,} images"
    if key == "scored average":
        return f"mean of {value} checkpoints" if value else "last checkpoint"
    words = {
        ("policy", "frozen"): "momentum off the path frozen",
        ("policy", "torch"): "momentum off the path drifting",
        ("epochs", value): f"{value} epochs",
        ("resolution", value): f"{value or 'full'} px",
    }
    word = key.replace("_", " ")
    return words.get((key, value), f"no {word}" if value is None else f"{word} {value}")
