"""Tables, figures and summary of studies, from their raw rows.

- `mnas report results/mil4_mnist ...`

Writes README.md, summary.json and figures beside rows.jsonl. Accuracies are on the test set;
intervals are 95 %. --headline also puts the first study into a page between the marks of that name,
beside those studies that only differ from it in their recipe. --overview puts all studies beside
each other. Prose is written by people: in reading.md beside the rows, which becomes a part of
README.md, and on pages. --out writes one page that opens in a browser, of a study, of several, or
of a folder of `mnas rank`, and nothing else. --check writes nothing, and says which pages and
numbers in prose (--claims) the rows contradict."""

from __future__ import annotations

import math
import re
import shlex
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from mnas.commands.options import UserPath
from mnas.errors import Failure, check_extra, user_input, writing
from mnas.studies.pages import check_page, publish, replaced

OVERVIEW = ("studies", "against-first")  # the parts of docs/results.md

app = App(help=__doc__, help_format="markdown", version_flags=())


@app.default
def main(
    *studies: Annotated[UserPath, Parameter(help="Directories with rows.jsonl.")],
    headline: Annotated[
        tuple[UserPath, ...], Parameter(help="Page that shows the first study, as README.md.")
    ] = (),
    overview: Annotated[
        UserPath | None, Parameter(help="Page that shows all studies, as docs/results.md.")
    ] = None,
    out: Annotated[
        UserPath | None, Parameter(help="One HTML file of all that is given; needs no network.")
    ] = None,
    check: Annotated[
        bool, Parameter(negative=(), help="Compare with the rows, write nothing.")
    ] = False,
    claims: Annotated[
        UserPath | None, Parameter(help="Numbers in prose to check, as docs/claims.toml.")
    ] = None,
) -> None:
    if not studies:
        raise Failure(
            "no study is given; expected directories with rows.jsonl, as results/mil4_mnist",
            status=2,
        )
    for page in headline:
        check_page(page, ("headline",), "--headline", "README.md")
    if overview:
        check_page(overview, OVERVIEW, "--overview", "docs/results.md")
    if claims and not check:
        raise Failure(f"--claims {claims} is for --check; add it, or leave --claims out", status=2)
    if out:
        _check_out(studies, headline, overview, claims, out)
        _browser(studies, out, check)
        return
    if check:
        _check(studies, headline, overview, claims)
        return
    for study in studies:
        print(write(study))
    for page, part, text in shared_pages(studies, headline, overview):
        publish(page, part, text)
    if overview:
        from mnas.studies import comparison
        from mnas.studies.results import Study

        with writing(overview.parent):
            comparison.draw([Study(path) for path in studies], overview.with_suffix(""))


def _check_out(
    studies: tuple[Path, ...],
    headline: tuple[Path, ...],
    overview: Path | None,
    claims: Path | None,
    out: Path,
) -> None:
    """--out stands alone, and names a file. Raises Failure."""
    if headline or overview or claims:
        raise Failure(
            f"--out {out} writes nothing else; leave out --headline, --overview and --claims, or "
            "run the command twice",
            status=2,
        )
    if out.is_dir() or out.suffix != ".html":
        raise Failure(f"--out {out} is no HTML file; expected a name as report.html", status=2)
    check_extra("report", "altair", "vl_convert")


def _browser(paths: tuple[Path, ...], out: Path, check: bool) -> None:
    """The page of these folders as one HTML file; check: compare what it says with that file."""
    from mnas.storage import files
    from mnas.studies.results import Study
    from mnas.studies.web import overview, parts, scores, studies

    ranked = [path for path in paths if (path / "chunks.jsonl").exists()]
    if ranked and len(paths) > 1:
        raise Failure(
            f"{ranked[0]} holds scores of mnas rank; expected them alone, or studies: give each an "
            "--out",
            status=2,
        )
    with user_input():
        if ranked:
            page = scores.page(paths[0])
        elif len(paths) == 1:
            page = studies.of_study(Study(paths[0]))
        else:
            page = overview.page([Study(path) for path in paths], out)
    text = parts.html(page)
    if not check:
        with writing(out.parent):
            out.parent.mkdir(parents=True, exist_ok=True)
            files.write_atomically(out, text)
        print(f"report: {out}")
    elif parts.without_scripts(_text(out) or "") != parts.without_scripts(text):
        raise Failure(f"the rows say something else than {out}; run without --check")
    else:
        print(f"{out} agrees with the rows")


def shared_pages(
    paths: tuple[Path, ...], headline: tuple[Path, ...], overview: Path | None
) -> list[tuple[Path, str, str]]:
    """Page, part and text of what shows several studies."""
    from mnas.studies import comparison
    from mnas.studies.results import Study

    studies = [Study(path) for path in paths]
    flags = [flag for page in headline for flag in ("--headline", page)]
    flags += ["--overview", overview] if overview else []
    command = shlex.join(map(str, ["tools/report.py", *paths, *flags]))
    parts = [(page, "headline", comparison.headline(studies, command)) for page in headline]
    if overview:
        made = f"\n\nMade by `{command}`."
        tables = (comparison.overview(studies) + made, comparison.against_first(studies) + made)
        parts += [(overview, part, text) for part, text in zip(OVERVIEW, tables, strict=True)]
    return parts


def write(path: Path) -> str:
    """Everything that is made from the rows of a study; returns its headline as people read it."""
    from mnas.storage import files, strict_json
    from mnas.studies import figures, page
    from mnas.studies.results import Study, summary

    study = Study(path)
    found = summary(study)
    with writing(path):
        drawn = figures.draw(study, found)
        files.write_atomically(path / "summary.json", strict_json.dumps(found, indent=2) + "\n")
        files.write_atomically(path / "README.md", page.page(study, found, drawn))
    return "\n\n".join(
        [page.headline(study, "simple"), page.ranking(found, "simple"), f"report: {path}"]
    )


def _check(
    studies: tuple[Path, ...],
    headline: tuple[Path, ...],
    overview: Path | None,
    claims: Path | None,
) -> None:
    from mnas.studies import page
    from mnas.studies.claims import untrue
    from mnas.studies.results import Study, summary

    wrong = []
    for path in studies:
        study = Study(path)
        found = summary(study)
        drawn = [file.stem for file in path.glob("*.png")]
        if not same(_json(path / "summary.json"), found):
            wrong.append(str(path / "summary.json"))
        if _text(path / "README.md") != page.page(study, found, drawn):
            wrong.append(str(path / "README.md"))
    for file, part, text in shared_pages(studies, headline, overview):
        if replaced(file.read_text(), part, text) != file.read_text():
            wrong.append(f"{file} ({part})")
    pages = [*(path / "README.md" for path in studies), *headline, *filter(None, [overview])]
    for page_file in pages:
        missing = [link for link in images(page_file) if not (page_file.parent / link).exists()]
        wrong += [f"{page_file} (no {link})" for link in missing]
    wrong += untrue(claims) if claims else []
    if wrong:
        raise Failure(
            f"the rows say something else than {'; '.join(wrong)}; run without --check, or mend "
            "the prose"
        )
    print(f"{len(studies)} studies: reports, pages and numbers in prose agree with the rows")


def images(page: Path) -> list[str]:
    """What a page shows, by its links."""
    return re.findall(r"!\[[^]]*\]\(([^)]+)\)", _text(page) or "")


def _text(file: Path) -> str | None:
    return file.read_text() if file.exists() else None


def _json(file: Path) -> Any:
    from mnas.storage import strict_json

    try:
        return strict_json.parse(file.read_bytes(), dict, file)
    except (OSError, ValueError):
        return None


def same(kept: Any, made: Any) -> bool:
    """Whether two values of JSON agree but for the rounding of another machine."""
    if isinstance(kept, dict) and isinstance(made, dict):
        return kept.keys() == made.keys() and all(
            same(value, made[key]) for key, value in kept.items()
        )
    if isinstance(kept, list) and isinstance(made, list):
        return len(kept) == len(made) and all(map(same, kept, made))
    if isinstance(kept, float) and isinstance(made, (int, float)):
        return math.isclose(kept, made, rel_tol=1e-9, abs_tol=1e-12)
    return bool(kept == made)
