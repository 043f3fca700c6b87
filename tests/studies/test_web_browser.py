"""Pages of mnas report --out, opened in a headless Chromium from disk without a network."""

import re

import pytest
import web_pages
from web_pages import HOSTILE, NINE, PAGES, said

from mnas.studies.results import Study, summary


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return web_pages.written(tmp_path_factory.mktemp("web"))


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
    study = Study(NINE)
    loss = -study.arms["scratch"].loss.mean(0)
    for width in (400, 1600):
        page = opened("study", width, scheme)
        table = page.locator("#s1 table:visible")
        assert "from scratch, %" in table.inner_text()
        page.locator("#s1").get_by_role("radio", name="test loss").check()
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
        page.locator("#s1").get_by_role("radio", name="test loss").focus()
        page.keyboard.press("ArrowLeft")
        page.wait_for_selector("html[data-drawn='3']", timeout=60_000)
        assert "from scratch, %" in table.inner_text()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "section"), [("study", "#s3"), ("overview", "#s1")])
def test_a_switch_of_the_ranking_shows_it_by_loss(name, section, opened):
    of = {line["name"]: line for line in summary(Study(NINE))["estimators"]}
    expected = said(of["supernet"], "tau_by_loss", "tau_of_loss")
    row = "supernet" if name == "study" else NINE.name
    for width in (400, 1600):
        page = opened(name, width)
        part = page.locator(section)
        assert "by loss" not in part.locator("table:visible").inner_text()
        part.get_by_role("radio", name="test loss").check()
        page.wait_for_selector("html[data-drawn='2']", timeout=60_000)
        (table,) = part.locator("table:visible").all()
        cells = table.locator(f"tr:has(th[data-value={row}]) td").all_inner_texts()
        assert [text for text in cells if text in expected] == expected
        assert part.locator(".chart:visible svg").count() == 1
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        scroll = "all => all.map(x => x.scrollWidth - x.clientWidth)"
        if width > 1000:
            assert max(part.locator(".scroll:visible").evaluate_all(scroll)) == 0
