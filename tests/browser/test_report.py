"""The report in a browser: Chromium without a window, on a page opened from disk."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pandas
import pytest
import reports

from engine.report import finish, page
from engine.report.results import of_campaign

pytestmark = pytest.mark.slow
webdriver = pytest.importorskip("selenium.webdriver")
WebDriverWait = pytest.importorskip("selenium.webdriver.support.ui").WebDriverWait
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    """The page of a made-up campaign."""
    run = reports.finished(tmp_path_factory.mktemp("runs"))
    return finish.write(run, of_campaign(run))


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    if not (CHROMIUM and DRIVER):
        pytest.skip("no browser: install chromium and chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_script_timeout(30)
    yield driver
    driver.quit()


@pytest.fixture
def browser(chromium, report) -> Iterator:
    """The page, freshly opened with all figures drawn; no message may be in the console."""
    _width(chromium, 1200)
    chromium.get(report.as_uri())
    chromium.execute_async_script("drawAll().then(arguments[0])")
    yield chromium
    assert chromium.get_log("browser") == []


def _width(driver, pixels: int) -> None:
    size = {"width": pixels, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def column(browser, table: str, number: int) -> list[str]:
    script = """
      const rows = document.querySelectorAll(`[data-table=${arguments[0]}] tbody tr`);
      return [...rows].map((row) => row.cells[arguments[1]].textContent.trim());
    """
    return browser.execute_script(script, table, number)


def test_every_figure_has_marks_and_words_and_nothing_is_fetched(browser):
    script = """
      return [...document.querySelectorAll("[data-figure]")].map((figure) => [
        figure.querySelectorAll(".mark-group path, .mark-text text, .mark-rect path").length,
        figure.querySelector("[role=img]").getAttribute("aria-label").length,
      ]);
    """
    counts = browser.execute_script(script)
    assert len(counts) >= 10 and all(marks > 3 and words > 20 for marks, words in counts)
    entries = browser.execute_script("return performance.getEntriesByType('resource').length")
    assert entries == 0


def test_a_click_on_a_head_sorts_and_says_so(browser):
    head = browser.find_element("css selector", "[data-table=ranking] th:nth-child(2)")
    button = head.find_element("css selector", "button")
    first = column(browser, "ranking", 1)
    button.send_keys("\n")  # by keyboard
    assert head.get_attribute("aria-sort") == "descending"
    assert column(browser, "ranking", 1) == first
    button.send_keys("\n")
    assert head.get_attribute("aria-sort") == "ascending"
    assert column(browser, "ranking", 1) == first[::-1]


def test_filters_and_search_leave_the_rows_that_match(browser, report):
    script = """
      const set = (selector, value) => {
        const input = document.querySelector(`[data-table=explorer] ${selector}`);
        input.value = value;
        input.dispatchEvent(new Event("input"));
      };
      set("[data-filter=method]", "EWC & co");
      set("[data-search]", "sketch");
    """
    browser.execute_script(script)
    assert set(column(browser, "explorer", 0)) == {"EWC & co"}
    data = pandas.read_csv(report.parent / "tables/explorer.csv")
    places = data["downstream"].eq("sketch") | data["evaluated_on"].eq("sketch")
    rows = int((data["method"].eq("EWC & co") & places).sum())
    count = "return document.querySelector('[data-table=explorer] [data-count]').textContent"
    assert browser.execute_script(count) == f"1 to {min(rows, page.ROWS)} of {rows} rows"


def test_pages_hold_all_rows_once(browser, report):
    columns = []
    following = browser.find_element("css selector", "[data-table=explorer] [data-page='1']")
    while True:
        rows = (column(browser, "explorer", k) for k in range(4))
        columns += zip(*rows, strict=True)
        if not following.is_enabled():
            break
        browser.execute_script("arguments[0].click()", following)
    rows = len(pandas.read_csv(report.parent / "tables/explorer.csv"))
    assert len(columns) == len(set(columns)) == rows > page.ROWS


def test_a_pointer_on_a_cell_shows_the_number_of_the_file(browser, report):
    data = pandas.read_csv(report.parent / "figures/map-01-ft.csv")
    script = """
      const figure = document.querySelector("[data-figure=map-01-ft]");
      figure.closest("details").open = true;
      figure.scrollIntoView({ block: "center" });
      const box = figure.querySelector(".mark-rect path").getBoundingClientRect();
      return [box.x + box.width / 2, box.y + box.height / 2];
    """
    x, y = browser.execute_script(script)
    for step in (0, 1):
        moved = {"type": "mouseMoved", "x": x + step, "y": y}
        browser.execute_cdp_cmd("Input.dispatchMouseEvent", moved)
    rows = browser.execute_script(
        "return [...document.querySelectorAll('#vg-tooltip-element.visible tr')]"
        ".map((row) => [...row.cells].map((cell) => cell.textContent))"
    )
    tooltip = {name.rstrip(":"): value.replace("−", "-") for name, value in rows}
    pair = tooltip["downstream"], tooltip["evaluated on"]
    (row,) = data[(data["downstream"] == pair[0]) & (data["evaluated_on"] == pair[1])].to_dict(
        "records"
    )
    assert float(tooltip["change, points"]) == pytest.approx(row["change_pts"], abs=0.0051)
    assert float(tooltip["accuracy, %"]) == pytest.approx(row["accuracy_pct"], abs=0.0051)


@pytest.mark.parametrize("pixels", [400, 800, 1600])
def test_the_page_is_no_wider_than_its_window(browser, pixels):
    _width(browser, pixels)
    browser.refresh()
    browser.execute_async_script("drawAll().then(arguments[0])")
    wide, window = browser.execute_script(
        "const root = document.documentElement; return [root.scrollWidth, root.clientWidth]"
    )
    assert wide == window and pixels - 20 <= window <= pixels  # less its scrollbar


def test_the_csv_of_the_page_is_that_of_the_file(browser, report):
    script = """
      const done = arguments[arguments.length - 1];
      const make = URL.createObjectURL;
      URL.createObjectURL = (blob) => { blob.text().then(done); return make(blob); };
      HTMLAnchorElement.prototype.click = () => {};
      document.querySelector("[data-table=ranking] [data-do=csv]").click();
    """
    text = browser.execute_async_script(script)
    assert text == (report.parent / "tables/ranking.csv").read_text()


def test_figures_follow_a_change_to_dark(browser):
    media = [{"name": "prefers-color-scheme", "value": "dark"}]
    try:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
        script = "return figures.every((figure) => figure.element.dataset.drawn === 'dark')"
        WebDriverWait(browser, 20).until(lambda driver: driver.execute_script(script))
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_folded_sections_open_by_click_and_by_link(browser, report):
    shown = "return document.querySelector('#maps .view').checkVisibility()"
    assert not browser.execute_script(shown)
    browser.find_element("css selector", "#maps summary").click()
    assert browser.execute_script(shown)
    drawn = "return document.querySelector('#maps .view svg').getBoundingClientRect().width"
    WebDriverWait(browser, 20).until(lambda driver: driver.execute_script(drawn) > 100)
    browser.execute_script("location.hash = '#how-sure'")
    is_open = "return document.querySelector('#how-sure details').open"
    WebDriverWait(browser, 20).until(lambda driver: driver.execute_script(is_open))


def test_paper_has_every_figure(browser):
    printed = browser.execute_cdp_cmd("Page.printToPDF", {})
    assert len(json.dumps(printed)) > 50_000
