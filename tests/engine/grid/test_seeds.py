"""Several training seeds: each cell of the grid is the one that its seed alone would give."""

from __future__ import annotations

import campaigns
import grids
import pytest
from campaigns import rows, run

from engine import cli
from engine.errors import RecipeError
from engine.grid import campaign

folder, finished, grid = campaigns.folder, campaigns.finished, grids.grid
KEY = ("method", "alpha", "downstream", "evaluated_on")


@pytest.mark.slow
def test_seeds_of_a_campaign(folder, finished, capsys):
    alone = {}
    for seed in ("0", "1"):
        report = run(folder, f"seed={seed}")
        assert not (report / "seeds.csv").exists()
        alone[seed] = {
            tuple(r[k] for k in KEY): r["accuracy"] for r in rows(report / "accuracy.csv")
        }
    assert alone["0"] != alone["1"]
    trained = len(list((finished / "store/cells").iterdir()))

    report = run(folder, "seeds=2")
    assert len(list((finished / "store/cells").iterdir())) == trained, "a cell trained again"
    of_seeds = {
        (*(r[k] for k in KEY), r["seed"]): r["accuracy"] for r in rows(report / "seeds.csv")
    }
    for key in alone["0"]:
        for seed in ("0", "1") if key[0] != "pre" else ("0",):
            assert of_seeds.pop((*key, seed)) == alone[seed][key]
    assert not of_seeds
    for row in rows(report / "accuracy.csv"):
        values = [float(alone[seed][tuple(row[k] for k in KEY)]) for seed in ("0", "1")]
        assert float(row["accuracy"]) == pytest.approx(sum(values) / 2, abs=1e-5)
    assert "Seed,0 to 1" in (report / "tables/settings.csv").read_text()

    words = ["metrics", str(folder / "shapes.yaml"), "--compare"]
    assert cli.main([*words, f"runs={finished}", "seeds=2"]) == 0
    printed = capsys.readouterr().out
    assert (
        "training runs like these 2" in printed and "corrected (Holm) for 3 comparisons" in printed
    )
    tables = [line for line in printed.splitlines() if not line.startswith("report  ")]  # a path
    assert max(map(len, tables)) <= 100
    assert cli.main([*words, "ewc", f"runs={finished}", "seeds=2"]) == 2
    assert "no method 'ewc'; it has fine_tune, linear_probe, wise_ft" in capsys.readouterr().err


def test_each_seed_is_a_cell_of_its_own_and_the_one_that_it_alone_would_be(grid):
    builders = grid.builder("seeds=2", "seed=3").seeded()
    assert [builder.recipe.seed for builder in builders] == [3, 4]
    alone = [grid.builder(f"seed={seed}") for seed in (3, 4)]
    assert [builder.key() for builder in builders] == [builder.key() for builder in alone]
    assert builders[0].key() != builders[1].key()


def test_a_plan_knows_its_seeds_and_less_than_one_is_refused(folder):
    name = str(folder / "shapes.yaml")
    assert campaign.plan(name, [], 2).seeds == 1
    assert campaign.plan(name, ["seeds=3"], 2).seeds == 3
    with pytest.raises(RecipeError, match="seeds=0 must be a whole number of at least 1"):
        campaign.plan(name, ["seeds=0"], 2)
