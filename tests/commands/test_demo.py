"""The notebook runs from top to bottom, as a newcomer would."""

import re

import nbformat
import pytest
from conftest import ROOT
from extent import WHOLE
from nbclient import NotebookClient

NOTEBOOK = ROOT / "docs" / "demo.ipynb"


@pytest.mark.nightly
@pytest.mark.filterwarnings("default")  # of the notebook's own machinery
def test_the_notebook_runs():
    """As it is in the whole campaign; else on one thread, with a hundredth of the training."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells if not WHOLE else ():
        cell.source = re.sub(r"epochs=(\d+)", r"epochs=\1 / 100", cell.source)
        cell.source = cell.source.replace("set_num_threads(2)", "set_num_threads(1)")
    client = NotebookClient(notebook, timeout=400, resources={"metadata": {"path": ROOT / "docs"}})
    client.execute()
    text = "".join(
        output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", ())
    )
    assert "equal: True" in text


def test_the_notebook_shows_what_it_prints():
    """It is committed as it ran: every code cell has been executed, in order, without an error."""
    cells = [
        cell for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"
    ]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
