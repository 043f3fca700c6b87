"""The tables and figures of docs/benchmarks.md, from the rows that tools/benchmark.py has
measured."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mnas.studies.pages import markdown
from mnas.studies.plotting import QUIET, at_ends, figure, legend, lines, series, strip

PHASES = ("reset", "forward", "backward", "optimizer")
RATIOS = (
    ("sliced", "modular"),
    ("sliced", "standalone"),
    ("masked", "sliced"),
    ("naive", "sliced"),
)
TARGETS = {1.02: "modular", 1.05: "standalone"}  # of a sliced step
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


def mark(ax: Any, value: tuple[float, float, float], at: float, number: int, **more: Any) -> None:
    """A median with its quartiles, on a line. number: of the series."""
    low, middle, high = value
    strip(ax, at - 0.07, number, [], middle, low, high, **more)


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
    """Medians over rounds and paths with their quartiles, as in the table."""
    cases = groups(rows, "space", "batch")
    worst = max(quartiles(ratios(here, "sliced", "modular"))[1] for here in cases.values())
    title = f"A sliced step takes at most {worst:.2f} times as long as one of separate modules"
    with figure(file, 1, 8.5, 0.8 * len(cases) + 1.7, title) as (ax,):
        for line, here in enumerate(cases.values()):
            for number, pair in enumerate(RATIOS):
                if values := ratios(here, *pair):
                    more = {} if line else {"label": " / ".join(pair)}
                    mark(ax, quartiles(values), line - 0.3 + 0.2 * number, number, **more)
        lines(ax, [f"{space}\nbatch {batch}" for space, batch in cases])
        ax.axvline(1, color=QUIET, linewidth=1)
        for target in TARGETS:
            ax.axvline(target, color=QUIET, linewidth=1, linestyle=":")
        ax.set_xlim(right=min(1.4, ax.get_xlim()[1]))
        said = " and ".join(f"{target} ({to})" for target, to in TARGETS.items())
        ax.set_xlabel(f"ratio of step times: median and quartiles; dotted: targets {said}")
        legend(ax, columns=4)


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
    sides = {}
    for by in kinds:
        points = [quartiles(ratios(rows, f"{by} {n}", f"{by} {numbers[0]}")) for n in numbers]
        sides[by] = (points, [_memory(rows, f"{by} {n}") / 1e6 for n in numbers])
    said = ", ".join(f"{by} {points[-1][1]:.2f}" for by, (points, _) in sides.items())
    title = f"A step with {numbers[-1]} candidates, to one with {numbers[0]}: {said}"
    with figure(file, 2, 5.2, 3.9, title) as (time, memory):
        for number, (points, peaks) in enumerate(sides.values()):
            low, middle, high = zip(*points, strict=True)
            time.plot(numbers, middle, **series(number))
            time.fill_between(numbers, low, high, alpha=0.15, linewidth=0)
            memory.plot(numbers, peaks, **series(number))
        for ax in (time, memory):
            ax.set_xscale("log", base=2)
            ax.set_xticks(numbers, numbers)
            ax.set_xlabel("candidates of each choice")
        time.set_ylabel(f"step time, to {numbers[0]} candidates")
        memory.set_ylabel("peak memory of a step, MB")
        memory.set_ylim(0, 1.1 * max(max(peaks) for _, peaks in sides.values()))
        time.figure.canvas.draw()
        at_ends(time, numbers[-1], {by: points[-1][1] for by, (points, _) in sides.items()})
        at_ends(memory, numbers[-1], {by: peaks[-1] for by, (_, peaks) in sides.items()})


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
    found = [quartiles(ratios(here, "shared", "loop")) for here in spaces.values()]
    low, high = min(found)[1], max(found)[1]
    title = f"Shared prefixes take {low:.2f} to {high:.2f} of the time of one path after the other"
    with figure(file, 1, 8, 0.7 * len(spaces) + 1.9, title) as (ax,):
        for line, (value, here) in enumerate(zip(found, spaces.values(), strict=True)):
            once = [{}, {}] if line else [{"label": "measured"}, {"label": "by arithmetic alone"}]
            mark(ax, value, line - 0.1, 0, **once[0])
            mark(ax, (here[0]["analytic"],) * 3, line + 0.2, 1, **once[1])
        names = [
            f"{name.partition(',')[0]}\n{h[0]['paths']} paths" for (name,), h in spaces.items()
        ]
        lines(ax, names)
        ax.set_xlim(0, 1.02)
        ax.set_xlabel("time, shared prefixes / one by one (lower is better)")
        legend(ax)


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
    cases = groups(rows, "space", "batch")
    found = {
        by: [quartiles(ratios(here, by, "default")) for here in cases.values()]
        for by in {row["by"] for row in rows} - {"default"}
    }
    order = sorted(found, key=lambda by: -found[by][0][1])
    title = f"{_called(order[0])}: {found[order[0]][0][1]:.1f} times the step time"
    with figure(file, 1, 8, 0.7 * len(order) + 1.8, title) as (ax,):
        for line, by in enumerate(order):
            for number, ((space, batch), value) in enumerate(zip(cases, found[by], strict=True)):
                more = {} if line else {"label": f"{space}, batch {batch}"}
                mark(ax, value, line - 0.15 + 0.3 * number, number, **more)
        lines(ax, [_called(by) for by in order])
        ax.axvline(1, color=QUIET, linewidth=1)
        ax.set_xscale("log")
        ticks = (0.5, 0.7, 1, 1.4, 2, 2.8)
        ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        ax.set_xticks([], minor=True)
        ax.set_xlabel("step time with one setting changed, to the default (median and quartiles)")
        legend(ax)


def _called(by: str) -> str:
    """Of settings, in words for who has not read what they are."""
    named = {"allocator as it comes": "Default allocator", "none of them": "All settings off"}
    named["bf16"] = "bfloat16"
    return named.get(by, by[0].upper() + by[1:])


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
