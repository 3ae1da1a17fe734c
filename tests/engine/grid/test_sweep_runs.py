"""`rib sweep` from its words to the table: variants of a row that share what they can."""

import campaigns
import pandas
import pytest

from engine import cli

pytestmark = pytest.mark.slow
LAM, SEEDS, DOWNSTREAMS = [0.1, 10.0], [0, 1], ["outline", "few"]
WORDS = ("method.lam=0.1,10", "seed=0,1", "downstream=outline,few", "train.epochs=1")


def test_a_sweep(folder, grid, monkeypatch, capsys):
    text = (folder / "shapes.yaml").read_text()
    (folder / "swept.yaml").write_text(text + "  ewc: {method: {fisher_images: 10}}\n")
    runs = folder / "runs"
    words = ["sweep", f"recipe={folder / 'swept.yaml'}/ewc", *WORDS, f"runs={runs}", "--cores", "2"]
    ran = campaigns.in_this_process(monkeypatch)
    assert cli.main(words) == 0
    assert len(ran) == 2 + 8 and ran[0] == "prepare" and ran[-1] == "report"
    (place,) = runs.glob("swept-ewc-sweep-lam-seed*/report")
    assert f"table   {place / 'sweep.csv'}" in capsys.readouterr().out

    data = pandas.read_parquet(place / "sweep.parquet")
    sets = ["upstream", *campaigns.SETS]
    keys = ["method.lam", "seed", "downstream", "evaluated_on"]
    assert list(data)[: len(keys)] == keys
    index = pandas.MultiIndex.from_product([LAM, SEEDS, DOWNSTREAMS, sets])
    assert sorted(data[keys].itertuples(index=False, name=None)) == sorted(index)
    assert data["method.lam"].dtype == float and data["seed"].dtype == int
    again = pandas.read_csv(place / "sweep.csv")
    pandas.testing.assert_frame_equal(again, data, check_dtype=False, rtol=1e-7)
    assert (data["accuracy_after"] - data["accuracy_before"] - data["change"]).abs().max() == 0
    assert data.groupby("evaluated_on")["accuracy_before"].nunique().eq(1).all()
    assert data.groupby(["method.lam", "seed"])["change"].sum().nunique() > 1, "nothing varied"

    summary = pandas.read_csv(place / "tables/sweep-variants.csv")
    assert list(summary["method.lam"]) == LAM
    others = data.query("evaluated_on != 'upstream' and evaluated_on != downstream")
    changes = others.groupby(["method.lam", "downstream"])["change"].mean()
    expected = changes.groupby("method.lam").mean()
    assert list(summary["mRI_pts"]) == pytest.approx(list(expected), abs=1e-5)
    page = (place / "index.html").read_text()
    assert "is selection on the test sets" in page and "gains most" not in page
    table = " ".join((place / "table.txt").read_text().split())
    assert "note: mRI is measured on the test sets." in table
    assert "Seed,0 to 1" in (place / "tables/settings.csv").read_text()

    made = {path: path.stat().st_mtime_ns for path in (runs / "store").glob("*/*/done.json")}
    kinds = [path.parts[-3] for path in made]
    assert kinds.count("fisher") == kinds.count("weights") == 1
    assert kinds.count("cells") == 1 + 8, "the first head, and a cell a column"
    del ran[:]
    assert cli.main(words) == 0
    assert ran == [] and "is finished; nothing to do." in capsys.readouterr().out
    (place / "sweep.csv").unlink()
    assert cli.main(words) == 0
    assert ran[-1] == "report" and (place / "sweep.csv").is_file()
    assert made == {p: p.stat().st_mtime_ns for p in (runs / "store").glob("*/*/done.json")}
