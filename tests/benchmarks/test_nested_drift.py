"""benchmarks/nested.py and peers.py: a ring drifts where kernels are slices of one parameter, and
stays in mnas; the centre trains alike in both; the page says what the rows say."""

import re

import pytest
import torch
from conftest import ROOT, rows

from benchmarks import nested

MEASURED = rows(ROOT / "results" / "freezing" / "nested.jsonl")


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_rings_of_slices_move_and_centres_train_alike(name):
    (peer, moved), (own, stayed) = (
        nested.measure(name, by, before=2, steps=3) for by in ("slice", "mnas")
    )
    ring = torch.ones(5, 5, dtype=torch.bool)
    ring[1:4, 1:4] = False
    for there, here in zip(moved, stayed, strict=True):
        assert torch.equal(there[..., ~ring], here[..., ~ring])
        assert there[..., ring].abs().max() > 0
        assert not here[..., ring].any()
    assert peer["loss"] == own["loss"]


def test_the_page_says_what_the_rows_say():
    page = (ROOT / "docs" / "freezing.md").read_text()
    (text,) = re.findall(r"<!-- nested -->\n(.*?)\n<!-- end of nested -->", page, flags=re.DOTALL)
    assert text == nested.table(MEASURED)
    assert {row["ring_max"] for row in MEASURED if row["by"] == "mnas"} == {0.0}
    assert all(row["ring_max"] > 0 for row in MEASURED if row["by"] == "slice")
    for name in nested.OPTIMIZERS:
        peer, own = (row for row in MEASURED if row["optimizer"] == name)
        assert (peer["centre_rms"], peer["loss"]) == (own["centre_rms"], own["loss"])


def test_the_page_says_what_was_measured_of_other_kits():
    from benchmarks import peers

    measured = rows(ROOT / "results" / "freezing" / "peers.jsonl")
    page = (ROOT / "docs" / "freezing.md").read_text()
    (text,) = re.findall(r"<!-- peers -->\n(.*?)\n<!-- end of peers -->", page, flags=re.DOTALL)
    assert text == peers.table(measured)
    assert all((row["unused_max"] == 0) == ("mnas" in row["layer"]) for row in measured)
    again = [peers.measure(peers.own, name) for name in peers.OPTIMIZERS]
    assert [row["unused_max"] for row in again] == [0, 0]
