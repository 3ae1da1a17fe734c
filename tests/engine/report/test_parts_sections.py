"""The sections on shots, portions and the upstream set: their numbers, claims and figures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import stores
import yaml

from engine import recipe
from engine.grid.record import Record
from engine.measures import metrics
from engine.measures.rows import PRE, Evaluation
from engine.measures.standings import standings
from engine.report import frames, tables
from engine.report.sections import portions, shots, trade_off, upstream

N = 400
RECORD = Record(
    "c", [*stores.SETS], [*stores.SETS], "up", {"fine_tune": "FT", "ewc": "EWC"}, {}, [], "",
    False, None, {}, False, [], {},
)  # fmt: skip


def results(evaluations: list[Evaluation], record: Record = RECORD) -> tables.Results:
    return tables._results(record, evaluations, None)


def varied(folder: Path, settings: dict[str, float], names=stores.SETS) -> list[Evaluation]:
    """FT and EWC in each setting; the share of images right after fine-tuning is the setting's."""
    rng = np.random.default_rng(3)
    rows: list[Evaluation] = []
    for number, (setting, share) in enumerate(settings.items()):

        def hits(method: str, downstream: str, on: str, share: float = share) -> np.ndarray:
            level = 0.5 if method == PRE else 0.95 if downstream == on else share
            return rng.random(N) < level

        for row in stores.grid(folder / str(number), hits, ("fine_tune", "ewc"), names):
            if row.method != PRE:
                rows.append(replace(row, setting=setting))
            elif not number:
                rows.append(row)
    return rows


@pytest.mark.parametrize(
    ("share", "holds", "where"),
    [(0.2, "true", "below 0"), (0.5, "false", "not surely below 0"), (0.8, "false", "above 0")],
)
def test_the_claim_is_judged_by_the_interval(tmp_path: Path, share, holds, where):
    section = shots.section(
        results(varied(tmp_path, {"dataset.shots=0": 0.9, "dataset.shots=1": share}))
    )
    assert section is not None
    (claim,) = section.statements
    assert f": {holds} for lite0 in this run. With K = 1, fine-tuning has an mRI of" in claim
    assert f"which is {where};" in claim
    row = section.tables[0].data.iloc[0]
    assert row["method"] == "FT" and row["value"] == "1"
    assert row["mRI"] == pytest.approx(100 * (share - 0.5), abs=6)
    assert row["mRI_low"] < row["mRI"] < row["mRI_high"]
    assert row["on_downstream_set"] == pytest.approx(95, abs=3)


def test_figures_draw_all_after_the_largest_number_and_name_methods_once(tmp_path: Path):
    settings = {f"dataset.shots={k}": 0.5 for k in (0, 1, 4)}
    section = shots.section(results(varied(tmp_path, settings)))
    assert section is not None
    mri, downstream = section.figures
    assert mri.name == "shots-mri-lite0" and downstream.name == "shots-on-downstream-set-lite0"
    assert list(mri.data["x"]) == [1, 4, 8] * 2
    assert list(mri.data["value"]) == ["1", "4", "all"] * 2
    assert set(mri.data["method"]) == {"FT", "EWC"}
    axis = mri.spec["encoding"]["x"]
    assert axis["scale"]["type"] == "log" and axis["axis"]["values"] == [1, 4, 8]
    assert axis["axis"]["labelExpr"] == "datum.value === 8 ? 'all' : datum.label"


def test_a_campaign_that_varies_nothing_has_none_of_the_sections(tmp_path: Path):
    plain = results(varied(tmp_path, {"": 0.5}))
    assert [part.section(plain) for part in (shots, portions, upstream)] == [None] * 3


def test_portions_have_numbers_alone(tmp_path: Path):
    settings = {f"dataset.portion={p}": 0.3 for p in (1.0, 0.01)}
    section = portions.section(results(varied(tmp_path, settings)))
    assert section is not None and "On a portion of 0.01" in section.statements[0]
    assert "true" in section.statements[0]
    spec = section.figures[0].spec["encoding"]["x"]["axis"]
    assert spec["values"] == [0.01, 1] and "labelExpr" not in spec


def model_named(name: str, before: dict[str, float]):
    rows = [metrics.Accuracy(name, PRE, "", None, "", "", on, 1, x) for on, x in before.items()]
    (model,) = standings(rows, [], sets=list(before)[:2], upstream="imagenet_val", methods={})
    return model


def test_published_numbers_are_known_by_our_names_of_models_and_sets():
    before = {"imagenet_v2": 1.0, "imagenet_a": 1.0, "imagenet_val": 1.0}
    places = {*recipe.load("imagenet_rib/fine_tune").dataset.places}
    for entry in recipe.published()["models"].values():
        if entry["timm"] is None:
            continue
        model_recipe = yaml.safe_load(
            (recipe.ROOT / "models" / f"{entry['recipe']}.yaml").read_text()
        )
        assert model_recipe["arch"] == entry["timm"]
        published = frames.reference(model_named(entry["recipe"], before))
        assert published["before"]["imagenet_a"] == entry["before"]["IN-A"]
        assert published["fine_tuned_on_val"]["imagenet_val"] == entry["fine_tuned_on_val"]["IN-1K"]
        assert set(published["before"]) == places
    assert frames.reference(model_named("lite0", before)) == {}


def tuned_upstream(folder: Path, record: Record, level: float) -> tables.Results:
    """A grid of three sets, and FT and EWC on the upstream set, which is right `level` of the time
    on the sets and always on the upstream set."""
    rng = np.random.default_rng(4)
    rows = varied(folder, {"": 0.5})
    for number, on in enumerate((*record.sets, record.upstream)):
        for method in ("fine_tune", "ewc"):
            hits = rng.random(N) < (1.0 if on == record.upstream else level)
            path = folder / f"{method}-{number}.parquet"
            stores.pq.write_table(stores.table(hits), path)
            rows.append(stores.cell(path, method, record.upstream, on))
    return results(rows, record)


def test_fine_tuning_upstream_shows_each_set_and_the_mean_change(tmp_path: Path):
    section = upstream.section(tuned_upstream(tmp_path, RECORD, 0.3))
    assert section is not None and section.heading == "Fine-tuned on up"
    data = section.tables[0].data
    ft = data[data["method"] == "FT"].set_index("evaluated_on")
    assert ft.index[0] == "up" and set(ft.index) == {"up", *stores.SETS}
    assert ft.loc["up", "accuracy"] == 100
    assert (ft["change"] == ft["accuracy"] - ft["before"]).all()
    (statement,) = section.statements
    mean = ft.loc[list(stores.SETS), "change"].mean()
    assert f"on the 3 other sets by −{abs(mean):.1f}" in statement
    assert "by −23.1 (LAION-2B) to +3.4 (IN-1K+AugReg), by pre-training" in statement
    assert "published_change" not in data
    assert len(section.figures) == 1 and len(section.figures[0].data) == 2 * 4


def test_the_pre_trained_model_stands_at_its_accuracies_on_the_same_sets(tmp_path: Path):
    """Where the set fine-tuned on is none of the others, the two accuracies are of unlike sets."""
    tuned = tuned_upstream(tmp_path, replace(RECORD, downstreams=["up"]), 0.3)
    section = trade_off.section(tuned)
    assert section is not None
    points = section.figures[0].data.set_index("label")
    (model,) = tuned.models
    assert points.loc["pre-trained", "on_downstream_set"] == model.before["up"]
    mean = np.mean([model.before[name] for name in stores.SETS])
    assert points.loc["pre-trained", "on_other_sets"] == pytest.approx(mean)
