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
    text = (ROOT / "README.md").read_text()
    shown = [row.split(" | ") for row in re.findall(r"^\| (.* \| [\d.]+) \|$", text, re.M)]
    rows = read_csv(PUBLISHED / "report" / "mri.csv").query("headline").set_index("method")
    rows = rows.sort_values("mRI_pts", ascending=False)
    of_models = read_csv(PUBLISHED / "report" / "accuracy.csv").query("headline")
    pairs = zip(of_models["downstream"], of_models["evaluated_on"], strict=True)
    of_models = of_models.assign(trained=[on in downstream.split("+") for downstream, on in pairs])
    means = of_models.groupby(["trained", "method", "downstream"])["accuracy_pct"].mean()
    means = means.groupby(["trained", "method"]).mean()
    assert len(shown) == len(rows) == 17
    for (_, mri, left_out, trained), (method, row) in zip(shown, rows.iterrows(), strict=True):
        ends = (
            f"{row[name]:+.1f}".replace("-", "−") for name in ("mRI_pts", "mRI_low", "mRI_high")
        )
        assert mri == ("" if method == "pretrained" else "{} [{}, {}]".format(*ends))
        assert (left_out, trained) == tuple(f"{means[own, method]:.1f}" for own in (False, True))


@pytest.mark.slow
def test_the_published_grid_follows_from_its_predictions(tmp_path):
    found = audit(PUBLISHED, tmp_path)
    assert not found.problems, found.problems
    assert {*found.images} == {"art_painting", "cartoon", "photo", "sketch"}


@pytest.mark.exhaustive  # each kind of changed figure: test_publish.py
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
