"""What the user sees of training runs, and how these hear that they are to stop."""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import TYPE_CHECKING

from mnas.errors import Failure

if TYPE_CHECKING:
    from tqdm.auto import tqdm

SIGNALS = (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))


class Interruption:
    """Turns the first Ctrl-C, SIGTERM or SIGHUP into a flag, so that runs end between two steps;
    the second one kills.

    A SIGHUP that was ignored before, as under nohup, stays so.
    """

    def __enter__(self) -> Interruption:
        self.signal = 0
        heard = [
            number
            for number in SIGNALS
            if number not in SIGNALS[2:] or signal.getsignal(number) != signal.SIG_IGN
        ]
        self._before = {number: signal.signal(number, self._note) for number in heard}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        self.signal = number
        for number in self._before:
            signal.signal(number, signal.SIG_DFL)


class Progress:
    """Lines on stdout, and where stderr is a terminal, or in a notebook, one bar of the steps of
    all runs."""

    def __init__(self, runs: int, interruption: Interruption) -> None:
        from tqdm.auto import tqdm

        self.runs, self.interruption = runs, interruption
        self.bar: tqdm = tqdm(unit="step", disable=None)
        self._ended = 0
        self._losses: dict[str, str] = {}  # of the runs under way
        self._steps: dict[str, int] = {}
        self._totals: dict[str, int] = {}

    def report(
        self,
        name: str,
        line: str | None = None,
        step: int = 0,
        total: int = 0,
        loss: float | None = None,
    ) -> int:
        """A run begins, is at a step of so many, or has a line to say. Returns the signal to stop
        by, or 0."""
        if line is not None:
            self.say(f"{name}: {line}")
        if total:
            self._totals[name] = total
            # Those that have not begun count as much as the others, which is exact if all are
            # alike.
            self.bar.total = round(sum(self._totals.values()) / len(self._totals) * self.runs)
            before, self._steps[name] = self._steps.get(name, 0), step
            self._losses[name] = f"{loss:.3f}"
            self._show(step - before)
        return self.interruption.signal

    def end(self, name: str, failure: Failure | None) -> None:
        """The run has ended, well or not; a failure is named at once, beside other runs that may
        take hours."""
        if failure and failure.status < 128 and self.runs > 1:
            self.say(f"{name}: failed: {failure}")
        self._ended += 1
        self._losses.pop(name, None)
        self._show(0)

    def say(self, line: str) -> None:
        self.bar.write(line, file=sys.stdout)
        sys.stdout.flush()

    def _show(self, steps: int) -> None:
        running = "".join(f", {name} {loss}" for name, loss in self._losses.items())
        self.bar.set_postfix_str(f"{self._ended} of {self.runs} runs ended{running}", refresh=False)
        self.bar.update(steps)
