"""The published grid of PACS passes its audit, and one changed digit fails it."""

import re
import shutil
from pathlib import Path

import pytest
from pandas import read_csv

from engine.exchange.audit import audit
from loaders.files.durable import file_hash

ROOT = Path(__file__).parents[3]
PUBLISHED = ROOT / "docs" / "pacs"


def test_the_first_page_has_the_numbers_of_the_published_grid():
    shown = re.findall(
        r"^\| [^|]+ \| (\S+) \[(\S+), (\S+)\] \|$", (ROOT / "README.md").read_text(), re.M
    )
    rows = read_csv(PUBLISHED / "report" / "mri.csv").query("headline and method != 'pretrained'")
    numbers = rows.sort_values("mRI_pts", ascending=False)[
        ["mRI_pts", "mRI_low", "mRI_high"]
    ].to_numpy()
    assert [tuple(row) for row in shown] == [
        tuple(f"{value:+.1f}".replace("-", "−") for value in row) for row in numbers
    ]


@pytest.mark.slow
def test_the_published_grid_follows_from_its_predictions(tmp_path):
    found = audit(PUBLISHED, tmp_path)
    assert not found.problems, found.problems
    assert {*found.images} == {"art_painting", "cartoon", "photo", "sketch"}


@pytest.mark.slow
def test_one_changed_digit_is_named_though_its_checksum_is_repaired(tmp_path):
    folder = shutil.copytree(PUBLISHED, tmp_path / "pacs")
    name = "report/mri.csv"
    file, sums = folder / name, folder / "SHA256SUMS"
    before, text = file_hash(file), file.read_text()
    row = next(line for line in text.splitlines() if ",fine_tune," in line)
    place = row.index(".") - 1  # of the first number, mRI
    changed = row[:place] + str((int(row[place]) + 1) % 10) + row[place + 1 :]
    file.write_text(text.replace(row, changed))
    sums.write_text(sums.read_text().replace(before, file_hash(file)))
    problems = audit(folder, tmp_path).problems
    assert len(problems) == 1 and problems[0].startswith(name), problems
