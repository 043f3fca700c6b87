"""Tables, figures and summary of studies, from their raw rows.

    python tools/report.py results/mil4_mnist ...

Writes README.md, summary.json and figures beside rows.jsonl. Accuracies are on the test set; intervals are 95 %.
--headline also puts the first study into a page between the marks of that name, beside those studies that only differ
from it in their recipe; a page named *.ru.md gets it in Russian. --overview puts all studies beside each other.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the other imports, in which Ctrl-C may come
    import process

    process.prepare()

import shlex
from pathlib import Path
from typing import Annotated

import common
from common import Failure, UserPath
from cyclopts import App, Parameter

OVERVIEW = ("studies", "against-first")  # the parts of docs/results.md

app = App(help=__doc__, help_format="plaintext", version_flags=())


@app.default
def main(
    *studies: Annotated[UserPath, Parameter(help="Directories with rows.jsonl.")],
    headline: Annotated[tuple[UserPath, ...], Parameter(help="Page that shows the first study, as README.md.")] = (),
    overview: Annotated[UserPath | None, Parameter(help="Page that shows all studies, as docs/results.md.")] = None,
) -> None:
    if not studies:
        raise Failure("no study is given; expected directories with rows.jsonl, as results/mil4_mnist", status=2)
    for page in headline:
        common.check_page(page, ("headline",), "--headline", "README.md")
    if overview:
        common.check_page(overview, OVERVIEW, "--overview", "docs/results.md")
    for study in studies:
        print(write(study))
    for page, part, text in shared_pages(studies, headline, overview):
        common.publish(page, part, text)
    if overview:
        import comparison
        from study_rows import Study

        with common.writing(overview.parent):
            comparison.draw([Study(path) for path in studies], overview.with_suffix(""))


def shared_pages(
    paths: tuple[Path, ...], headline: tuple[Path, ...], overview: Path | None
) -> list[tuple[Path, str, str]]:
    """Page, part and text of what shows several studies."""
    import comparison
    import study_words
    from study_rows import Study

    studies = [Study(path) for path in paths]
    flags = [flag for page in headline for flag in ("--headline", page)]
    flags += ["--overview", overview] if overview else []
    command = shlex.join(map(str, ["tools/report.py", *paths, *flags]))
    parts = [(page, "headline", comparison.headline(studies, command, study_words.of_page(page))) for page in headline]
    if overview:
        made = f"\n\nMade by `{command}`."
        tables = (comparison.overview(studies) + made, comparison.against_first(studies) + made)
        parts += [(overview, part, text) for part, text in zip(OVERVIEW, tables, strict=True)]
    return parts


def write(path: Path) -> str:
    """Everything that is made from the rows of a study; returns its headline as people read it."""
    import study_figures
    import study_text
    from study_rows import Study, summary
    from study_words import ENGLISH

    from mnas import files

    study = Study(path)
    found = summary(study)
    with common.writing(path):
        drawn = study_figures.draw(study, found)
        files.write_atomically(path / "summary.json", files.dumps(found, indent=2) + "\n")
        files.write_atomically(path / "README.md", study_text.page(study, found, drawn))
    return "\n\n".join([study_text.headline(study, "simple"), ENGLISH.ranking(found), f"report: {path}"])


if __name__ == "__main__":
    common.run(app)
