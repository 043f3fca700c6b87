"""What a page is made of, and the page as one HTML file."""

from __future__ import annotations

import functools
import json
import re
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import numpy as np

from mnas.studies.pages import shown


@dataclass(frozen=True)
class Cell:
    """Of a table: what is read, and what it is sorted by."""

    text: str
    value: str
    link: str = ""


@dataclass(frozen=True)
class Table:
    caption: str
    heads: list[str]
    rows: list[list[Cell]]


@dataclass(frozen=True)
class Chart:
    spec: dict[str, Any]
    title: str = ""


@dataclass(frozen=True)
class View:
    """A table and charts. label: in the switch between the views of a section."""

    label: str
    table: Table | None
    charts: list[Chart]


@dataclass(frozen=True)
class Section:
    """others: views in the place of table and charts, for which a switch then has `label`."""

    short: str
    title: str
    text: list[str] = field(default_factory=list)
    table: Table | None = None
    charts: list[Chart] = field(default_factory=list)
    label: str = ""
    others: list[View] = field(default_factory=list)

    @property
    def views(self) -> list[View]:
        return [View(self.label, self.table, self.charts), *self.others]


@dataclass(frozen=True)
class Page:
    title: str
    lead: str
    sections: list[Section]
    footer: list[str]


def number(value: float | None, form: str, *ends: float | None) -> Cell:
    """A number in this format, with its interval if it has one; a dash where there is none."""
    if value is None or np.isnan(value):
        return Cell("–", "")
    if ends:
        text = shown(value, *ends, int(form.removeprefix(".").removesuffix("f")))
    else:
        sign = "+" * form.startswith("+")
        text = f"{value:{sign}z{form.removeprefix('+')}}"  # z: no -0.00
    return Cell(text, f"{value:.6g}")


def name(text: str, link: str = "") -> Cell:
    return Cell(text, text, link)


def html(page: Page) -> str:
    """The page with everything that it needs. Text is escaped, JSON cannot end its element."""
    import jinja2

    room = resources.files("mnas.studies.web")
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template.filters["json"] = _json
    parts = {kind: (room / f"page.{kind}").read_text().strip() for kind in ("css", "js")}
    made = template.from_string((room / "page.html").read_text())
    return made.render(page=page, runtime=runtime(), **parts) + "\n"


def _json(value: Any) -> Any:
    from markupsafe import Markup

    text = json.dumps(value, separators=(",", ":"), allow_nan=False, sort_keys=True)
    return Markup(text.replace("<", "\\u003c"))  # nothing is left that ends a script


def without_scripts(text: str) -> str:
    """What a page says in words and numbers: charts and their code differ between versions."""
    return re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)


@functools.cache
def runtime() -> str:
    """Vega, Vega-Lite and Vega-Embed, minified, of the version that altair writes for."""
    import altair
    import vl_convert

    version = ".".join(altair.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
    code = vl_convert.javascript_bundle(vl_version=version)
    return code.replace("</script", "<\\/script").replace("<!--", "<\\!--")
