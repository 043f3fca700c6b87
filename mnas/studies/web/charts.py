"""Interactive charts, as Vega-Lite. Colours and fonts are left to the page, which has two schemes;
a chart is as wide as its place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import altair as alt

from mnas.studies.labels import beside_diagonal

if TYPE_CHECKING:
    from collections.abc import Sequence

Rows = list[dict[str, Any]]
WEIGHTS = ("inherited", "from scratch")  # the order of their colours
TOP1 = "test top-1, %"
BAR = 26  # height in pixels of a line of a chart with a line for each thing
NEAR = alt.Scale(zero=False, nice=False, padding=12)


def chart(layers: Sequence[alt.Chart], height: int, about: str) -> dict[str, Any]:
    """The chart of these layers. about: what it shows, to who does not see it."""
    whole = alt.layer(*layers).properties(width="container", height=height, description=about)
    found = whole.to_dict()
    found["autosize"] = {"type": "fit", "contains": "padding"}
    found["padding"] = {"left": 2, "top": 4, "right": 14, "bottom": 4}
    return found


def _rounded(rows: Rows) -> alt.Chart:
    """Numbers as they are shown, with two digits to spare: they are the most of a page."""
    return alt.Chart(
        alt.InlineData(
            [
                {key: float(f"{x:.6g}") if isinstance(x, float) else x for key, x in row.items()}
                for row in rows
            ]
        )
    )


def _tooltip(*fields: str) -> list[alt.Tooltip]:
    """field, or field=format, or field=format=title."""
    found = []
    for field in fields:
        name, form, title = [*field.split("="), "", ""][:3]
        found.append(
            alt.Tooltip(
                field=name,
                type="quantitative" if form else "nominal",
                **({"format": form} if form else {}),
                title=title or name.replace("_", " "),
            )
        )
    return found


def _x(field: str, title: str, **more: Any) -> alt.X:
    return alt.X(field=field, type="quantitative", title=title, **{"scale": NEAR, **more})


def _y(field: str, title: str | None, **more: Any) -> alt.Y:
    return alt.Y(field=field, type="quantitative", title=title, **{"scale": NEAR, **more})


def _line(field: str, order: list[str], **more: Any) -> alt.Y:
    """A line for each thing, in this order."""
    axis = alt.Axis(labelLimit=170, ticks=False, domain=False, grid=True)
    return alt.Y(field=field, type="nominal", title=None, sort=order, axis=axis, **more)


def _colour(field: str, order: Sequence[str], columns: int = 2) -> alt.Color:
    legend = alt.Legend(orient="top", title=None, columns=columns, labelLimit=150)
    scale = alt.Scale(domain=list(order))
    return alt.Color(field=field, type="nominal", scale=scale, legend=legend)


def scatter(rows: Rows, what: str = TOP1, form: str = ".2f") -> dict[str, Any]:
    """rows: network, inherited, scratch, their _low and _high, of each network. what: these are.
    form: of a number."""
    base = _rounded(rows)
    values = [
        row[f"{kind}{end}"] for row in rows for kind in ("inherited", "scratch") for end in ENDS
    ]
    ends = [min(values), max(values)]
    scale = alt.Scale(domain=ends, nice=False, padding=12)
    x = _x("inherited", f"inherited, {what}", scale=scale, axis=alt.Axis(tickCount=5))
    y = _y("scratch", f"from scratch, {what}", scale=scale, axis=alt.Axis(tickCount=5))
    equal = _rounded([{"inherited": end, "scratch": end} for end in ends])
    gap = (ends[1] - ends[0]) / 22
    of_points = [[row[kind] for row in rows] for kind in ("inherited", "scratch")]
    names: dict[bool, Rows] = {True: [], False: []}
    for row, (at, place, left) in zip(rows, beside_diagonal(*of_points, gap), strict=True):
        names[left].append({"network": row["network"], "inherited": at, "scratch": place})
    text = alt.Text(field="network", type="nominal")
    tooltip = _tooltip(
        "network",
        f"inherited={form}",
        f"inherited_low={form}=inherited, from",
        f"inherited_high={form}=to",
        f"scratch={form}=from scratch",
        f"scratch_low={form}=from scratch, from",
        f"scratch_high={form}=to ",
        "params=,=parameters",
        "macs=,=MACs",
    )
    return chart(
        [
            equal.mark_line(strokeDash=[5, 4], style="reference").encode(x=x, y=y),
            base.mark_rule(opacity=0.45).encode(
                x=_x("inherited_low", f"inherited, {what}", scale=scale), x2="inherited_high:Q", y=y
            ),
            base.mark_rule(opacity=0.45).encode(
                x=x, y=_y("scratch_low", f"from scratch, {what}", scale=scale), y2="scratch_high:Q"
            ),
            base.mark_point(filled=True, size=90, opacity=1).encode(x=x, y=y, tooltip=tooltip),
            *(
                _rounded(of_side)
                .mark_text(align="right" if left else "left", dx=-7 if left else 7, dy=-7)
                .encode(x=x, y=y, text=text)
                for left, of_side in names.items()
            ),
        ],
        380,
        f"{what} from scratch against that with inherited weights, a point for each network.",
    )


ENDS = ("", "_low", "_high")


def seeds(rows: Rows, order: list[str], what: str = TOP1, form: str = ".2f") -> dict[str, Any]:
    """rows: network, weights, seed, value, of each run. what, form: as of `scatter`."""
    base = _rounded(rows)
    x, y = _x("value", what), _line("network", order)
    colour = _colour("weights", WEIGHTS)
    beside = alt.YOffset(field="weights", type="nominal", sort=list(WEIGHTS))
    mean = alt.X(field="value", type="quantitative", aggregate="mean", scale=NEAR, title=what)
    return chart(
        [
            base.mark_point(filled=True, size=36, opacity=0.45).encode(
                x=x,
                y=y,
                yOffset=beside,
                color=colour,
                tooltip=_tooltip("network", "weights", "seed", f"value={form}={what}"),
            ),
            base.mark_tick(thickness=3, size=14).encode(
                x=mean,
                y=y,
                yOffset=beside,
                color=colour,
                tooltip=[
                    *_tooltip("network", "weights"),
                    alt.Tooltip(
                        field="value",
                        type="quantitative",
                        aggregate="mean",
                        format=form,
                        title="mean",
                    ),
                ],
            ),
        ],
        (BAR + 12) * len(order) + 70,
        f"{what} of every run, a dot each, and the mean of each network, a bar.",
    )


def frontier(rows: Rows, cost: str, title: str) -> dict[str, Any]:
    """rows: network, weights, accuracy, params, macs. cost: the field on the horizontal axis."""
    base = _rounded(rows)
    x = _x(cost, title, axis=alt.Axis(format="~s", tickCount=5))
    y, colour = _y("accuracy", TOP1), _colour("weights", WEIGHTS)
    shape = alt.Shape(field="weights", type="nominal", scale=alt.Scale(domain=list(WEIGHTS)))
    best = front([row for row in rows if row["weights"] == WEIGHTS[1]], cost)
    tooltip = _tooltip(
        "network",
        "weights",
        "accuracy=.2f",
        "low=.2f=from",
        "high=.2f=to",
        "params=,=parameters",
        "macs=,=MACs",
    )
    return chart(
        [
            _rounded(best).mark_line(interpolate="step-after", style="reference").encode(x=x, y=y),
            base.mark_rule(opacity=0.45).encode(x=x, y=_y("low", TOP1), y2="high:Q", color=colour),
            base.mark_point(filled=True, size=80, opacity=1).encode(
                x=x, y=y, color=colour, shape=shape, tooltip=tooltip
            ),
        ],
        300,
        f"Accuracy against {title}; the line joins the best networks from scratch at each cost.",
    )


def front(rows: Rows, cost: str) -> Rows:
    """Those that no cheaper one equals, cheapest first."""
    found: Rows = []
    for row in sorted(rows, key=lambda row: (row[cost], -row["accuracy"])):
        if not found or row["accuracy"] > found[-1]["accuracy"]:
            found.append(row)
    return found


def curves(rows: Rows, order: list[str], weights: str) -> dict[str, Any]:
    """rows: network, epoch, error, sd, runs. A click on a name shows that network alone."""
    errors = [row["error"] for row in rows]
    log = 0 < 3 * min(errors) < max(errors)
    linear = {} if log else {"zero": False}
    scale = alt.Scale(type="log" if log else "linear", nice=False, padding=8, **linear)
    axis = alt.Axis(format="~g", tickCount=6)
    epochs = sorted({row["epoch"] for row in rows})
    steps = alt.Axis(format="~g", **({"values": epochs} if len(epochs) < 8 else {"tickCount": 6}))
    base = _rounded(rows)
    # Named: names that altair counts differ from one page to the next.
    chosen = alt.selection_point(name="chosen", fields=["network"], bind="legend")
    x = alt.X(field="epoch", type="quantitative", title="epoch", scale=NEAR, axis=steps)
    y = _y("error", "validation error, %", scale=scale, axis=axis)
    colour = _colour("network", order)
    opacity = alt.condition(chosen, alt.value(1), alt.value(0.12))
    tooltip = _tooltip("network", "epoch=~r", "error=.2f=error, %", "sd=.2f=SD over runs", "runs=d")
    return chart(
        [
            base.mark_line().encode(x=x, y=y, color=colour, opacity=opacity),
            base.mark_point(filled=True, size=45)
            .encode(x=x, y=y, color=colour, opacity=opacity, tooltip=tooltip)
            .add_params(chosen),
        ],
        300,
        f"Validation error of each network over epochs, {weights}; the mean over runs.",
    )


def dots(rows: Rows, order: list[str], series: Sequence[str], about: str, x: str) -> dict[str, Any]:
    """A line for each name, a dot with its interval for each series on it. rows: name, series,
    value, low, high (None: no interval), note."""
    base = _rounded(rows)
    y, colour = _line("name", order), _colour("series", series, 1)
    beside = alt.YOffset(field="series", type="nominal", sort=list(series))
    line = {"y": y, "yOffset": beside, "color": colour}
    place = _x("value", x, axis=alt.Axis(tickCount=6))
    tooltip = _tooltip("name", "series", "value=.2f", "low=.2f=from", "high=.2f=to", "note")
    known = [row for row in rows if row["low"] is not None]
    ends = _rounded(known).mark_rule(strokeWidth=2, opacity=0.6)
    zero = _rounded([{"value": 0.0}]).mark_rule(style="reference").encode(x=place)
    shape = alt.Shape(field="series", type="nominal", scale=alt.Scale(domain=list(series)))
    return chart(
        [
            zero,
            *([ends.encode(x=_x("low", x), x2="high:Q", **line)] if known else []),
            base.mark_point(filled=True, size=80, opacity=1).encode(
                x=place, shape=shape, tooltip=tooltip, **line
            ),
        ],
        max(BAR, 16 * len(series) + 8) * len(order) + 70,
        about,
    )


def published(rows: Rows, order: Sequence[str]) -> dict[str, Any]:
    """rows: network, loss, accuracy, depth (a string), macs."""
    base = _rounded(rows)
    tooltip = _tooltip(
        "network", "loss=.3f=loss, inherited", "accuracy=.2f=published, %", "depth", "macs=,=MACs"
    )
    chosen = alt.selection_point(name="chosen", fields=["depth"], bind="legend")
    return chart(
        [
            base.mark_point(filled=True, size=36)
            .encode(
                x=_x("loss", "validation loss with inherited weights, nats (lower is better)"),
                y=_y("accuracy", "published accuracy, %"),
                color=_colour("depth", order),
                opacity=alt.condition(chosen, alt.value(0.75), alt.value(0.06)),
                tooltip=tooltip,
            )
            .add_params(chosen)
        ],
        420,
        "Published accuracy against validation loss with inherited weights, a dot a network.",
    )
