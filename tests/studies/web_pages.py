"""Pages of mnas report --out, made once for those who read them and those who open them."""

import json

import pytest
from conftest import ROOT, rows
from invented import made_up, put
from running import ARCHS, in_process

HOSTILE = "</script><script>window.broken = 1</script><b>&"
NINE = ROOT / "results" / "mil9_mnist"
RANKED = ROOT / "results" / "ranking" / "nb_macro_fair_6_epochs_16px_seed0"
PAGES = ("invented", "poor", "study", "overview", "scores")


def written(folder):
    """PAGES in the folder, by the command: of an invented study with a hostile name, of one without
    any interval, of real ones, of scores."""
    pytest.importorskip("altair", reason="pip install 'mnas[report]'")
    pytest.importorskip("vl_convert", reason="pip install 'mnas[report]'")
    study = folder / "invented"
    made_up(study, variants=("supernet-fair", "fine-tuned"))
    for name in ("rows", "variants"):
        file = study / f"{name}.jsonl"
        found = [{**row, "arch": row["arch"].replace(ARCHS[3], HOSTILE)} for row in rows(file)]
        put(file, "".join(json.dumps(row) + "\n" for row in found))
    made_up(folder / "poor", supernets=1, scratch=1)
    real = [ROOT / "results" / "mil4_mnist", NINE]
    given = {
        "invented": [study],
        "poor": [folder / "poor"],
        "study": real[1:],
        "overview": real,
        "scores": [RANKED],
    }
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name, paths in given.items():
            status, out, error = in_process(
                monkeypatch, Nothing, "report", *paths, "--out", folder / f"{name}.html"
            )
            assert (status, out, error) == (0, "", "")
    return folder


class Nothing:
    """In the place of capsys, which only single tests have."""

    readouterr = staticmethod(lambda: ("", ""))


def said(line, *keys):
    """Taus of a line of summary.json with their intervals."""
    found = []
    for key in keys:
        mean = line["tau_mean" if key == "tau" else key]
        low, high = line[f"{key}_ci"]
        ends = "" if low is None else f" [{low:.2f}, {high:.2f}]"
        found.append(f"{mean:.2f}{ends}")
    return found
