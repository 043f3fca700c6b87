"""Measure merged networks against separate modules, and bring the tables and figures of
docs/benchmarks.md up to date.

- `python tools/benchmark.py`: about 25 minutes on 2 cores
- `python tools/benchmark.py --quick`: under a minute, into results/benchmarks-quick; the page stays
- `python tools/benchmark.py --redraw`: the page from the rows that are there, without measuring

The parts:

- step: a training step of every path, by implementation
- scaling: its time and memory as candidates become more
- evaluate: all paths with shared prefixes against one by one
- mixture: all kernels of a layer in one convolution against each by itself
- settings: what each runtime setting brings
- sweep: networks from scratch in two processes against one after the other
- rules: a step of each training rule in steps of a single path

What is compared runs in one
interleaved run, in random order; ratios are taken within a round. Rows go to OUT/*.jsonl. The same
functions under pytest-benchmark: python -m pytest -n 0 tests/benchmarks/test_suites.py
--benchmark-enable"""

from __future__ import annotations

import os
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from mnas.commands.options import Count, Seed, UserPath
from mnas.errors import Failure
from mnas.studies.pages import check_page, publish, record, recorded
from mnas.training import runtime

PARTS = ("step", "scaling", "evaluate", "mixture", "settings", "sweep", "rules")
QUIET = {
    "KINETO_LOG_LEVEL": "6",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
}  # torch's profiler writes on stderr that it begins


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Options:
    only: Literal["step", "scaling", "evaluate", "mixture", "settings", "sweep", "rules"] | None = (
        None
    )
    "Measure one suite. [default: all]"
    quick: Annotated[bool, Parameter(negative=())] = False
    "Few rounds and cases, into results/benchmarks-quick; leaves the page alone."
    redraw: Annotated[bool, Parameter(negative=())] = False
    "Measure nothing; make tables and figures from the rows in OUT."
    out: UserPath | None = None
    "Directory for the rows. [default: results/benchmarks]"
    page: UserPath = Path("docs/benchmarks.md")
    "The page whose tables are rewritten; figures go to the directory of its name beside it."
    seed: Seed = 0
    "Decides weights, images and the order of measuring."
    threads: Count | None = None
    "Threads. [default: all cores]"


app = App(help=__doc__, help_format="markdown", version_flags=())


@app.default
def main(options: Options | None = None) -> None:
    options = options or Options()
    parts = (options.only,) if options.only else PARTS
    if options.quick and options.redraw:
        raise Failure(
            "--redraw is for the page, which --quick leaves alone; give one of them", status=2
        )
    if not options.quick:
        check_page(options.page, parts)
    out = options.out or Path("results/benchmarks-quick" if options.quick else "results/benchmarks")
    for part in parts:
        if not options.redraw:
            measure(part, options, out)
        rows = recorded(out, part)

        from benchmarks.page import FIGURES, TABLES

        text = TABLES[part](rows)
        print(f"\n{part}\n{text}")
        if not options.quick:
            publish(options.page, part, text)
            if part in FIGURES:
                FIGURES[part](rows, options.page.with_suffix("") / f"{part}.png")


def measure(part: str, options: Options, out: Path) -> None:
    os.environ.update({key: os.environ.get(key, value) for key, value in QUIET.items()})

    import torch
    from tqdm import tqdm

    from benchmarks.rules import rules
    from benchmarks.suites import SUITES

    suites = {**SUITES, "rules": rules}
    runtime.configure_runtime(options.threads or runtime.default_threads())
    torch.manual_seed(options.seed)
    chooser = random.Random(options.seed)
    cases = tqdm(suites[part](options.quick), desc=part, unit="case", disable=None)
    rows = [row for case in cases for row in case.rows(chooser)]
    record(
        out, part, rows, suite=part, quick=options.quick, seed=options.seed, seconds_are="wall time"
    )
