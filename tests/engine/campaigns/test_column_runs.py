"""Campaigns of other columns, seeds and measures, and sweeps, from training to the report."""

import itertools
from operator import itemgetter
from pathlib import Path

import pandas
import pyarrow.parquet as pq
import pytest

from engine import cli
from engine.campaigns.find_campaign import find_campaign
from engine.cells.build import Builder
from engine.cells.plan_cell import plan_cell
from engine.errors import CampaignError, DivergedError
from engine.exchange.audit import audit
from engine.measures import scores
from engine.measures.predictions import SetPredictions
from engine.measures.temperature_scaling import temperature_of
from engine.recipe.overrides import parsed
from engine.training import loop
from helpers import campaigns
from helpers.campaigns import rows

pytestmark = pytest.mark.slow
SETS, METHODS = campaigns.SETS, campaigns.METHODS


def run_with(folder: Path, name: str, text: str, *words: str) -> Path:
    """The report of the campaign with more lines in its file."""
    (folder / f"{name}.yaml").write_text((folder / "shapes.yaml").read_text() + text)
    return campaigns.run(folder, *words, name=name)


def columns(report: Path, key: str) -> set[str]:
    return {row[key] for row in rows(report / "accuracy.csv")}


def test_a_campaign_that_fine_tunes_on_the_upstream_set_and_is_run_again(
    folder, finished, monkeypatch
):
    """It finds its cells. With CKA, its record has the blocks of every headline model."""
    words = ("extras.cka.images=6", "evaluate.batch_size=8")
    report = run_with(folder, "upstream", "downstreams: [upstream]\n", *words)
    assert columns(report, "downstream") == {"", "upstream"}
    campaign = find_campaign(str(folder / "upstream.yaml"), parsed([f"runs={finished}", *words]))
    blocks = campaign.record.extras["cka"]
    assert 'id="cka-heading"' in (report / "index.html").read_text()
    pairs = itertools.product(METHODS, ("upstream", *SETS))
    assert sorted((row["method"], row["evaluated_on"]) for row in blocks) == sorted(pairs)
    probe = next(row["blocks"] for row in blocks if row["method"] == "linear_probe")
    assert probe == pytest.approx({f"blocks.{k}": 1.0 for k in range(6)})
    first = {path.name: path.read_bytes() for path in report.iterdir() if path.is_file()}
    monkeypatch.setattr("engine.training.loop.fit", lambda *_: pytest.fail("trained again"))
    assert campaigns.run(folder, *words, name="upstream") == report
    assert {path.name: path.read_bytes() for path in report.iterdir() if path.is_file()} == first


def test_a_trial_that_diverges_on_one_set_is_left_out_on_all(folder, finished, monkeypatch):
    """Its column's other models are evaluated. The recipe's own training that diverges is an
    error."""
    fit, trainable = loop.fit, {"tinted": {0.02}}

    def diverges(method, context, saving):
        rate = context.recipe.optimizer.lr
        if not method.fits_head and rate not in trainable.get(context.recipe.downstream, {rate}):
            raise DivergedError("the loss is not finite")
        return fit(method, context, saving)

    monkeypatch.setattr(loop, "fit", diverges)
    report = run_with(folder, "trials", "trials: 2\n", "dataset.holdout=0.3")
    accuracy = {(row["method"], row["setting"]) for row in rows(report / "accuracy.csv")}
    assert accuracy == {("pretrained", "")} | {
        ("linear_probe", f"trial={k}") for k in (0, 1)
    } | {("fine_tune", "trial=0"), ("wise_ft", "trial=0")}  # fmt: skip
    names = {"fine_tune", "wise_ft"}
    diverged = map(itemgetter("method", "downstream", "setting"),
                   rows(report / "tables/diverged.csv"))  # fmt: skip
    assert sorted(diverged) == [(name, "tinted", "trial=1") for name in sorted(names)]
    page = (report / "index.html").read_text()
    assert "FT with trial=1 diverged on tinted and is left out" in page
    chosen = rows(report / "tables/tuning-choices.csv")
    assert {row["setting"] for row in chosen if row["method"] in names} == {"trial=0"}
    public = folder / "public"
    assert cli.main(["publish", str(report.parent), "--out", str(public)]) == 0
    assert audit(public, finished).problems == []
    again = campaigns.run(folder, "dataset.holdout=0.3", "methods=[fine_tune,linear_probe]",
                          name="trials")  # fmt: skip
    kept = [row for row in rows(report / "tables/diverged.csv") if row["method"] == "fine_tune"]
    assert {row.pop("alpha") for row in kept} == {""}, "of WiSE-FT, which the second lacks"
    assert rows(again / "tables/diverged.csv") == kept, "it reuses the first campaign's columns"
    trainable["outline"] = set()
    with pytest.raises(DivergedError):
        run_with(folder, "again", "trials: 2\n", "dataset.holdout=0.3", "seed=5")


def test_a_sweep_whose_rate_diverges_shows_the_others(folder, finished):
    """Its last step leaves finite weights that predict NaN. It is an error if no rate is left."""
    words = ("methods=[fine_tune]", "train.epochs=1", "train.batch_size=25", "train.warmup_steps=0")
    report = campaigns.run(folder, *words, "seeds=2", "param_grid={optimizer.lr: [0.02, 1e10]}")
    (row,) = rows(report / "tables/sweep-configurations.csv")
    assert row["optimizer.lr"] == "0.02"
    assert len(rows(report / "tables/diverged.csv")) == len(SETS)
    page = (report / "index.html").read_text()
    text = "FT with optimizer.lr=10000000000 diverged on outline, tinted and few and is left out"
    assert page.count(text) == 1
    public = folder / "public sweep"
    assert cli.main(["publish", str(report.parent), "--out", str(public)]) == 0
    assert audit(public, finished).problems == []
    with pytest.raises(CampaignError, match=r"every training of .* diverged, such as fine_tune"):
        campaigns.run(folder, *words, "param_grid={optimizer.lr: [1e10]}")


def test_a_set_can_be_trained_on_and_not_evaluated(folder, finished):
    """As ImageNet's training set: its columns have no accuracy on the set itself."""
    text = "param_grid: {dataset.fraction: [0.5, 1.0]}\ndownstreams: [tinted]\n"
    words = ("dataset.sets=[outline,few]", "dataset.train_sets=[tinted]")
    report = run_with(folder, "trained", text, *words)
    assert columns(report, "evaluated_on") == {"upstream", "outline", "few"}
    assert columns(report, "downstream") == {"", "tinted"}
    for name in ("ranking", "fractions"):
        assert len(rows(report / f"tables/{name}.csv")) == 2 * len(METHODS)


def test_a_set_that_is_trained_on_and_too_small_to_hold_out_of_is_refused(folder, finished):
    """Its page said that models were judged on images which no training saw."""
    with pytest.raises(ValueError, match=r"holdout=0\.05 holds out no image of upstream, .* train"):
        campaigns.run(folder, "dataset.holdout=0.05")


def test_a_cell_on_the_upstream_set_starts_from_the_model_with_a_head(folder, finished, grid):
    name, words = str(folder / "shapes.yaml"), [f"runs={finished}"]
    cell = plan_cell(name, parsed(words), method="linear_probe", downstream="upstream")
    builder = Builder(cell, grid.device)
    base, probe = builder.base, builder.build()
    assert probe.name != base.name and probe.backbone == base.backbone != base.name


def test_a_setting_of_the_plain_grid_is_found_and_not_made_again(folder, finished, capsys):
    text = "param_grid: {optimizer.lr: [0.02, 0.001]}\ndownstreams: [few]\n"
    text += "evaluate: {split: holdout}\n"  # as in the plain grid, which trains on all datasets
    before = {*(finished / "store/cells").iterdir()}
    report = run_with(folder, "varied", text)
    new = {*(finished / "store/cells").iterdir()} - before
    assert sorted(path.name.split("-")[0] for path in new) == [*METHODS]
    key = itemgetter("method", "alpha", "evaluated_on", "accuracy_pct")
    varied, plain = (rows(path / "accuracy.csv") for path in (report, finished / "shapes/report"))
    of_few = {key(row) for row in plain if row["downstream"] == "few"}
    assert {key(row) for row in varied if row["setting"] == "optimizer.lr=0.02"} == of_few
    assert {key(row) for row in varied if row["setting"] == "optimizer.lr=0.001"} != of_few
    command = ["export", str(folder / "varied.yaml"), f"runs={folder / 'runs'}"]
    command += ["--downstream", "few", "--method", "fine_tune", "--out", str(folder / "exported")]
    assert cli.main(command) == 2
    assert "add --setting, one of optimizer.lr=0.02, optimizer.lr=0.001" in capsys.readouterr().err


def test_variants_and_alphas_stand_side_by_side(folder, finished):
    text = """\
  lwf: {}
  lwf_released: {base: lwf, method: {variant: released}}
  third: {base: wise_ft, method: {alpha: 0.3}}
  soup: {method: {members: [pretrained, fine_tune, lwf]}}
  soup_released: {base: soup, method: {variant: released}}
"""
    report = run_with(folder, "variants", text, "downstreams=[few]")
    table, page = ((report / name).read_text() for name in ("table.txt", "index.html"))
    titles = (
        "LwF ",
        "LwF (released) ",
        "WiSE-FT ",
        "WiSE-FT, alpha 0.3 ",
        "Soup ",
        "Soup (released) ",
    )
    assert all(f"\n{title}" in table for title in titles)
    assert "<title>variants: robustness after fine-tuning" in page, "not the path of its file"
    variants = campaigns.of_report(report)
    evaluations = variants.record.evaluations
    headlines = [row for row in evaluations if row.headline and row.evaluated_on == "few"]
    assert [(row.method, row.variant, row.alpha) for row in headlines] == [
        ("pretrained", "", None), ("fine_tune", "original", None),
        ("linear_probe", "original", None), ("wise_ft", "original", 0.5),
        ("lwf", "original", None), ("lwf_released", "released", None),
        ("third", "original", 0.3), ("soup", "original", None), ("soup_released", "released", None),
    ]  # fmt: skip
    parents = {row.method: set(variants.mix(row)) for row in headlines}
    assert parents["lwf"] < parents["soup"] and parents["lwf_released"] < parents["soup_released"]
    assert parents["lwf"] != parents["lwf_released"]


def test_seeds_of_a_campaign(folder, finished, capsys):
    def accuracies(table: Path, **seed: int) -> pandas.Series:
        keys = ["method", "alpha", "downstream", "evaluated_on", "seed"]
        rows = pandas.read_csv(table, keep_default_na=False).assign(**seed)
        return rows.set_index(keys)["accuracy_pct"].sort_index()

    first, second = (
        accuracies(campaigns.run(folder, f"seed={seed}") / "accuracy.csv", seed=seed)
        for seed in (0, 1)
    )
    assert first.tolist() != second.tolist()
    trained = len(list((finished / "store/cells").iterdir()))
    report = campaigns.run(folder, "seeds=2")
    assert len(list((finished / "store/cells").iterdir())) == trained, "a cell trained again"
    of_both = pandas.concat([first, second.drop("pretrained")]).sort_index()
    pandas.testing.assert_series_equal(accuracies(report / "seeds.csv"), of_both)
    assert "Seed,0 to 1" in (report / "tables/settings.csv").read_text()

    words = ["report", str(folder / "shapes.yaml"), f"runs={finished}", "seeds=2", "--compare"]
    assert cli.main(words) == 0
    assert "training runs like these 2" in capsys.readouterr().out
    assert cli.main([*words, "ewc"]) == 2
    assert "no method 'ewc'; it has fine_tune, linear_probe, wise_ft" in capsys.readouterr().err


CALIBRATED = ["evaluate.calibration=true", "downstreams=[outline]"]


def test_a_campaign_stores_what_temperature_scaling_needs(folder, finished):
    """Temperatures and errors themselves: `measures/test_temperature_scaling.py`."""
    report = campaigns.run(folder, *CALIBRATED)
    behaviours = rows(report / "behaviour.csv")
    after = find_campaign(str(folder / "shapes.yaml"), parsed([f"runs={finished}", *CALIBRATED]))
    tuned = [row for row in after.evaluations if row.method == "fine_tune"]
    of_model = {row.evaluated_on: row.path for row in tuned}
    assert 0 < len(pq.read_table(of_model["outline"])) < 35, "the hold-out alone"
    on_few = SetPredictions()
    temperature = temperature_of([of_model["outline"]])
    stored = on_few.add(of_model["few"], scale=temperature.confidence)
    place = ("fine_tune", "few")
    (row,) = [row for row in behaviours if (row["method"], row["evaluated_on"]) == place]
    expected = scores.scaled_calibration_error(stored, on_few.codes)
    assert float(row["scaled_calibration_error_pct"]) == pytest.approx(expected, abs=1e-5)


def test_a_sweep_of_a_rows_option(folder, grid, tmp_path, monkeypatch, capsys):
    file, runs = tmp_path / "swept.yaml", tmp_path / "runs"
    text = (folder / "shapes.yaml").read_text()
    file.write_text(text + "  ewc: {method: {fisher_images: 10}}\n")
    words = ["sweep", f"recipe={file}/ewc", f"runs={runs}", "--cores", "2"]
    words += ["method.lam=0.1,10", "seed=0,1", "downstream=outline", "train.epochs=1"]
    ran = campaigns.in_this_process(monkeypatch)
    assert cli.main(words) == 0
    assert len(ran) == 3 + 4 and ran[0] == "prepare" and ran[-1] == "report"
    (place,) = runs.glob("swept-ewc-sweep-lam-seed*/report")
    table = place / "tables/sweep-configurations.csv"
    assert f"table   {table}" in capsys.readouterr().out

    data = pandas.read_csv(place / "seeds.csv").query("method == 'ewc'")
    keys = ["setting", "seed", "downstream", "evaluated_on"]
    settings = ["method.lam=0.1", "method.lam=10"]
    index = itertools.product(settings, [0, 1], ["outline"], sorted(["upstream", *SETS]))
    assert sorted(data[keys].itertuples(index=False, name=None)) == list(index)
    assert data.groupby(["setting", "seed"])["accuracy_pct"].sum().nunique() > 1, "nothing varied"

    assert list(pandas.read_csv(table)["method.lam"]) == [0.1, 10.0]
    printed = " ".join((place / "table.txt").read_text().split())
    assert "note: mRI is measured on the test datasets." in printed

    made = {path: path.stat().st_mtime_ns for path in (runs / "store").glob("*/*/done.json")}
    kinds = [path.parts[-3] for path in made]
    assert kinds.count("fisher") == kinds.count("weights") == 1
    assert kinds.count("cells") == 1 + 4, "the first head, and a cell a column"
    del ran[:]
    assert cli.main(words) == 0
    assert ran == [] and "is finished; nothing to do." in capsys.readouterr().out
    table.unlink()
    assert cli.main(words) == 0
    assert ran[-1] == "report" and table.is_file()
    assert made == {p: p.stat().st_mtime_ns for p in (runs / "store").glob("*/*/done.json")}
