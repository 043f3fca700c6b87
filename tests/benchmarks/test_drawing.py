"""The drawing of the README shows what the library does, and can be read on light and on dark."""

import xml.etree.ElementTree as ET

import pytest
import torch
from conftest import ROOT

from benchmarks import drawing


def test_what_is_drawn_is_a_centre_and_its_ring():
    facts = drawing.facts()
    centre = torch.zeros(5, 5, dtype=torch.bool)
    centre[1:4, 1:4] = True
    assert torch.equal(facts["small"], centre)
    assert facts["large"].all()
    assert torch.equal(facts["steps"], 1 + centre.int())
    assert torch.equal(facts["slice"], ~centre)
    assert facts["sizes"].tolist() == [32 * 16 * 9, 32 * 16 * 25]


@pytest.mark.parametrize("name", drawing.WORDS)
def test_the_committed_drawing_is_the_one_that_the_command_makes(name):
    text = (ROOT / "docs" / name).read_text()
    assert text == drawing.drawing(name)
    root = ET.fromstring(text)
    assert all(float(box.get("x", 0)) + float(box.get("width")) <= drawing.WIDTH
               for box in root.iter("{http://www.w3.org/2000/svg}rect"))  # fmt: skip
    assert "prefers-color-scheme: dark" in text
    assert name in (ROOT / ("README.ru.md" if ".ru." in name else "README.md")).read_text()
