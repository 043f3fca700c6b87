"""mnas report --out: one HTML file, read by a parser; test_web_browser.py opens it."""

import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
import web_pages
from conftest import ROOT
from invented import made_up, put
from running import in_process
from web_pages import HOSTILE, NINE, PAGES, RANKED, said

from mnas.storage import bits
from mnas.studies.page import page as readme
from mnas.studies.results import Study, summary
from mnas.studies.web import parts
from mnas.studies.web.overview import page as of_several
from mnas.studies.web.studies import of_study

MILLION = 1_000_000  # bytes: the most that a page may have


class Elements(HTMLParser):
    """What a page consists of: names with attributes, and its text outside of scripts."""

    def __init__(self, text):
        super().__init__()
        self.found, self.text, self._within = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        self._within.append(tag)

    def handle_endtag(self, tag):
        if tag in self._within:
            while self._within.pop() != tag:
                pass

    def handle_data(self, data):
        if self._within[-1:] not in (["script"], ["style"]):
            self.text.append(data)

    def named(self, tag):
        return [attributes for name, attributes in self.found if name == tag]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return web_pages.written(tmp_path_factory.mktemp("web"))


@pytest.mark.parametrize("name", PAGES)
def test_a_page_needs_nothing_outside(name, made):
    text = (made / f"{name}.html").read_text()
    assert len(text.encode()) <= MILLION
    page = Elements(text)
    assert page.named("html") == [{"lang": "en"}]
    assert len(page.named("title")) == len(page.named("h1")) == len(page.named("main")) == 1
    links = [found.get("href") or found.get("src") or "" for _, found in page.found]
    pages = {link for link in links if link and not link.startswith(("#", "data:,"))}
    assert all(re.fullmatch(r"[\w./-]*/report\.html", link) for link in pages)  # of the studies
    assert not re.findall(r"@import|url\(", text.split("</style>")[0])
    ids = [found["id"] for _, found in page.found if "id" in found]
    assert len(ids) == len(set(ids))
    assert {found.get("aria-labelledby") for found in page.named("section")} <= set(ids)


def test_text_of_rows_reaches_the_page_as_text_alone(made):
    page = Elements((made / "invented.html").read_text())
    assert HOSTILE in page.text
    assert not page.named("b")
    scripts = page.named("script")
    charts = [found["id"] for found in scripts if found.get("type") == "application/json"]
    assert len(scripts) == len(charts) + 2  # the code of the charts, and of the page
    assert charts == [found["data-chart"] for found in page.named("div") if "data-chart" in found]


def test_the_same_rows_give_the_same_bytes(made, tmp_path, monkeypatch, capsys):
    done = in_process(
        monkeypatch, capsys, "report", made / "invented", "--out", tmp_path / "a.html"
    )
    assert done[0] == 0
    assert (tmp_path / "a.html").read_bytes() == (made / "invented.html").read_bytes()


def test_numbers_are_those_of_the_summary(made):
    study = Study(NINE)
    found = summary(study)
    text = (made / "study.html").read_text()
    assert f"{found['regret_mean']:.3f} points below the best" in text
    for i, arch in enumerate(study.archs):
        mean = study.arms["scratch"].test[:, i].mean()
        assert re.search(rf'data-value="{arch}">{arch}</th>.*>{mean:.2f} \[', text)
    values = -study.arms["supernet"].loss
    for i, arch in enumerate(study.archs):
        assert re.search(rf'data-value="{arch}">{arch}</th>.*>{values[:, i].mean():.4f} \[', text)
    for line in found["estimators"]:
        expected = [
            [str(line["seeds"]), *said(line, "tau", "tau_validation_to_test", OTHER)],
            [str(line["seeds"]), *said(line, "tau_by_loss", "tau_of_loss")],
        ]
        cells = of_row(text, line["name"])
        assert [row[: len(those)] for row, those in zip(cells, expected, strict=True)] == expected


OTHER = "tau_other_images"


def of_row(text, name):
    """The cells behind this name, in each table that has it."""
    found = re.findall(rf'<tr><th scope="row" data-value="{name}">.*?</th>(.*?)</tr>', text)
    return [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in found]


def test_the_overview_has_what_a_user_gets_and_what_is_free_beside_every_tau(made):
    text = (made / "overview.html").read_text()
    for name in ("mil4_mnist", "mil9_mnist"):
        found = summary(Study(ROOT / "results" / name))
        of = {line["name"]: line for line in found["estimators"]}
        keys = ("tau", "tau_validation_to_test", OTHER)
        taus, losses, accuracy = of_row(text, name)
        assert taus[1:] == [
            *said(of["supernet"], *keys),
            *said(of["scratch"], "tau"),
            *said(of["parameters"], "tau"),
        ]
        assert losses[1:] == [
            taus
            for name in ("supernet", "scratch", "parameters")
            for taus in said(of[name], "tau_by_loss", "tau_of_loss")
        ]
        assert accuracy == [
            f"{found['inherited_mean']:.2f}",
            f"{found['scratch_mean']:.2f}",
            f"{found['regret_mean']:.3f}",
            f"{found['regret_of_chance']:.3f}",
        ]


def test_only_what_has_a_loss_can_be_compared_by_it(made):
    """The invented rows all have the same."""
    for name, number in (("study", 4), ("overview", 4), ("invented", 0), ("scores", 0)):
        page = Elements((made / f"{name}.html").read_text())
        assert len([found for found in page.named("input") if found["type"] == "radio"]) == number


def test_pages_say_over_what_their_intervals_are(tmp_path):
    """Of a study whose runs have kept which images are right, over these too."""
    with_bits, without = (tmp_path / name for name in ("bits", "none"))
    found = made_up(with_bits)
    for row in found:
        row["correct"] = bits.packed(np.arange(10_000) < round(10_000 * row["test_top1"]))
    put(with_bits / "rows.jsonl", "".join(json.dumps(row) + "\n" for row in found))
    made_up(without)
    both = [Study(with_bits), Study(without)]
    said = "95 % over seeds, that of tau also over test images;"
    for study, expected in zip(both, (said, "95 % over seeds;"), strict=True):
        assert expected in of_study(study).footer[0]
        assert expected in readme(study, summary(study), [])
    (text,) = of_several(both, tmp_path / "a.html").sections[0].text
    assert "95 % over seeds, that of tau in 1 of 2 studies also over test images. Val" in text


def test_small_differences_keep_their_sign():
    assert parts.number(-0.0012, "+.4f").text == "-0.0012"
    assert parts.number(-0.0012, "+.2f").text == "+0.00"


def test_a_page_that_the_rows_contradict_is_named(made, tmp_path, monkeypatch, capsys):
    page = tmp_path / "page.html"
    shutil.copy(made / "invented.html", page)
    arguments = (made / "invented", "--out", page, "--check")
    assert in_process(monkeypatch, capsys, "report", *arguments)[0] == 0
    page.write_text(page.read_text().replace("points below the best", "points above the best"))
    status, _, error = in_process(monkeypatch, capsys, "report", *arguments)
    assert (status, error.count("\n")) == (1, 1)
    assert str(page) in error


@pytest.mark.slow
def test_committed_pages_agree_with_the_rows(monkeypatch, capsys):
    """Not all rows need have a page; a page must be that of its rows."""
    pytest.importorskip("altair", reason="pip install 'mnas[report]'")
    own = [*ROOT.glob("results/*/report.html"), RANKED / "report.html"]
    given = [(page, [page.parent]) for page in own]
    overview = ROOT / "docs" / "report.html"
    found = re.findall(r'<th scope="row" data-value="([^"]*)"', overview.read_text())
    names = dict.fromkeys(found)  # they are in several tables
    given.append((overview, [ROOT / "results" / name for name in names]))
    assert len(given) == 9
    for page, paths in given:
        done = in_process(monkeypatch, capsys, "report", *paths, "--out", page, "--check")
        assert done[0] == 0, done


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((ROOT / "results" / "mil4_mnist", "--out", "report.txt"), "report.txt"),
        ((ROOT / "results" / "mil4_mnist", "--out", "."), "no HTML file"),
        (("nowhere", "--out", "a.html"), "nowhere"),
        ((RANKED, RANKED, "--out", "a.html"), "alone"),
        ((RANKED, "--out", "a.html", "--headline", ROOT / "README.md"), "twice"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(
    arguments, said, tmp_path, monkeypatch, capsys, made
):
    monkeypatch.chdir(tmp_path)
    status, _, error = in_process(monkeypatch, capsys, "report", *arguments)
    assert (status, error.count("\n")) == (2, 1), error
    assert said in error
    assert not list(tmp_path.iterdir())


def test_damaged_scores_are_one_line(made, tmp_path, monkeypatch, capsys):
    copy = tmp_path / "ranking"
    shutil.copytree(RANKED, copy)
    (copy / "choosing.jsonl").write_text("{}")
    status, _, error = in_process(monkeypatch, capsys, "report", copy, "--out", tmp_path / "a.html")
    assert (status, error.count("\n")) == (2, 1)
    assert "choosing.jsonl" in error
