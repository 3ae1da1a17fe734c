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
    table = place / "tables/sweep-variants.csv"
    assert f"table   {table}" in capsys.readouterr().out

    data = pandas.read_csv(place / "seeds.csv").query("method == 'ewc'")
    sets = ["upstream", *campaigns.SETS]
    settings = [f"method.lam={lam:g}" for lam in LAM]
    index = pandas.MultiIndex.from_product([settings, SEEDS, DOWNSTREAMS, sets])
    keys = data[["setting", "seed", "downstream", "evaluated_on"]]
    assert set(keys.itertuples(index=False, name=None)) == set(index) and len(data) == len(index)
    assert data.groupby(["setting", "seed"])["accuracy"].sum().nunique() > 1, "nothing varied"
    before = pandas.read_csv(place / "accuracy.csv").query("method == 'pre'")
    data["change"] = data["accuracy"] - data["evaluated_on"].map(
        before.set_index("evaluated_on")["accuracy"]
    )
    summary = pandas.read_csv(table)
    assert list(summary["method.lam"]) == LAM
    others = data.query("evaluated_on != 'upstream' and evaluated_on != downstream")
    expected = others.groupby("setting")["change"].mean()
    assert summary["mRI_pts"].tolist() == pytest.approx(expected[settings].tolist(), abs=1e-5)
    page = (place / "index.html").read_text()
    assert "is selection on the test sets" in page and "gains most" not in page
    printed = " ".join((place / "table.txt").read_text().split())
    assert "note: mRI is measured on the test sets." in printed
    assert "Seed,0 to 1" in (place / "tables/settings.csv").read_text()

    made = {path: path.stat().st_mtime_ns for path in (runs / "store").glob("*/*/done.json")}
    kinds = [path.parts[-3] for path in made]
    assert kinds.count("fisher") == kinds.count("weights") == 1
    assert kinds.count("cells") == 1 + 8, "the first head, and a cell a column"
    del ran[:]
    assert cli.main(words) == 0
    assert ran == [] and "is finished; nothing to do." in capsys.readouterr().out
    table.unlink()
    assert cli.main(words) == 0
    assert ran[-1] == "report" and table.is_file()
    assert made == {p: p.stat().st_mtime_ns for p in (runs / "store").glob("*/*/done.json")}
