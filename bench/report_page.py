"""How large the report's page is, and how soon it can be used, with 100 and with 10,000 cells.

`python -m bench.report_page` needs Chromium, its driver and selenium (`pip install -e .[test]`).
The numbers of the grid are made up.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from itertools import combinations
from pathlib import Path

import numpy as np

from engine.grid.record import Record
from engine.measures.metrics import Draws, Grid, Summary, improvements
from engine.measures.rows import PRE, Accuracy, Behaviour, Comparison, Interval, Mri
from engine.measures.standings import standings
from engine.report import exports, headline, page, sections
from engine.report.certainty import Certainty
from engine.report.tables import Results

SIZES = {100: (1, 2, 7), 10_000: (10, 14, 8)}  # cells: models, methods, sets; a set upstream more


def results(models: int, methods: int, sets: int, seed: int = 0) -> Results:
    """A made-up grid."""
    rng = np.random.default_rng(seed)
    names = [f"set-{k}" for k in range(sets)]
    titles = {f"method_{k}": f"Method {k}" for k in range(methods)}
    rows: list[Accuracy] = []
    for model in (f"model-{k}" for k in range(models)):
        before = dict(zip([*names, "up"], rng.uniform(10, 90, sets + 1), strict=True))
        rows += [Accuracy(model, PRE, "", None, "", "", on, 1000, x) for on, x in before.items()]
        rows += [
            Accuracy(model, method, "canonical", None, "", i, j, 1000, before[j] + rng.normal(0, 5))
            for method in titles
            for i in names
            for j in before
        ]
    ri = improvements(rows, names)
    mri = [Mri(*arm, x := float(np.mean([*of.values()])), x - 1, x + 1) for arm, of in ri.items()]
    intervals = [
        Interval(*row.key, "accuracy", row.accuracy, row.accuracy - 1, row.accuracy + 1)
        for row in rows
    ]
    changed = tuple(Behaviour(*row.key, 60.0, 40.0, 5.0, 6.0, 3.0, 0.5) for row in rows)
    sure = Certainty(tuple(intervals), tuple(_comparisons(mri, names)), changed, 1, {})
    arranged = standings(rows, mri, sets=names, upstream="up", methods=titles)
    record = Record(
        "",
        "bench",
        names,
        names,
        "up",
        titles,
        {"Command": "none"},
        [],
        "",
        True,
        None,
        {},
        False,
        [],
        {},
    )
    grid = Grid(tuple(rows), (), (), (0,), Draws({}, *[np.empty((0, 0))] * 6))
    return Results(grid, Summary(tuple(rows), tuple(mri)), arranged, sure, record)


def _comparisons(mri: list[Mri], sets: list[str]) -> list[Comparison]:
    def row(a: Mri, b: Mri, on: str) -> Comparison:
        d = a.mri - b.mri
        against = b.arm[1:4]
        return Comparison(*a.arm, *against, on, d, d - 1, d + 1, 0.2, 0.4)

    pairs = [(a, b) for a, b in combinations(mri, 2) if a.model == b.model]
    return [row(a, b, on) for on in ("", *sets) for a, b in pairs]


def measure(cells: int, folder: Path) -> dict[str, float]:
    """Seconds and bytes of one size."""
    from selenium import webdriver

    campaign = results(*SIZES[cells])
    start = time.perf_counter()
    parts = sections.of(campaign)
    path = page.write(
        folder / "index.html", page.Page("bench", "bench", headline.lead(campaign), parts)
    )
    written = time.perf_counter() - start
    start = time.perf_counter()
    exports.write_tables(folder, parts)
    exported = time.perf_counter() - start
    options = webdriver.ChromeOptions()
    for flag in ("--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}/chrome"):
        options.add_argument(flag)
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    options.binary_location = shutil.which("chromium") or ""
    driver = webdriver.Chrome(options=options, service=service)
    try:
        driver.get(path.as_uri())
        ready, nodes = driver.execute_script(
            "return [performance.timing.domInteractive - performance.timing.navigationStart,"
            " document.querySelectorAll('*').length]"
        )
        loaded = driver.execute_script(
            "return performance.timing.loadEventEnd - performance.timing.navigationStart"
        )
        start = time.perf_counter()
        driver.set_script_timeout(120)
        driver.execute_async_script("drawAll().then(arguments[0])")
        drawn = time.perf_counter() - start
        sort = driver.execute_script(
            "const button = document.querySelector('[data-table=cells] th:last-child button');"
            "const start = performance.now(); button.click(); return performance.now() - start"
        )
    finally:
        driver.quit()
    return {
        "cells": sum(1 for row in campaign.grid.accuracy if row.method != PRE),
        "page_mb": path.stat().st_size / 1e6,
        "write_s": written,
        "exports_s": exported,
        "interactive_s": ready / 1e3,
        "loaded_s": loaded / 1e3,
        "all_figures_s": drawn,
        "sort_ms": sort,
        "elements": nodes,
    }


def main() -> None:
    for cells in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(measure(cells, Path(folder)), default=float))


if __name__ == "__main__":
    main()
