"""The report in a real browser: nothing fails, nothing is fetched, everything a reader can do works."""

import json
import os
import re
import shutil
from itertools import pairwise
from pathlib import Path

import pytest

from driftkit.comparison.speed import Speed
from driftkit.stages import compare as stage
from driftkit.storage.files import write_json
from tests.comparison.comparing import compare_runs
from tests.scoring.fakes import add_frames, add_samples, evaluation, make_run

pytestmark = pytest.mark.browser
HOSTILE = "</script><script>alert(1)</script><svg onload=alert(1)>"
NAMES = ["<img src=x onerror=alert(1)> \"quoted\" & 'so' ünï 漂移 🌀", "ddpm", "a_very_long_name_" + 60 * "x"]
PHONE = {"width": 375, "height": 800}
DESK = {"width": 1200, "height": 900}
A4 = {"width": 718, "height": 1047}  # of CSS pixels within the margins of the print style


def chromium() -> str | None:
    """The browser of the system's packages."""
    named = os.environ.get("DRIFTKIT_TEST_CHROMIUM")
    found = (shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"))
    return named or next(filter(None, found), None)


@pytest.fixture(scope="module")
def browser():
    """Chromium without a window; where there is none the tests are skipped, or fail if one is required."""
    reason = ""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        reason = "playwright is not installed (it is in the group dev)"
    path = chromium()
    if path is None:
        reason = "no Chromium: install the system's package, or name one in DRIFTKIT_TEST_CHROMIUM"
    if reason:
        if os.environ.get("DRIFTKIT_REQUIRE_BROWSER", "") not in ("", "0"):
            pytest.fail(reason)
        pytest.skip(reason)
    with sync_playwright() as playwright:
        as_root = hasattr(os, "geteuid") and os.geteuid() == 0
        launched = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"] if as_root else [])
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A report with everything in it, from runs with names that mean ill."""
    folder = tmp_path_factory.mktemp("report")
    patch = pytest.MonkeyPatch()
    patch.setenv("DRIFTKIT_DATA_DIR", str(folder / "data"))
    for number, name in enumerate(NAMES):
        run = make_run(folder / name, "ddpm" if name == "ddpm" else "drift")
        config = run.manifest().config
        run.update(
            config={**config, "seed": number, "trainer": {**config["trainer"], "note": f"{HOSTILE} <!-- {name}"}}
        )
        setups = [("ddim", 10, 12.0), ("ddim", 50, 7.0)] if name == "ddpm" else [(HOSTILE, 1, 9.0 + number)]
        for sampler, nfe, fid in setups:
            for seed in (0, 1):
                document = evaluation(fid + 0.1 * seed, nfe=nfe, sampler=sampler, seed=seed, warnings=[HOSTILE])
                document["reference"]["spec"] = HOSTILE
                write_json(run.path / "evaluations" / f"{nfe}-{seed}.json", document)
        write_json(run.path / "evaluations" / "earlier.json", evaluation(fid + 5, nfe=nfe, sampler=sampler, step=10))
        add_samples(run)
        add_frames(run)
    speeds = [Speed(NAMES[0], "one-step", 1, 1, 200.0, 0.08, 1.0), Speed("ddpm", "ddim", 50, 5, 4.0, 4.0, 1.0)]
    patch.setattr(stage, "time_runs", lambda *_: speeds)
    pictures = {"neighbours": True, "neighbours_in": "shapes?image_size=8&count=64"}
    paths = [*(folder / name for name in NAMES), folder / HOSTILE.replace("/", "_")]
    result = compare_runs(paths, folder / "out", speed=True, **pictures)
    patch.undo()
    return result


@pytest.fixture
def opened(browser, report):
    """Opens the report; every message on the console, error and request is a failure at the end."""
    trouble, contexts = [], []

    def open_page(viewport=DESK, media=None, forgive=None, **options):
        context = browser.new_context(viewport=viewport, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(120_000)
        page.on("console", lambda m: None if forgive and forgive in m.text else trouble.append(f"{m.type}: {m.text}"))
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.on("dialog", lambda dialog: (trouble.append(f"alert: {dialog.message}"), dialog.dismiss()))
        own = report.report.resolve().as_uri()
        page.on("request", lambda r: None if r.url.startswith(("data:", "blob:", own)) else trouble.append(r.url))
        page.goto(own)
        if media:
            page.emulate_media(media=media)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert trouble == []


def column(page, table, number):
    """The cells of a column as shown, top to bottom."""
    return table.evaluate("(t, n) => [...t.tBodies[0].rows].map(r => r.cells[n].dataset.value)", number)


def test_all_images_load_and_have_a_text(opened):
    page = opened()
    images = page.evaluate("[...document.images].filter(i => i.getAttribute('src')).map(i => [i.alt, i.naturalWidth])")
    assert len(images) >= 15
    assert all(alt and width > 0 for alt, width in images)


def test_the_page_asks_for_nothing_and_its_policy_stops_what_is_put_in(opened):
    page = opened(forgive="Content Security Policy")
    blocked = page.evaluate(
        """() => new Promise(done => {
            document.addEventListener("securitypolicyviolation", event => done(event.violatedDirective));
            const script = document.createElement("script");
            script.textContent = "document.title = 'taken over'";
            document.body.append(script);
        })"""
    )
    assert blocked.startswith("script-src")
    assert "taken over" not in page.title()


def test_hostile_names_are_text(opened):
    page = opened()
    text = page.locator("#scores").inner_text()
    assert NAMES[0] in text
    assert HOSTILE in text
    assert page.locator("img[src='x'], svg[onload]").count() == 0
    assert page.locator("script").count() == 2


def test_tables_sort_by_every_column_and_back(opened):
    page = opened()
    table = page.locator("#scores table").first
    for number in range(table.locator("thead button").count()):
        button = table.locator("thead button").nth(number)
        numeric = button.get_attribute("data-kind") == "number"
        for direction in ("ascending", "descending"):
            if button.locator("xpath=..").get_attribute("aria-sort") == "ascending" == direction:
                button.click()  # the page comes sorted by its score
            button.click()
            assert button.locator("xpath=..").get_attribute("aria-sort") == direction
            shown = [v for v in column(page, table, number) if v]
            if numeric:
                assert [float(v) for v in shown] == sorted(map(float, shown), reverse=direction == "descending")
            assert "" not in column(page, table, number)[: len(shown)]


def test_sampler_setups_other_than_the_best_are_shown_on_demand(opened):
    page = opened()
    rows = page.locator("#scores .setups").first.locator("tbody tr")
    visible = sum(row.is_visible() for row in rows.all())
    assert visible == len(NAMES)
    page.locator(".more input").first.check()
    assert sum(row.is_visible() for row in rows.all()) == rows.count() > visible


def test_pictures_enlarge_by_mouse_and_by_keyboard(opened):
    page = opened()
    zoom, first = page.locator("#zoom"), page.locator("button.zoom").first
    first.click()
    assert zoom.is_visible()
    assert zoom.locator("img").get_attribute("alt") == first.locator("img").get_attribute("alt")
    assert zoom.locator("img").bounding_box()["width"] > first.locator("img").bounding_box()["width"]
    before = zoom.locator("figcaption").inner_text()
    page.keyboard.press("ArrowRight")
    assert zoom.locator("figcaption").inner_text() != before
    page.keyboard.press("Escape")
    assert not zoom.is_visible()
    first.focus()
    page.keyboard.press("Enter")
    assert zoom.is_visible()
    zoom.locator(".close").click()
    assert not zoom.is_visible()
    assert page.evaluate("document.activeElement.className") == "zoom"


def test_the_page_opens_with_the_conclusion_and_the_pictures(opened):
    page = opened({"width": 1200, "height": 800})
    assert page.locator("header").inner_text().count("\n\n") == 1  # the title and one sentence
    grids = page.locator("#samples figure")
    assert grids.count() == len(NAMES)
    for figure in grids.all():
        box = figure.locator("img").bounding_box()
        assert box["y"] + box["height"] < 800
        assert re.search(r": (DDPM|Drifting), \d+ NFE, fid@100 \d", figure.locator("figcaption").inner_text())
    order = page.evaluate("[...document.querySelectorAll('main > section')].map(s => s.id)")
    assert order == ["samples", "scores", "cost", "training", "neighbours", "runs", "reading"]


def test_small_images_are_enlarged_by_whole_factors(opened):
    for viewport in (PHONE, DESK):
        page = opened(viewport)
        page.locator("button.zoom").first.click()
        widths = page.evaluate("[...document.querySelectorAll('img.pixels')].map(i => i.width / i.naturalWidth)")
        assert len(widths) == 2 * len(NAMES) + 1  # the enlarged one, too
        assert all(factor >= 1 and factor == int(factor) for factor in widths)


def test_headings_landmarks_and_tables_have_the_structure_that_a_screen_reader_needs(opened):
    page = opened()
    levels = page.evaluate("[...document.querySelectorAll('h1, h2, h3, h4')].map(h => Number(h.tagName[1]))")
    assert levels.count(1) == 1 == levels[0]
    assert all(below <= above + 1 for above, below in pairwise(levels))
    assert page.evaluate("document.documentElement.lang") == "en"
    for name in ("header", "main", "nav[aria-label]", "footer"):
        assert page.locator(name).count() == 1
    for table in page.locator("table").all():
        assert table.locator("caption").count() == 1
        assert table.locator("th:not([scope])").count() == 0
    assert page.locator("section:not(:has(> h2 + p))").count() == 0  # every one says what is to be seen


def test_everything_is_reached_by_tab_with_a_visible_focus(opened):
    page = opened()
    reachable = "a[href], button, input, summary, .scroll"
    expected = page.evaluate(f"[...document.querySelectorAll('{reachable}')].filter(e => e.checkVisibility()).length")
    focus = """() => {
        const e = document.activeElement, style = getComputedStyle(e), box = e.getBoundingClientRect();
        const seen = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) > 0 && box.top >= 0;
        e.dataset.visited = "yes";
        return [e.className || e.tagName, seen];
    }"""
    stops = []
    for _ in range(expected):
        page.keyboard.press("Tab")
        stops.append(page.evaluate(focus))
    assert stops[0] == ["skip", True]
    assert [name for name, seen in stops if not seen] == []
    assert page.locator("[data-visited]").count() == expected
    page.locator(".skip").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.hash") == "#scores"


CONTRASTS = """() => {
    const channels = text => text.match(/[\\d.]+/g).map(Number);
    const luminance = rgb => {
        const [r, g, b] = rgb.map(c => c / 255).map(c => c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4);
        return .2126 * r + .7152 * g + .0722 * b;
    };
    const ground = element => {
        const colour = channels(getComputedStyle(element).backgroundColor);
        return colour[3] === 0 ? ground(element.parentElement) : colour.slice(0, 3);
    };
    const words = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), found = {};
    for (const e of document.querySelectorAll("details")) e.open = true;
    while (words.nextNode()) {
        const element = words.currentNode.parentElement;
        if (!words.currentNode.data.trim() || !element.checkVisibility()) continue;
        const [a, b] = [channels(getComputedStyle(element).color).slice(0, 3), ground(element)].map(luminance);
        found[element.tagName + "." + element.className] = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    }
    return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_a_contrast_of_at_least_four_and_a_half(opened, scheme):
    contrasts = opened(color_scheme=scheme).evaluate(CONTRASTS)
    assert len(contrasts) > 15
    assert {name: ratio for name, ratio in contrasts.items() if ratio < 4.5} == {}


def test_training_is_played_on_demand_and_stands_still_otherwise(opened):
    page = opened()
    figure, slider = page.locator(".evolution").first, page.locator(".player input")
    assert figure.locator(".at").inner_text() == "step 30"
    slider.focus()
    page.keyboard.press("Home")
    assert figure.locator(".at").inner_text() == "step 10"
    assert figure.locator("img:visible").count() == 1
    page.locator(".player button").click()
    figure.locator(".at", has_text="step 30").wait_for()
    assert page.locator(".player button").inner_text() == "Play"
    still = opened(reduced_motion="reduce")
    assert not still.locator(".player button").is_visible()
    assert still.locator(".player input").is_visible()


def test_numbers_can_be_taken_away(opened, report):
    page = opened()
    document = {**report.record.document(), "files": {}}
    assert json.loads(page.locator("#comparison").text_content()) == document
    with page.expect_download() as download:
        page.locator("#save").click()
    assert json.loads(Path(download.value.path()).read_text()) == document


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("light", {}),
        ("dark", {"color_scheme": "dark"}),
        ("phone", {"viewport": PHONE}),
        ("phone-dark", {"viewport": PHONE, "color_scheme": "dark"}),
        ("print", {"viewport": A4, "media": "print", "color_scheme": "dark"}),
    ],
)
def test_layouts_fit_their_width(opened, tmp_path, name, options):
    page = opened(**options)
    folder = Path(os.environ.get("DRIFTKIT_TEST_SCREENSHOTS") or tmp_path)
    page.screenshot(path=folder / f"report-{name}.png", full_page=True)
    width = page.evaluate("document.documentElement.clientWidth")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, ground.removeprefix("rgb(").rstrip(")").split(","))) < 150) == (name in ("dark", "phone-dark"))
    if name == "print":  # on paper nothing scrolls: what is wider than the page is lost
        wide = "t => t.getBoundingClientRect().right > document.documentElement.clientWidth + 1"
        names = f"[...document.querySelectorAll('table')].filter({wide}).map(t => t.caption?.textContent)"
        assert page.evaluate(names) == []
        source = page.evaluate("document.querySelector('.pictures picture img').currentSrc")
        assert source == page.evaluate("document.querySelector('.pictures picture img').src")
