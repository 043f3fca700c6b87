"""mnas report --out: one HTML file, read by a parser, and opened in a headless Chromium from disk
without a network."""

import json
import re
import shutil
from html.parser import HTMLParser

import pytest
from conftest import ROOT, rows
from invented import made_up, put
from running import ARCHS, in_process

from mnas.studies.results import Study, summary
from mnas.studies.web import parts

MILLION = 1_000_000  # bytes: the most that a page may have
HOSTILE = "</script><script>window.broken = 1</script><b>&"
RANKED = ROOT / "results" / "ranking" / "nb_macro_fair_6_epochs_16px_seed0"


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
    """Pages, by the command: of an invented study with a hostile name, of real ones, of scores."""
    pytest.importorskip("altair", reason="pip install 'mnas[report]'")
    pytest.importorskip("vl_convert", reason="pip install 'mnas[report]'")
    folder = tmp_path_factory.mktemp("web")
    study = folder / "invented"
    made_up(study, variants=("supernet-fair", "fine-tuned"))
    for name in ("rows", "variants"):
        file = study / f"{name}.jsonl"
        found = [{**row, "arch": row["arch"].replace(ARCHS[3], HOSTILE)} for row in rows(file)]
        put(file, "".join(json.dumps(row) + "\n" for row in found))
    made_up(folder / "poor", supernets=1, scratch=1)  # without any interval
    real = [ROOT / "results" / name for name in ("mil4_mnist", "mil9_mnist")]
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


PAGES = ("invented", "poor", "study", "overview", "scores")


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
    study = Study(ROOT / "results" / "mil9_mnist")
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
        row = rf'>{line["name"]}</th>.*data-value="{line["tau_mean"]:.6g}">{line["tau_mean"]:.2f}'
        assert re.search(row, text)


def test_only_what_has_a_loss_can_be_compared_by_it(made):
    """The invented rows all have the same."""
    for name, number in (("study", 2), ("overview", 2), ("invented", 0), ("scores", 0)):
        page = Elements((made / f"{name}.html").read_text())
        assert len([found for found in page.named("input") if found["type"] == "radio"]) == number


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
    names = re.findall(r'<th scope="row" data-value="([^"]*)"', overview.read_text())
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


@pytest.fixture
def opened(browser, made):
    """Opens a page of `made`; at the end of the test nothing may have gone wrong in it, and nothing
    been asked of a network."""
    contexts, wrong = [], []

    def go(name, width=1600, scheme="light"):
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True
        )
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda it: it.url.startswith("http") and wrong.append(it.url))
        page.goto((made / f"{name}.html").as_uri())
        page.wait_for_selector("html[data-drawn]", timeout=60_000)
        return page

    yield go
    for context in contexts:
        context.close()
    assert wrong == []


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_a_page_can_be_read_on_a_phone_and_on_a_desk(name, scheme, opened):
    for width in (400, 1600):
        page = opened(name, width, scheme)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        tables = "all => all.map(x => x.scrollWidth - x.clientWidth)"
        if width > 1000:  # on a phone they scroll by themselves
            assert max(page.locator(".scroll").evaluate_all(tables)) == 0
        charts = page.locator(".chart:visible svg")
        assert charts.count() == page.locator(".chart:visible").count() > 0
        for box in charts.evaluate_all("all => all.map(x => x.getBoundingClientRect().toJSON())"):
            assert 200 < box["width"] <= width
            assert box["left"] >= 0
            assert box["right"] <= width
        assert page.evaluate("window.broken") is None
        for place in ("body", "h2", "thead button", ".chart svg .role-axis-label text"):
            assert contrast(page, place) >= 4.5, place


def contrast(page, place):
    """Of text and ground, by WCAG 2.1: 4.5 is what text needs."""
    return page.evaluate(
        """place => {
            const light = (colour) => {
                const [r, g, b] = colour.match(/[0-9.]+/g).map((x) => x / 255).map(
                    (x) => (x <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4));
                return 0.2126 * r + 0.7152 * g + 0.0722 * b;
            };
            const style = getComputedStyle(document.querySelector(place));
            const text = place.includes("svg") ? style.fill : style.color;
            const both = [text, getComputedStyle(document.body).backgroundColor].map(light);
            return (Math.max(...both) + 0.05) / (Math.min(...both) + 0.05);
        }""",
        place,
    )


@pytest.mark.slow
def test_tables_are_sorted_by_click_and_by_keyboard(opened):
    page = opened("study")
    table = page.locator("table").first
    heads, cells = table.locator("thead th"), table.locator("tbody tr > :nth-child(6)")

    def macs():
        return [int(text.replace(",", "")) for text in cells.all_inner_texts()]

    heads.nth(5).locator("button").click()
    assert macs() == sorted(macs())
    assert heads.nth(5).get_attribute("aria-sort") == "ascending"
    heads.nth(5).locator("button").focus()
    page.keyboard.press("Enter")
    assert macs() == sorted(macs(), reverse=True)
    assert heads.nth(5).get_attribute("aria-sort") == "descending"
    page.keyboard.press("Shift+Tab")
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert page.evaluate(outline) == "solid"  # what has the focus is seen
    page.keyboard.press("Space")
    assert heads.nth(5).get_attribute("aria-sort") is None
    parameters = table.locator("tbody tr > :nth-child(5)").all_inner_texts()
    assert parameters == sorted(parameters, key=lambda text: int(text.replace(",", "")))
    heads.nth(0).locator("button").click()
    names = table.locator("tbody th").all_inner_texts()
    assert names == sorted(names)


@pytest.mark.slow
def test_points_say_what_they_are(opened):
    page = opened("study")
    point = page.locator(".chart").first.locator(".mark-symbol path").first
    point.hover()
    tooltip = page.locator("#vg-tooltip-element")
    tooltip.wait_for(state="visible", timeout=5_000)
    assert re.search(r"network\s*d1-d1.*from scratch\s*98\.32", tooltip.inner_text(), re.DOTALL)
    page = opened("invented")
    page.locator(".chart").first.locator(".mark-symbol path").nth(3).hover()
    tooltip = page.locator("#vg-tooltip-element")
    tooltip.wait_for(state="visible", timeout=5_000)
    assert HOSTILE in tooltip.inner_text()
    assert page.evaluate("window.broken") is None


@pytest.mark.slow
def test_charts_follow_the_scheme_of_the_system(opened):
    page = opened("study")
    label = page.locator(".chart svg .role-axis-label text").first
    light = label.evaluate("it => getComputedStyle(it).fill")
    page.emulate_media(color_scheme="dark")
    page.wait_for_selector("html[data-drawn='2']", timeout=60_000)
    assert label.evaluate("it => getComputedStyle(it).fill") != light
    assert page.locator(".chart svg").count() == page.locator(".chart:visible").count()


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_switch_shows_the_loss_in_place_of_top1(scheme, opened):
    """By click and by keyboard, on a phone and on a desk; table and charts change together."""
    study = Study(ROOT / "results" / "mil9_mnist")
    loss = -study.arms["scratch"].loss.mean(0)
    for width in (400, 1600):
        page = opened("study", width, scheme)
        table = page.locator("#s1 table:visible")
        assert "from scratch, %" in table.inner_text()
        page.get_by_role("radio", name="test loss").check()
        page.wait_for_selector("html[data-drawn='2']", timeout=60_000)
        assert table.count() == 1
        cells = table.locator("tbody tr > :nth-child(3)").all_inner_texts()
        assert [text.split()[0] for text in cells] == [f"{value:.4f}" for value in loss]
        charts = page.locator("#s1 .chart:visible svg")
        assert charts.count() == 2
        assert "from scratch, test loss, nats" in charts.first.text_content()
        for box in charts.evaluate_all("all => all.map(x => x.getBoundingClientRect().toJSON())"):
            assert 200 < box["width"] <= width
            assert box["right"] <= width
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        for place in (".switch label", ".switch legend"):
            assert contrast(page, place) >= 4.5
        page.locator("#s1 .chart:visible .mark-symbol path").first.hover()
        tooltip = page.locator("#vg-tooltip-element")
        tooltip.wait_for(state="visible", timeout=5_000)
        assert re.search(rf"from scratch\s*{loss[0]:.4f}", tooltip.inner_text())
        page.mouse.move(0, 0)
        page.get_by_role("radio", name="test loss").focus()
        page.keyboard.press("ArrowLeft")
        page.wait_for_selector("html[data-drawn='3']", timeout=60_000)
        assert "from scratch, %" in table.inner_text()
