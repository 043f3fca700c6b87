"""Measured rows beside how they were measured, and the tables that pages show of them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnas.errors import Failure, user_input, writing

if TYPE_CHECKING:
    from mnas.storage.files import Folder


def _marks(part: str) -> tuple[str, str]:
    return f"<!-- {part} -->\n", f"<!-- end of {part} -->"


def check_page(
    page: Path, parts: tuple[str, ...], flag: str = "--page", like: str = "docs/freezing.md"
) -> None:
    """Before anything is measured: the page can take the tables of these parts."""
    try:
        text = page.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise Failure(
            f"{flag} {page} is no file of text; expected one with marks, as {like}", status=2
        ) from error
    for part in parts:
        begin, end = _marks(part)
        if begin not in text or end not in text:
            raise Failure(
                f"{flag} {page} lacks the marks {begin.strip()} and {end}; restore them", status=2
            )


def rows_folder(out: Path) -> Folder:
    """Where measured rows are kept, with the digests of their files."""
    from mnas.storage.files import Folder

    return Folder(out, "mnas-rows-1")


def record(out: Path, part: str, rows: list[dict[str, Any]], /, **settings: Any) -> None:
    """Measured rows, OUT/<part>.jsonl, and beside them how they were measured."""
    from mnas.storage import strict_json
    from mnas.training.environment import environment

    about = strict_json.dumps({**settings, "environment": environment()}, indent=2) + "\n"
    with writing(out), user_input():
        out.mkdir(parents=True, exist_ok=True)
        folder = rows_folder(out)
        with folder.lock():
            folder.write(
                {f"{part}.jsonl": strict_json.lines(rows), f"{part}-config.json": about},
                settle=True,
            )


def recorded(out: Path, part: str) -> list[dict[str, Any]]:
    """The rows of OUT/<part>.jsonl."""
    from mnas.storage import strict_json

    try:
        return strict_json.parse_lines(
            rows_folder(out).read(f"{part}.jsonl"), dict, out / f"{part}.jsonl"
        )
    except ValueError as error:
        reason = str(error).removesuffix("; restore it")
        raise Failure(f"{reason}; restore it, or measure its rows again", status=2) from error


def publish(page: Path, part: str, text: str) -> None:
    """Bring the table of a part on a page up to date."""
    from mnas.storage.files import write_atomically

    with writing(page):
        write_atomically(page, replaced(page.read_text(), part, text))


def replaced(page: str, part: str, text: str) -> str:
    """The page with a new table between the marks of a part."""
    begin, end = _marks(part)
    before, rest = page.split(begin, 1)
    return f"{before}{begin}{text}\n{end}{rest.split(end, 1)[1]}"


def shown(mean: float, low: float | None, high: float | None, digits: int = 2) -> str:
    """A mean with its interval, if it has one."""
    if low is None or high is None or math.isnan(low):
        return f"{mean:z.{digits}f}"  # z: no -0.00
    return f"{mean:z.{digits}f} [{low:z.{digits}f}, {high:z.{digits}f}]"


def over(of_images: int, studies: int = 1) -> str:
    """What intervals are over. of_images: how many of the studies have which images are right."""
    if not of_images:
        return "over seeds"
    where = "" if of_images == studies else f" in {of_images} of {studies} studies"
    return f"over seeds, that of tau{where} also over test images"


def markdown(body: list[list[str]], headers: list[str]) -> str:
    from tabulate import tabulate

    return tabulate(body, headers, tablefmt="github", disable_numparse=True)
