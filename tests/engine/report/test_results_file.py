"""`results.json` and `citations.bib` of a report: as their documents say, and with its numbers."""

import json
import re

import jsonschema
import msgspec
import numpy as np
import pandas
import pytest

from engine.campaigns.record import MethodRow
from engine.recipe import catalogue
from engine.recipe.campaigns import recipe_names
from engine.recipe.catalogue import ROOT
from engine.report import finish, results_file
from engine.report.results import of_campaign
from engine.report.sections import about
from helpers import made_results, reports

SCHEMA = ROOT.parent / "docs" / "results.schema.json"
UNCITED = {"checkpoint", "fine_tune", "strong_fine_tune"}


@pytest.fixture
def folder(report):
    return report[0].parent


def test_the_documented_schema_is_that_of_the_types_and_the_file_fits_it(folder):
    schema = json.loads(SCHEMA.read_text("utf-8"))
    assert schema == results_file.schema(), "write it anew: see docs/results.md"
    written = json.loads((folder / "results.json").read_bytes())
    jsonschema.validate(written, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(written | {"numbers": [{"quantity": "mRI"}]}, schema)


def test_numbers_are_those_of_the_report(folder):
    read = results_file.read_results((folder / "results.json").read_bytes())
    mri = pandas.read_csv(folder / "mri.csv")
    numbers = pandas.DataFrame(msgspec.to_builtins(read.numbers)).query("quantity == 'mRI'")
    both = mri.merge(numbers, on=["method", "alpha"])
    assert len(both) == len(mri) == len(numbers)
    of_file, of_report = both[["value", "low", "high"]], both[["mRI_pts", "mRI_low", "mRI_high"]]
    np.testing.assert_allclose(of_file, of_report, rtol=1e-6)
    assert not both[["downstream", "evaluated_on"]].any(axis=None)
    accuracy = [each for each in read.numbers if each.quantity == "accuracy"]
    assert {each.method for each in accuracy} == {"pretrained", *reports.TITLES}
    assert read.settings["Versions"] == {"torch": "2"} and read.limit == 0
    assert read.methods[0].settings["optimizer.lr"] == 1e-3
    settings = (folder / "tables" / "settings.csv").read_text("utf-8")
    assert "Versions,torch 2" in settings and f"flat {'0' * 12}\n" in settings


def test_every_method_with_a_paper_is_cited_and_every_entry_is_of_a_method():
    entries = re.findall(r"^@\w+\{.*?^\}", catalogue.CITATIONS.read_text("utf-8"), re.S | re.M)
    cited = [name for entry in entries for name in catalogue.cited_for(entry)]
    assert sorted(cited) == sorted({*recipe_names("methods"), catalogue.BENCHMARK} - UNCITED)
    for entry in entries:
        assert entry.count("{") == entry.count("}")
        assert all(f"\n  {field} = " in entry for field in ("title", "author", "year"))


def test_a_report_cites_its_methods_by_what_they_are_based_on(folder):
    text = catalogue.bibtex(["ewc", "mine"])
    assert "@article{kirkpatrick2017ewc,\n  title" in text and text.count("\n@") == 1
    assert "methods = " not in text
    results = made_results.of_arms(
        {("mine", None, ""): (60, 55)}, rows=[MethodRow("mine", {"method.name": "lwf"})]
    )
    assert "li2018lwf" in about.bibtex(results)
    page = (folder / "index.html").read_text("utf-8")
    bib = (folder / "citations.bib").read_text("utf-8")
    assert "wortsman2022wise" in bib and "wortsman2022wise" in page
    assert 'href="results.json"' in page and 'href="citations.bib"' in page


def test_a_report_with_drawn_figures_keeps_having_them(tmp_path, monkeypatch):
    """`rib report` to look must not take the figures that `--figures` made."""
    run, asked = reports.finished(tmp_path), []
    results = of_campaign(run)
    monkeypatch.setattr(finish.exports, "write", lambda *_, drawn: asked.append(drawn))
    monkeypatch.setattr(finish.page, "write", lambda path, *_, **__: path)
    finish.write(run, results)
    (run.place.report / "figures").mkdir()
    (run.place.report / "figures" / "ranking.svg").touch()
    finish.write(run, results)
    assert asked == [False, True]
