"""The tables and figures of docs/benchmarks.md, from the rows that tools/benchmark.py has
measured."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mnas.studies.pages import markdown
from mnas.studies.plotting import MARKERS, figure

PHASES = ("reset", "forward", "backward", "optimizer")
RATIOS = (
    ("sliced", "modular"),
    ("sliced", "standalone"),
    ("masked", "sliced"),
    ("naive", "sliced"),
)
Row = dict[str, Any]


def ratios(rows: list[Row], by: str, to: str) -> list[float]:
    """Seconds of one side over those of another, round by round and case by case."""

    def case(row: Row) -> tuple[Any, ...]:
        return tuple(row.get(key) for key in ("space", "arch", "batch", "random_paths", "round"))

    base = {case(row): sum(row["seconds"]) for row in rows if row["by"] == to}
    return [sum(row["seconds"]) / base[case(row)] for row in rows if row["by"] == by]


def quartiles(values: list[float]) -> tuple[float, float, float]:
    low, middle, high = (
        statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    )
    return low, middle, high


def spread(values: list[float]) -> str:
    """Median and quartiles."""
    low, middle, high = quartiles(values)
    return f"{middle:.2f} ({low:.2f}–{high:.2f})"


def groups(rows: list[Row], *keys: str) -> dict[tuple[Any, ...], list[Row]]:
    """The rows by the values of the keys, in the order that they came."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[key] for key in keys), []).append(row)
    return found


def marks(
    ax: Any, at: Sequence[float], points: Sequence[tuple[float, float, float]], **options: Any
) -> None:
    """Medians with their quartiles."""
    low, middle, high = zip(*points, strict=True)
    below = [m - a for m, a in zip(middle, low, strict=True)]
    above = [b - m for m, b in zip(middle, high, strict=True)]
    ax.errorbar(at, middle, [below, above], **options)


def step_table(rows: list[Row]) -> str:
    body = []
    for (space, batch), here in groups(rows, "space", "batch").items():
        sliced = [row["seconds"] for row in here if row["by"] == "sliced"]
        shares = [
            statistics.median(100 * s[n] / sum(s) for s in sliced) for n in range(len(PHASES))
        ]
        line = [space, str(batch), f"{1e3 * statistics.median(map(sum, sliced)):.1f}"]
        line += [spread(values) if (values := ratios(here, *pair)) else "–" for pair in RATIOS]
        body.append([*line, " / ".join(f"{share:.1f}" for share in shares)])
    headers = ["space", "batch", "sliced, ms", *(" / ".join(pair) for pair in RATIOS)]
    return markdown(body, [*headers, f"{' / '.join(PHASES)}, %"])


def step_figure(rows: list[Row], file: Path) -> None:
    """A mark for each path: its median, with the quartiles of its rounds."""
    cases = groups(rows, "space", "batch")
    with figure(file, len(cases), width=2.7) as axes:
        for ax, ((space, batch), here) in zip(axes, cases.items(), strict=True):
            pairs = [pair for pair in RATIOS if ratios(here, *pair)]
            for number, pair in enumerate(pairs):
                paths = [
                    quartiles(ratios(of_path, *pair)) for of_path in groups(here, "arch").values()
                ]
                at = [number + 0.06 * (i - (len(paths) - 1) / 2) for i in range(len(paths))]
                marks(ax, at, paths, fmt=MARKERS[number], markersize=3, linewidth=0.8)
            ax.axhline(1, color="black", linewidth=0.8)
            ax.set_xticks(range(len(pairs)), [" /\n".join(pair) for pair in pairs], fontsize=6.5)
            ax.set_xlim(-0.5, len(pairs) - 0.5)
            ax.set_title(f"{space}, batch {batch}", fontsize=9)
        for ax in axes[1:]:
            ax.sharey(axes[0])
        for ax in axes[::3]:
            ax.set_ylabel("ratio of step times")


def _sizes(rows: list[Row]) -> tuple[list[int], list[str]]:
    numbers = sorted({int(row["by"].split()[1]) for row in rows})
    return numbers, sorted({row["by"].split()[0] for row in rows})


def _memory(rows: list[Row], by: str) -> int:
    return next(row["peak_bytes"] for row in rows if row["by"] == by)


def scaling_table(rows: list[Row]) -> str:
    numbers, kinds = _sizes(rows)
    body = []
    for n in numbers[1:]:
        times = [spread(ratios(rows, f"{by} {n}", f"{by} {numbers[0]}")) for by in kinds]
        memory = [
            f"{_memory(rows, f'{by} {n}') / _memory(rows, f'{by} {numbers[0]}'):.2f}"
            for by in kinds
        ]
        body.append([str(n), *times, " / ".join(memory)])
    peaks = " / ".join(f"{_memory(rows, f'{by} {numbers[0]}') / 1e6:.1f}" for by in kinds)
    heads = [f"{by}, step to {numbers[0]}" for by in kinds]
    return markdown(
        body, ["candidates", *heads, f"memory to {numbers[0]}: {' / '.join(kinds)} ({peaks} MB)"]
    )


def scaling_figure(rows: list[Row], file: Path) -> None:
    numbers, kinds = _sizes(rows)
    with figure(file, 2) as (time, memory):
        for marker, by in zip(MARKERS, kinds, strict=False):
            points = [quartiles(ratios(rows, f"{by} {n}", f"{by} {numbers[0]}")) for n in numbers]
            low, middle, high = zip(*points, strict=True)
            time.plot(numbers, middle, marker=marker, label=by)
            time.fill_between(numbers, low, high, alpha=0.15)
            memory.plot(
                numbers,
                [_memory(rows, f"{by} {n}") / 1e6 for n in numbers],
                marker=marker,
                label=by,
            )
        for ax in (time, memory):
            ax.set_xscale("log", base=2)
            ax.set_xticks(numbers, numbers)
            ax.set_xlabel("candidates of each choice")
        time.set_ylabel("step time, to 2 candidates")
        memory.set_ylabel("peak memory of a step, MB")
        memory.set_ylim(bottom=0)
        time.legend()


def evaluate_table(rows: list[Row]) -> str:
    body = []
    for (space,), here in groups(rows, "space").items():
        expected = here[0]["analytic"]
        measured = spread(ratios(here, "shared", "loop"))
        body.append(
            [space, str(here[0]["paths"]), measured, f"{expected:.2f}", f"{1.15 * expected:.2f}"]
        )
    return markdown(
        body, ["space", "paths", "shared / one by one", "analytic", "asked: analytic x 1.15"]
    )


def evaluate_figure(rows: list[Row], file: Path) -> None:
    spaces = groups(rows, "space")
    with figure(file, width=5) as (ax,):
        for number, here in enumerate(spaces.values()):
            points = [quartiles(ratios(here, "shared", "loop"))]
            marks(ax, [number], points, fmt="o", color="C0", label=None if number else "measured")
            label = None if number else "analytic"
            ax.plot(
                number,
                here[0]["analytic"],
                "_",
                markersize=24,
                markeredgewidth=2,
                color="C1",
                label=label,
            )
        ax.set_xticks(
            range(len(spaces)),
            [
                f"{name.partition(',')[0]}\n{here[0]['paths']} paths"
                for (name,), here in spaces.items()
            ],
        )
        ax.set_ylim(0, 1.05)
        ax.set_ylabel("shared prefixes / one by one")
        ax.legend()


def mixture_table(rows: list[Row]) -> str:
    body = []
    for (batch,), here in groups(rows, "batch").items():
        body.append(
            [
                str(batch),
                *(spread(ratios(here, by, "one path, 5x5")) for by in ("mixture", "separate")),
            ]
        )
    return markdown(body, ["batch", "mixture / one path", "eight convolutions / one path"])


def settings_table(rows: list[Row]) -> str:
    kinds = sorted({row["by"] for row in rows})
    body = []
    for (space, batch), here in groups(rows, "space", "batch").items():
        default = [row["seconds"][0] for row in here if row["by"] == "default"]
        line = [space, str(batch), f"{1e3 * statistics.median(default):.1f}"]
        body.append(
            [*line, *(spread(ratios(here, by, "default")) for by in kinds if by != "default")]
        )
    return markdown(
        body, ["space", "batch", "default, ms", *(by for by in kinds if by != "default")]
    )


def settings_figure(rows: list[Row], file: Path) -> None:
    kinds = sorted({row["by"] for row in rows} - {"default"})
    with figure(file, width=6) as (ax,):
        for number, ((space, batch), here) in enumerate(groups(rows, "space", "batch").items()):
            points = [quartiles(ratios(here, by, "default")) for by in kinds]
            at = [i + 0.15 * (number - 0.5) for i in range(len(kinds))]
            marks(ax, at, points, fmt=MARKERS[number], label=f"{space}, batch {batch}")
        ax.axhline(1, color="black", linewidth=0.8)
        ax.set_xticks(range(len(kinds)), [by.replace(" as", "\nas") for by in kinds])
        ax.set_ylim(bottom=0)
        ax.set_ylabel("step time, to the default")
        ax.legend()


def sweep_table(rows: list[Row]) -> str:
    body = []
    for (by,), here in groups(rows, "by").items():
        seconds = statistics.median(row["seconds"][0] for row in here)
        against = spread(ratios(rows, "two processes", by)) if by != "two processes" else "–"
        body.append([by, f"{seconds:.0f}", against])
    return markdown(sorted(body), ["networks of mil4", "seconds", "two processes to this"])


def rules_table(rows: list[Row]) -> str:
    """Steps of a rule in steps of a single path, and for each of its paths; a sandwich with shared
    prefixes against one without, beside the ratio of their multiply-accumulates."""
    body = []
    for (space, batch, sides), here in groups(rows, "space", "batch", "sides").items():
        given = [{"random_paths": 0, **row} for row in here]
        for (by, number), of_side in sorted(groups(given, "by", "random_paths").items()):
            if by in ("single_path", "sandwich apart"):
                continue
            line = [space, str(batch), by]
            if sides == "rules":
                costs, paths = ratios(here, by, "single_path"), of_side[0]["paths"]
                each = spread([cost / paths for cost in costs]) if paths else "–"
                body.append([*line, str(paths or "all"), spread(costs), each, "–", "–"])
            else:
                alike = [row for row in given if row["random_paths"] == number]
                found = spread(ratios(alike, by, "sandwich apart"))
                analytic = f"{of_side[0]['analytic']:.2f}"
                body.append([*line, str(2 + number), "–", "–", found, analytic])
    headers = ["space", "batch", "rule", "paths", "single-path steps", "for each path"]
    return markdown(body, [*headers, "shared / not shared", "analytic"])


TABLES: dict[str, Callable[[list[Row]], str]] = {
    "step": step_table,
    "scaling": scaling_table,
    "evaluate": evaluate_table,
    "mixture": mixture_table,
    "settings": settings_table,
    "sweep": sweep_table,
    "rules": rules_table,
}
FIGURES: dict[str, Callable[[list[Row], Path], None]] = {
    "step": step_figure,
    "scaling": scaling_figure,
    "evaluate": evaluate_figure,
    "settings": settings_figure,
}
