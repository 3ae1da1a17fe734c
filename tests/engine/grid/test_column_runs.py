"""Campaigns of other columns, seeds and measures, from training to the report."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import campaigns
import pyarrow.parquet as pq
import pytest
from campaigns import rows

from engine import cli
from engine.grid import cell_plan, record
from engine.grid.build import Builder
from engine.measures import behaviour, predictions
from engine.measures.predictions import SetPredictions
from engine.store import cells

pytestmark = pytest.mark.slow
SETS, METHODS = campaigns.SETS, campaigns.METHODS


def written(folder: Path, name: str, text: str) -> None:
    whole = (folder / "shapes.yaml").read_text()
    (folder / f"{name}.yaml").write_text(whole + text)


def check_mri(report: Path, sets: Sequence[str]) -> None:
    """Each row's mRI is its mean change over these sets."""
    accuracies = {
        (row["method"], row["alpha"], row["setting"], row["evaluated_on"]): float(row["accuracy"])
        for row in rows(report / "accuracy.csv")
    }
    for row in rows(report / "mri.csv"):
        arm = row["method"], row["alpha"], row["setting"]
        changes = [accuracies[*arm, on] - accuracies["pre", "", "", on] for on in sets]
        assert float(row["mri"]) == pytest.approx(fmean(changes), abs=2e-6)
    assert f"on the {len(sets)} sets, in points" in (report / "table.txt").read_text()


def columns(report: Path, key: str) -> set[str]:
    return {row[key] for row in rows(report / "accuracy.csv")}


def test_a_campaign_that_fine_tunes_on_the_upstream_set_and_is_run_again(
    folder, finished, monkeypatch
):
    """It finds its cells. With CKA, its record has the blocks of every headline model."""
    written(folder, "upstream", "downstreams: [upstream]\n")
    words = ("evaluate.cka=6", "evaluate.batch_size=8")
    report = campaigns.run(folder, *words, name="upstream")
    assert columns(report, "downstream") == {"", "upstream"}
    check_mri(report, SETS)
    names = [str(folder / "upstream.yaml"), [f"runs={finished}", *words]]
    blocks = record.find(*names).record.cka
    assert blocks is not None and 'id="cka-heading"' in (report / "index.html").read_text()
    assert {(row["method"], row["evaluated_on"]) for row in blocks} == {
        *itertools.product(METHODS, ("upstream", *SETS))
    }
    assert len(blocks) == len(METHODS) * 4 and {row["alpha"] for row in blocks} == {None, 0.5}
    for row in blocks:
        assert [*row["blocks"]] == [f"blocks.{k}" for k in range(6)]
        if row["method"] == "linear_probe":
            assert [*row["blocks"].values()] == pytest.approx([1.0] * 6)
    first = {path.name: path.read_bytes() for path in report.iterdir() if path.is_file()}
    monkeypatch.setattr("engine.training.loop.fit", lambda *_: pytest.fail("trained again"))
    assert campaigns.run(folder, *words, name="upstream") == report
    assert {path.name: path.read_bytes() for path in report.iterdir() if path.is_file()} == first


def test_a_set_can_be_trained_on_and_not_evaluated(folder, finished):
    """As ImageNet's training set: its columns have an RI, and no accuracy on the set itself."""
    written(folder, "trained", "vary: {dataset.portion: [0.5, 1.0]}\ndownstreams: [tinted]\n")
    words = ("dataset.sets=[outline,few]", "dataset.train_sets=[tinted]")
    report = campaigns.run(folder, *words, name="trained")
    assert columns(report, "evaluated_on") == {"upstream", "outline", "few"}
    assert columns(report, "downstream") == {"", "tinted"}
    check_mri(report, ("outline", "few"))
    assert "tinted" in (report / "index.html").read_text()
    ranking, portions = (rows(report / f"tables/{name}.csv") for name in ("ranking", "portions"))
    assert len(ranking) == len(portions) == 2 * len(METHODS)
    assert not [key for key in ranking[0] | portions[0] if key.startswith("on_downstream_set")]
    assert all(row["on_other_sets_pct"] for row in ranking)
    assert (report / "figures/portions-mri-tiny.csv").is_file()


def test_a_cell_on_the_upstream_set_starts_from_the_model_with_a_head(folder, grid):
    """The first head starts from the backbone, as in every other column."""
    name, words = str(folder / "shapes.yaml"), (f"runs={folder / 'runs'}",)
    on_outline, on_upstream = (
        Builder(cell_plan.resolve(name, words, method="linear_probe", downstream=on), grid.device)
        for on in ("outline", "upstream")
    )
    assert on_upstream.base.name == on_outline.base.name
    assert on_upstream.base.artifact.kind == "cells"
    probe = on_upstream.build()
    assert probe.name != on_upstream.base.name and probe.backbone == on_upstream.base.backbone
    (parent,) = {on_upstream.base.backbone}
    assert cells.find(on_upstream.store, parent).artifact.kind == "weights"


def test_settings_vary_and_what_they_share_is_made_once(folder, finished, capsys):
    text = "vary: {optimizer.lr: [0.02, 0.001]}\ndownstreams: [few]\n"
    written(folder, "varied", text)
    store = finished / "store/cells"  # of the plain grid, whose learning rate is 0.02
    before = set(store.iterdir())
    report = campaigns.run(folder, name="varied")
    new = set(store.iterdir()) - before
    accuracy = rows(report / "accuracy.csv")
    plain = rows(folder / "runs/shapes/report/accuracy.csv")
    settings = {row["setting"] for row in accuracy if row["method"] != "pre"}
    assert settings == {"optimizer.lr=0.02", "optimizer.lr=0.001"}
    assert sorted(path.name.split("-")[0] for path in new) == [*METHODS]

    def of(table: list[dict[str, str]], key: str, value: str) -> set[tuple[str, ...]]:
        """The numbers of the rows with this value, and of the pre-trained model."""
        columns = ("method", "alpha", "evaluated_on", "accuracy")
        rows_of = [row for row in table if row[key] == value or row["method"] == "pre"]
        return {tuple(row[name] for name in columns) for row in rows_of}

    in_plain = of(plain, "downstream", "few")
    of_setting = {setting: of(accuracy, "setting", setting) for setting in settings}
    assert of_setting["optimizer.lr=0.02"] == in_plain != of_setting["optimizer.lr=0.001"]
    command = ["export", str(folder / "varied.yaml"), f"runs={folder / 'runs'}", "--set", "few"]
    assert cli.main([*command, "--method", "fine_tune", "--out", str(folder / "exported")]) == 2
    assert "add --setting, one of optimizer.lr=0.02, optimizer.lr=0.001" in capsys.readouterr().err
    text = (report / "table.txt").read_text()
    assert all(f"{title}, lr={lr}" in text for title in ("FT", "LP") for lr in ("0.02", "0.001"))


def test_variants_and_alphas_stand_side_by_side(folder, finished):
    written(
        folder,
        "variants",
        "  lwf: {}\n"
        "  lwf_paper: {base: lwf, method: {variant: paper}}\n"
        "  third: {base: wise_ft, method: {alpha: 0.3}}\n"
        "  soup: {method: {members: [pre, fine_tune, lwf]}}\n"
        "  soup_paper: {base: soup, method: {variant: paper}}\n",
    )
    report = campaigns.run(folder, "downstreams=[few]", name="variants")
    text, page = (report / name for name in ("table.txt", "index.html"))
    titles = ("LwF ", "LwF (paper) ", "WiSE-FT ", "WiSE-FT, alpha 0.3 ", "Soup ", "Soup (paper) ")
    assert all(f"\n{title}" in text.read_text() for title in titles)
    assert "<title>variants: what fine-tuning does" in page.read_text(), "not the path of its file"
    (file,) = (folder / "runs").glob("variants*/plans/*/evaluations.json")
    variants = record.read(file.parent)
    headlines = [row for row in variants.record.evaluations if row.headline]
    assert {(row.method, row.variant, row.alpha) for row in headlines} == {
        ("pre", "", None), ("fine_tune", "canonical", None), ("linear_probe", "canonical", None),
        ("wise_ft", "canonical", 0.5), ("lwf", "canonical", None), ("lwf_paper", "paper", None),
        ("third", "canonical", 0.3), ("soup", "canonical", None), ("soup_paper", "paper", None),
    }  # fmt: skip
    parents = {row.method: set(variants.mix(row)) for row in headlines if row.evaluated_on == "few"}
    assert parents["lwf"] < parents["soup"] and parents["lwf_paper"] < parents["soup_paper"]
    assert parents["lwf"] != parents["lwf_paper"]


KEY = ("method", "alpha", "downstream", "evaluated_on")


def test_seeds_of_a_campaign(folder, finished, capsys):
    alone = {}
    for seed in ("0", "1"):
        report = campaigns.run(folder, f"seed={seed}")
        assert not (report / "seeds.csv").exists()
        alone[seed] = {
            tuple(r[k] for k in KEY): r["accuracy"] for r in rows(report / "accuracy.csv")
        }
    assert alone["0"] != alone["1"]
    trained = len(list((finished / "store/cells").iterdir()))

    report = campaigns.run(folder, "seeds=2")
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
    assert "training runs like these 2" in printed
    assert "corrected (Holm) for 3 comparisons" in printed
    tables = [line for line in printed.splitlines() if not line.startswith("report  ")]  # a path
    assert max(map(len, tables)) <= 100
    assert cli.main([*words, "ewc", f"runs={finished}", "seeds=2"]) == 2
    assert "no method 'ewc'; it has fine_tune, linear_probe, wise_ft" in capsys.readouterr().err


CALIBRATED = ["evaluate.calibration=true", "downstreams=[outline]"]


def test_a_campaign_stores_what_temperature_scaling_needs(folder, finished):
    """Temperatures and errors themselves: `measures/test_calibration.py`."""
    name = "scaled_calibration_error"
    report = campaigns.run(folder, *CALIBRATED)
    behaviours = rows(report / "behaviour.csv")
    assert all(row[name] for row in behaviours)
    shown = rows(report / "tables" / "explorer.csv")[0]
    assert shown[f"{name}_pct"]
    after = record.find(str(folder / "shapes.yaml"), [f"runs={finished}", *CALIBRATED])
    tuned = [row for row in after.evaluations if row.method == "fine_tune"]
    of_model = {row.evaluated_on: row.path for row in tuned}
    assert 0 < len(pq.read_table(of_model["outline"])) < 35, "the hold-out alone"
    on_few = SetPredictions()
    temperature = predictions.temperature_of(of_model["outline"])
    stored = on_few.add(of_model["few"], temperature=temperature)
    of_few = [row for row in behaviours if row["evaluated_on"] == "few"]
    (row,) = [row for row in of_few if row["method"] == "fine_tune"]
    expected = behaviour.scaled_calibration_error(stored, on_few.codes)
    assert float(row[name]) == pytest.approx(expected, abs=1e-5)
