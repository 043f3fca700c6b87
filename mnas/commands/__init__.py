"""The command line: `mnas train`, `mnas evaluate`, ..., a module each."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

from mnas.commands import process

COMMANDS = {
    "train": "Train a supernet, or networks of a space from scratch.",
    "evaluate": "Score networks of a run on the validation or the test set.",
    "search": "Networks of a supernet that are accurate at a low cost.",
    "export": "Write one network of a run as plain PyTorch.",
    "rank": "Score thousands of networks of a supernet beside published accuracies.",
    "study": "Supernets against the same networks from scratch, in one command.",
    "report": "Tables, figures and pages of studies, from their rows.",
    "benchmark": "Time of masked against modular and stand-alone implementations.",
    "freezing": "Drift and cost of ways to freeze chosen entries.",
    "spaces": "Memory of the named spaces.",
}
SOURCE = Path(__file__).parents[2]  # of a checkout; benchmarks are not installed
OF_SOURCE = ("benchmark", "freezing", "spaces")
DRAWING = ("rank", "study", "report", "benchmark", "freezing", "spaces")  # need the extra `report`
SEVERAL = ("train",)  # for processes of torchrun; of others each would write the same files


def main(command: str | None = None) -> None:
    """Run a command with the arguments of this process. None: the first of them names it."""
    process.prepare()
    process.run(lambda arguments: _run(command, arguments))


def _run(command: str | None, arguments: list[str]) -> None:
    from mnas.errors import Failure, check_extra
    from mnas.training.processes import launched

    if command is None:
        command, *arguments = arguments or ["--help"]
        if command in ("--help", "-h", "help"):
            print(_overview())
            return
        if command == "--version":
            from importlib.metadata import version

            print(version("mnas"))
            return
        sys.argv[0] = f"mnas {command}"
    if command not in COMMANDS:
        raise Failure(
            f"command {command!r} is unknown; expected one of {', '.join(COMMANDS)}", status=2
        )
    helping = bool({"--help", "-h"} & set(arguments))
    if command not in SEVERAL and not helping and (number := launched()) > 1:
        raise Failure(
            f"{command} is for one process, torchrun has started {number}; leave out torchrun, "
            f"which is for {' and '.join(SEVERAL)} alone",
            status=2,
        )
    room = "mnas.commands"
    if command in OF_SOURCE:
        room = "benchmarks"
        if not (SOURCE / room / f"{command}.py").exists():
            raise Failure(
                f"{command} is not installed; clone the repository and run tools/{command}.py",
                status=2,
            )
        sys.path.insert(0, str(SOURCE))
    if command in DRAWING and not helping:
        check_extra("report", "matplotlib", "scipy")
    import_module(f"{room}.{command}").app(
        arguments, exit_on_error=False, print_error=False, result_action="return_value"
    )


def _overview() -> str:
    lines = "\n".join(f"  {name:10} {about}" for name, about in COMMANDS.items())
    return f"usage: mnas COMMAND [OPTIONS]\n\n{lines}\n\nmnas COMMAND --help shows its options."
