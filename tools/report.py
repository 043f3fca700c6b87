"""Tables, figures and summary of studies, from their raw rows.

    python tools/report.py results/mil4_mnist ...

Writes README.md, summary.json and figures beside rows.jsonl. Accuracies are on the test set; intervals are 95 %.
--headline also puts the table of the first study into a page between the marks of that name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import common
from common import Failure
from cyclopts import App, Parameter

app = App(help=__doc__, help_format="plaintext", version_flags=())


@app.default
def main(
    *studies: Annotated[Path, Parameter(help="Directories with rows.jsonl.")],
    headline: Annotated[Path | None, Parameter(help="Page that shows the first study, as README.md.")] = None,
) -> None:
    if not studies:
        raise Failure("no study is given; expected directories with rows.jsonl, as results/mil4_mnist", status=2)
    if headline:
        common.check_page(headline, ("headline",))
    for study in studies:
        print(write(study))
    if headline:
        common.publish(headline, "headline", headline_of(studies[0]))


def headline_of(study: Path) -> str:
    """The result of a study in a table and two sentences."""
    import study_text
    from study_rows import Study, summary

    opened = Study(study)
    return study_text.headline_part(opened, summary(opened))


def write(path: Path) -> str:
    """Everything that is made from the rows of a study; returns its headline as people read it."""
    import study_figures
    import study_text
    from study_rows import Study, summary

    from mnas.checkpoint import write_atomically, write_json

    study = Study(path)
    found = summary(study)
    with common.writing(path):
        drawn = study_figures.draw(study)
        write_json(path / "summary.json", found)
        write_atomically(path / "README.md", study_text.page(study, found, drawn))
    return "\n\n".join([study_text.headline(study, "simple"), study_text.ranking_sentence(found), f"report: {path}"])


if __name__ == "__main__":
    common.run(app)
