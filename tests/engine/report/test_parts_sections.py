"""The sections on shots, portions and the upstream set: their numbers, claims and figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import made_results
import numpy as np
import pytest
import stores
import yaml

from engine import recipe
from engine.measures.rows import PRE, Evaluation
from engine.report.results import Results, of_grid, published
from engine.report.sections import changes, curves, ranking

N = 400
PORTION = "dataset.portion"
METHODS = {"fine_tune": "FT", "ewc": "EWC"}


def varied(folder: Path, settings: dict[str, float]) -> list[Evaluation]:
    """FT and EWC in each setting; the share of images right after fine-tuning is the setting's."""
    rng = np.random.default_rng(3)

    def of_share(share: float) -> stores.Hits:
        def hits(method: str, downstream: str, on: str) -> np.ndarray:
            level = 0.5 if method == PRE else 0.95 if downstream == on else share
            return rng.random(N) < level

        return hits

    hits = {setting: of_share(share) for setting, share in settings.items()}
    return stores.in_settings(folder, hits, [*METHODS])


def results(rows: list[Evaluation], **values: Any) -> Results:
    return made_results.of_evaluations(rows, **{"methods": METHODS} | values)


def test_the_heading_has_the_smallest_value_with_its_interval(tmp_path: Path):
    shares = {"dataset.shots=0": 0.9, "dataset.shots=1": 0.2}
    section = curves.shots(results(varied(tmp_path, shares)))
    assert section is not None
    row = section.tables[0].data.iloc[0]
    assert row["method"] == "FT" and row["value"] == "1"
    assert row["mRI_pts"] == pytest.approx(-30, abs=6)
    assert row["mRI_low"] < row["mRI_pts"] < row["mRI_high"]
    assert row["on_downstream_set_pct"] == pytest.approx(95, abs=3)
    mean, low, high = (f"−{-row[name]:.1f}" for name in ("mRI_pts", "mRI_low", "mRI_high"))
    assert section.heading == (
        f"With K = 1, fine-tuning has an mRI of {mean} points (95% interval {low} to {high})"
    )


def test_figures_draw_all_after_the_largest_number_and_name_methods_once(tmp_path: Path):
    settings = {f"dataset.shots={k}": 0.5 for k in (0, 1, 4)}
    section = curves.shots(results(varied(tmp_path, settings)))
    assert section is not None
    (mri,) = section.figures
    assert mri.name == "shots-mri-lite0"
    assert list(mri.data["x"]) == [1, 4, 8] * 2
    assert list(mri.data["value"]) == ["1", "4", "all"] * 2
    assert set(mri.data["method"]) == {"FT", "EWC"}
    axis = mri.spec["encoding"]["x"]
    assert axis["scale"]["type"] == "log" and axis["axis"]["values"] == [1, 4, 8]
    assert "datum.value === 8.0 ? 'all'" in axis["axis"]["labelExpr"]


def test_published_numbers_are_known_by_our_names_of_models_and_sets():
    places = {*recipe.load("imagenet_rib/fine_tune").dataset.places}
    for entry in recipe.published()["models"].values():
        if entry["timm"] is None:
            continue
        model_recipe = yaml.safe_load(
            (recipe.ROOT / "models" / f"{entry['recipe']}.yaml").read_text()
        )
        assert model_recipe["arch"] == entry["timm"]
        numbers = published(entry["recipe"])
        assert numbers["before"]["imagenet_a"] == entry["before"]["IN-A"]
        assert numbers["fine_tuned_on_val"]["imagenet_val"] == entry["fine_tuned_on_val"]["IN-1K"]
        assert set(numbers["before"]) == places
    assert published("lite0") == {}


def tuned_upstream(folder: Path, level: float, **values: Any) -> Results:
    """A grid of three sets, and FT and EWC on the upstream set, which is right `level` of the time
    on the sets and always on the upstream set."""
    rng = np.random.default_rng(4)
    rows = varied(folder, {"": 0.5})
    for number, on in enumerate((*stores.SETS, "up")):
        for method in METHODS:
            hits = rng.random(N) < (1.0 if on == "up" else level)
            path = folder / f"{method}-{number}.parquet"
            stores.pq.write_table(stores.table(hits), path)
            rows.append(stores.cell(path, method, "up", on))
    return results(rows, **values)


def test_fine_tuning_upstream_shows_each_set_and_the_mean_change(tmp_path: Path):
    section = changes.tuned_upstream(tuned_upstream(tmp_path, 0.3))
    assert section is not None and section.heading.startswith(
        "Fine-tuned on up, accuracy changes by −"
    )
    data = section.tables[0].data
    ft = data[data["method"] == "FT"].set_index("evaluated_on")
    assert ft.index[0] == "up" and set(ft.index) == {"up", *stores.SETS}
    assert ft.loc["up", "accuracy_pct"] == 100
    assert (ft["change_pts"] == ft["accuracy_pct"] - ft["before_pct"]).all()
    assert "published_change_pts" not in data
    assert len(section.figures) == 1 and len(section.figures[0].data) == 2 * 4


def test_published_changes_stand_beside_plain_fine_tuning_of_their_model():
    sets, upstream = ["imagenet_a", "imagenet_r"], "imagenet_val"
    cells: list[tuple] = [("OpenAI", PRE, "", None, "", "", on, 50) for on in (*sets, upstream)]
    for method in METHODS:
        arm = "OpenAI", method, "canonical", None, ""
        cells += [(*arm, upstream, on, 55) for on in (*sets, upstream)]
    grid = stores.synthetic(cells, sets, upstream, [upstream])
    record = made_results.record(
        [], sets=sets, downstreams=[upstream], upstream=upstream, methods=METHODS
    )
    section = changes.tuned_upstream(of_grid(record, grid))
    assert section is not None
    data = section.tables[0].data.set_index(["method", "evaluated_on"])["published_change_pts"]
    assert data["FT", "imagenet_a"] == pytest.approx(-33.4) and data["EWC"].isna().all()


def test_the_pre_trained_model_stands_at_its_accuracies_on_the_same_sets(tmp_path: Path):
    """Where the set fine-tuned on is none of the others, the two accuracies are of unlike sets."""
    tuned = tuned_upstream(tmp_path, 0.3, downstreams=["up"])
    section = ranking.trade_off(tuned)
    assert section is not None
    points = section.figures[0].data.set_index("label")
    before = tuned.before("lite0")
    assert points.loc["pre-trained", "on_downstream_set_pct"] == before["up"]
    mean = np.mean([before[name] for name in stores.SETS])
    assert points.loc["pre-trained", "on_other_sets_pct"] == pytest.approx(mean)


def test_curves_are_in_order_with_one_for_each_of_what_else_varies(tmp_path: Path):
    settings = [f"dataset.portion={p},train.epochs={e}" for e in (1, 3) for p in (1.0, 0.1)]
    made = results(varied(tmp_path, dict.fromkeys(settings, 0.5)))
    assert curves.points(made, "dataset.shots").empty
    points = curves.points(made, PORTION)
    fine_tune = points[points["key"] == "fine_tune"]
    assert list(zip(fine_tune["rest"], fine_tune["value"], strict=True)) == [
        ("train.epochs=1", 0.1),
        ("train.epochs=1", 1.0),
        ("train.epochs=3", 0.1),
        ("train.epochs=3", 1.0),
    ]
    rest = ("epochs=1", "epochs=3")
    assert set(points["method"]) == {f"{method}, {x}" for method in ("FT", "EWC") for x in rest}
