"""The report in a browser: Chromium without a window, on a page opened from disk."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pandas
import pytest

from engine.report import finish, page
from engine.report.results import of_campaign
from helpers import reports

pytestmark = pytest.mark.slow
webdriver = pytest.importorskip("selenium.webdriver")
WebDriverWait = pytest.importorskip("selenium.webdriver.support.ui").WebDriverWait
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")


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
    for flag in ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"):
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('profile')}")
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
    assert len(counts) > 5 and all(marks > 3 and words > 20 for marks, words in counts)
    entries = browser.execute_script("return performance.getEntriesByType('resource').length")
    assert entries == 0


def test_a_click_on_a_head_sorts_and_says_so(browser):
    head = browser.find_element("css selector", "[data-table=ranking] th:nth-child(3)")
    button = head.find_element("css selector", "button")
    first = column(browser, "ranking", 2)
    button.send_keys("\n")  # by keyboard
    assert head.get_attribute("aria-sort") == "descending"
    assert column(browser, "ranking", 2) == first
    button.send_keys("\n")
    assert head.get_attribute("aria-sort") == "ascending"
    assert column(browser, "ranking", 2) == first[::-1]


def test_filters_and_search_leave_the_rows_that_match(browser, report):
    script = """
      const set = (selector, value) => {
        const input = document.querySelector(`[data-table=all-numbers] ${selector}`);
        input.value = value;
        input.dispatchEvent(new Event("input"));
      };
      set("select", "EWC & co");
      set("[type=search]", "sketch");
    """
    browser.execute_script(script)
    assert set(column(browser, "all-numbers", 0)) == {"EWC & co"}
    data = pandas.read_csv(report.parent / "tables/all-numbers.csv")
    places = data["downstream"].eq("sketch") | data["evaluated_on"].eq("sketch")
    rows = int((data["method"].eq("ewc") & places).sum())
    count = "return document.querySelector('[data-table=all-numbers] [role=status]').textContent"
    assert browser.execute_script(count) == f"{min(rows, page.ROWS)} of {rows} rows"


def test_more_rows_are_all_rows_once(browser, report):
    more = browser.find_element("css selector", "[data-table=all-numbers] [data-do=more]")
    while not more.get_property("hidden"):
        browser.execute_script("arguments[0].click()", more)
    rows = [*zip(*(column(browser, "all-numbers", k) for k in range(4)), strict=True)]
    count = len(pandas.read_csv(report.parent / "tables/all-numbers.csv"))
    assert len(rows) == len(set(rows)) == count > page.ROWS


def test_the_page_is_no_wider_than_its_window(browser):
    script = """
      document.querySelectorAll("details").forEach((details) => { details.open = true; });
      const root = document.documentElement;
      return [root.scrollWidth, root.clientWidth];
    """
    for pixels in (400, 800, 1600):
        _width(browser, pixels)
        wide, window = browser.execute_script(script)
        assert wide == window and pixels - 20 <= window <= pixels  # less its scrollbar


def test_what_the_page_saves_is_the_file(browser, report):
    script = """
      const done = arguments[arguments.length - 1];
      const make = URL.createObjectURL;
      URL.createObjectURL = (blob) => { blob.text().then(done); return make(blob); };
      HTMLAnchorElement.prototype.click = () => {};
      document.querySelector(arguments[0]).click();
    """
    for kind, name in (("table", "ranking"), ("figure", "ranking-lite0")):
        text = browser.execute_async_script(script, f"[data-{kind}={name}] [data-do=csv]")
        assert text == (report.parent / f"{kind}s/{name}.csv").read_text()
    button = "[data-figure=ranking-lite0] [data-do=svg]"
    assert browser.execute_async_script(script, button).startswith("<svg")


def test_folded_sections_open_by_click_and_by_link(browser, report):
    shown = "return document.querySelector('#maps .view').checkVisibility()"
    assert not browser.execute_script(shown)
    browser.find_element("css selector", "#maps summary").click()
    assert browser.execute_script(shown)
    drawn = "return document.querySelector('#maps .view svg').getBoundingClientRect().width"
    WebDriverWait(browser, 20).until(lambda driver: driver.execute_script(drawn) > 100)
    browser.execute_script("location.hash = '#differences'")
    is_open = "return document.querySelector('#differences details').open"
    WebDriverWait(browser, 20).until(lambda driver: driver.execute_script(is_open))
