"""The notebook runs from top to bottom, as a newcomer would."""

import re

import nbformat
import numpy as np
import pytest
from conftest import ROOT
from extent import WHOLE
from nbclient import NotebookClient

from mnas.studies.results import Study, summary

NOTEBOOK = ROOT / "docs" / "demo.ipynb"


@pytest.mark.nightly
@pytest.mark.filterwarnings("default")  # of the notebook's own machinery
def test_the_notebook_runs():
    """As it is in the whole campaign; else on one thread, with a hundredth of the training."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells if not WHOLE else ():
        cell.source = re.sub(r"epochs=(\d+)", r"epochs=\1 / 100", cell.source)
    client = NotebookClient(notebook, timeout=400, resources={"metadata": {"path": ROOT / "docs"}})
    client.execute()
    text = "".join(
        output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", ())
    )
    assert "equal: True" in text
    assert finding(notebook) == finding(nbformat.read(NOTEBOOK, as_version=4))  # of rows alone


def finding(notebook):
    """What the notebook ends with, as people read it."""
    (output,) = notebook.cells[-1].outputs
    return output["data"]["text/markdown"]


def test_the_notebook_ends_with_the_finding_that_the_rows_give():
    said = finding(nbformat.read(NOTEBOOK, as_version=4))
    assert said.startswith("**Finding.**")
    found = summary(Study(ROOT / "results" / "mil4_mnist"))
    right = np.isclose(found["tau_per_seed"], 1).sum()
    assert f"a tau of {found['tau_mean']:.2f}; {right} of 10 order them right" in said
    assert f"reaches {found['ceiling_mean']:.2f}" in said
    line = next(line for line in found["estimators"] if line["name"] == "parameters")
    assert f"costs nothing, {line['tau_mean']:.2f}" in said


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of the machinery of notebooks
@pytest.mark.parametrize("width", [400, 1600])
def test_the_notebook_opens_in_a_browser(width, browser, tmp_path):
    """As a page, without a network: its images are there, and the finding is to be seen."""
    nbconvert = pytest.importorskip("nbconvert", reason="pip install nbconvert")
    exporter = nbconvert.HTMLExporter(mathjax_url="", require_js_url="")
    text, _ = exporter.from_filename(NOTEBOOK)
    (tmp_path / "demo.html").write_text(text)
    page = browser.new_page(viewport={"width": width, "height": 900})
    wrong = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto((tmp_path / "demo.html").as_uri())
    sizes = "all => all.map(image => image.complete && image.naturalWidth)"
    images = page.locator("img").evaluate_all(sizes)
    assert len(images) == 3
    assert min(images) > 200
    last = page.get_by_text("Finding.", exact=True)
    assert last.is_visible()
    assert last.bounding_box()["x"] < width
    assert page.title() == "demo"
    page.close()
    assert wrong == []


def test_the_notebook_shows_what_it_prints():
    """It is committed as it ran: every code cell has been executed, in order, without an error."""
    cells = [
        cell for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"
    ]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
