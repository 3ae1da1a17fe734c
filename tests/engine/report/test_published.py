"""Published numbers beside ours, also from folders of runs of the benchmark's released code."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas
import pytest

from engine.campaigns.make_plan import make_plan
from engine.errors import RecipeError
from engine.measures.rows import PRE
from engine.measures.tables import rows
from engine.recipe.resolve import load_recipe
from engine.report.published import Published, PublishedModel, read_published, read_released
from engine.report.results import Results
from engine.report.sections import changes, ranking
from helpers import made_results
from helpers.stores import SETS

MODEL, UPSTREAM = "vit_b16_augreg_in21k", "imagenet_val"
FOLDERS = {"imagenet_r": "imagenet-r", "objectnet": "objectnet", "imagenet_c": "imagenet-c"}


def beside(
    published: Published, model: str, sets: list[str], downstreams: list[str], arms: Any, **values
) -> Results:
    """Arms (method, variant, alpha) of 60% on all datasets, where the model has 50%."""
    on = [*sets, values.get("upstream", UPSTREAM)]
    cells = [(model, PRE, "", None, "", "", name, 50) for name in on]
    columns = [(model, *arm, "", down) for arm in arms for down in downstreams]
    cells += [(*column, name, 60) for column in columns for name in on]
    places = {"sets": sets, "downstreams": downstreams, "upstream": UPSTREAM}
    return replace(made_results.of_cells(cells, **places | values), published=published)


def run(
    runs: Path, method: str, dataset: str, accuracies: dict[str, float], trial: int = 1
) -> Path:
    """A run's file, with its names and values as the code writes them."""
    name = f"{method}_{dataset}_vit_base_16_imagenet_sgd_lr_0.001_decay_0_b64E10_warmup_196"
    file = runs / f"{name}_trial_{trial}_no_split" / "results.json"
    file.parent.mkdir(parents=True)
    written = {"imagenet/val": 80.0, "imagenet-r": accuracies["imagenet_r"], "objectnet-1.0": 0.1}
    written["objectnet-v2"] = accuracies["objectnet"]
    for number in range(15):
        for severity in (-2, -1, 0, 1, 2):
            value = accuracies["imagenet_c"] + severity
            written[f"/imagenet-c/noise_{number}/{severity + 3}"] = value
        written[f"/imagenet-c/noise_{number}"] = accuracies["imagenet_c"]
    file.write_text(json.dumps(written))
    return file


def test_its_mri_stands_beside_ours_over_the_columns_of_the_campaign(tmp_path):
    rng = np.random.default_rng(0)
    before = dict(zip(FOLDERS, rng.uniform(30, 60, 3), strict=True))
    run(tmp_path, "PRE", "imagenet-r", before)
    expected = {}
    for method, key in (("", "fine_tune"), ("Soup-PRE-", "wise_ft"), ("ewc", "ewc")):
        ri = []
        for down, folder in FOLDERS.items():
            after = dict(zip(FOLDERS, rng.uniform(30, 60, 3), strict=True))
            run(tmp_path, method, folder, after)
            ri.append(np.mean([after[name] - before[name] for name in FOLDERS if name != down]))
        expected[key] = np.mean(ri)
    published = read_released(tmp_path)
    arms = (
        ("fine_tune", "original", None),
        ("ewc", "released", None),
        ("wise_ft", "released", 0.5),
    )
    for sets, is_known in (([*FOLDERS], True), (["imagenet_r", "imagenet_a"], False)):
        made = beside(published, MODEL, sets, sets, arms)
        found = {row.key: made.published_mri(row) for row in rows(made.arms)}
        assert found == (pytest.approx(expected) if is_known else dict.fromkeys(expected))


def test_what_is_no_folder_of_runs_is_refused_with_the_file(tmp_path):
    with pytest.raises(RecipeError, match="has no folder of a run"):
        read_released(tmp_path)
    accuracies = dict.fromkeys(FOLDERS, 50.0)
    first = run(tmp_path, "ewc", "imagenet-r", accuracies)
    second = run(tmp_path, "ewc", "imagenet-r", accuracies, trial=2)
    with pytest.raises(RecipeError, match=r"trial_1.* and .*trial_2.* keep one"):
        read_released(tmp_path)
    second.rename(second.with_name("other.json"))
    unknown = run(tmp_path / "unknown", "ewc", "imagenet-r", accuracies).parent
    for weights in ("sam", "miil"):
        copy = unknown.with_name(unknown.name.replace("imagenet_sgd", f"{weights}_sgd"))
        shutil.copytree(unknown, copy)
    shutil.rmtree(unknown)
    with pytest.raises(RecipeError, match="or none of a known model"):
        read_released(tmp_path / "unknown")
    shutil.rmtree(tmp_path / "unknown")
    first.write_text('{"imagenet-r": "high"}')
    with pytest.raises(RecipeError, match=re.escape(str(first))):
        read_released(tmp_path)


def test_published_numbers_are_known_by_our_names_of_models_and_sets():
    places = {*load_recipe("imagenet_rib/fine_tune").dataset.evaluated_sets}
    slides = read_published()
    for entry in slides.models.values():
        if entry.timm is None:
            continue
        numbers, ours = slides.of(entry.recipe), entry.after("imagenet_val", "fine_tune")
        assert numbers.before["imagenet_a"] == entry.before["IN-A"]
        assert numbers.after("imagenet_val", "fine_tune")["imagenet_val"] == ours["IN-1K"]
        assert set(numbers.before) == places
    assert slides.of("lite0") == PublishedModel()


def test_a_users_file_of_published_numbers_gives_its_last_version(tmp_path):
    file = tmp_path / "published.yaml"
    text = "first: {source: v1, sets: {}, models: {}}\n"
    file.write_text(text + "v3: {source: v3, sets: {a: A}, models: {m: {before: {A: 1}}}}\n")
    assert read_published(file).source == "v3"
    assert read_published(file).of("m").before == {"a": 1.0}
    for wrong, message in (
        (text.replace("sets", "set"), "unknown field `set`"),
        ("{}", "no version"),
    ):
        file.write_text(wrong)
        with pytest.raises(RecipeError, match=f"^{file}.*{message}"):
            read_published(file)


def test_published_changes_stand_beside_plain_fine_tuning_of_their_model():
    arms = [(method, "original", None) for method in ("fine_tune", "ewc")]
    made = beside(read_published(), "OpenAI", ["imagenet_a", "imagenet_r"], [UPSTREAM], arms)
    data = changes.tuned_outside(made).tables[0].data.set_index(["method", "evaluated_on"])
    change = data["published_change_pts"]
    assert change["FT", "imagenet_a"] == pytest.approx(-33.4) and change["ewc"].isna().all()


def test_published_methods_stand_beside_those_fine_tuned_on_the_training_set():
    """Every number of the second benchmark's version is a published accuracy of a row."""
    published = read_published(benchmark="imagenet_1k")
    (model,) = published.models
    sets = [name for name in published.sets if name != UPSTREAM]
    tuned = published.models[model].fine_tuned["imagenet_train"]
    names = {name: name for name in (*tuned, "ewc")}
    arms = [(name, "original", None) for name in names]
    made = beside(published, model, sets, ["imagenet_train"], arms, methods=names)
    data = changes.tuned_outside(made).tables[0].data
    shown = data.assign(method=data["method"].str.split(",").str[0])
    shown = shown.set_index(["method", "evaluated_on"])["published_accuracy_pct"].dropna()
    expected = {
        (method, ours): of[theirs]
        for method, of in tuned.items()
        for ours, theirs in published.sets.items()
        if theirs in of
    }
    assert shown.to_dict() == expected and len(expected) == 5 * 6 + 3 * 5
    before = published.of(model).before
    change = [published.of(model).after("imagenet_train", "flyp")[s] - before[s] for s in sets]
    (row,) = made.ranked().query("key == 'flyp'").itertuples()
    assert made.published_mri(row) == pytest.approx(sum(change) / len(change))
    assert read_published().source.startswith("ImageNet-RIB slides")
    assert read_published(benchmark="emoji").models == {}, "not those of another benchmark"


def test_the_clip_campaigns_are_planned_with_every_published_column():
    published = read_published(benchmark="imagenet_1k")
    (entry,) = published.models.values()
    plan = make_plan("imagenet_rib_taori", ())
    dataset, model = plan.recipe.dataset, plan.recipe.model
    assert (dataset.name, model.name, model.crop) == ("imagenet_1k", entry.recipe, 1.0)
    assert {*published.sets} == {*dataset.evaluated_sets}
    (column,) = plan.columns
    keys = {cell.recipe.method.name for cell in plan.cells(column)}
    assert (column.downstream, {*entry.fine_tuned[column.downstream]} - keys) == (
        "imagenet_train",
        set(),
    )
    shots = make_plan("imagenet_rib_clip_shots", ())
    assert [column.settings["dataset.shots"] for column in shots.columns] == [1, 2, 4, 8, 16]
    of_flyp = [cell.recipe for cell in shots.cells(shots.columns[0])][-1]
    assert (of_flyp.method.name, of_flyp.dataset.shots, of_flyp.train.batch_size) == ("flyp", 1, 64)
    assert (of_flyp.optimizer.lr, of_flyp.model.crop) == (1e-5, 1.0)


def ranked(made: Results) -> pandas.DataFrame:
    return ranking.methods(made).tables[1].data.set_index("method")


def test_published_numbers_stand_beside_those_of_their_model_and_variant_only():
    slides, sets, clip = read_published(), [*SETS], "LAION-2B"
    arms = [("fine_tune", "original", None), ("lwf", "original", None), ("lwf", "released", None)]
    made = beside(slides, clip, sets, sets, arms, upstream="up")
    assert "published_mRI_pts" not in ranked(made)  # ours is over three sets
    slides = msgspec.structs.replace(slides, sets=dict.fromkeys([*SETS, "up"], ""))
    numbers = slides.models[clip].mri
    for model in (clip, "vit_base_patch16_clip_224.laion2b_ft_in1k"):
        shown = ranked(beside(slides, model, sets, sets, arms, upstream="up"))
        shown = shown["published_mRI_pts"].dropna()
        assert dict(shown) == {"FT": numbers["fine_tune"], "LwF (released)": numbers["lwf"]}
    assert "published_mRI_pts" not in ranked(
        beside(slides, "other", sets, sets, arms, upstream="up")
    )


def test_fine_tuning_upstream_has_a_published_mri_over_the_sets_of_the_campaign():
    names = {"a": "IN-V2", "b": "IN-A", "c": "IN-C", "up": "IN-1K"}
    slides = read_published()
    of = slides.models["LAION-2B"]
    of = msgspec.structs.replace(of, fine_tuned={"up": of.fine_tuned[UPSTREAM]})
    slides = msgspec.structs.replace(slides, sets=names, models={"LAION-2B": of})
    arms = [(method, "original", None) for method in ("fine_tune", "lwf")]
    after = of.fine_tuned["up"]["fine_tune"]
    for sets in (["a", "b"], ["a", "b", "c"]):
        made = beside(slides, "LAION-2B", sets, ["up"], arms, upstream="up")
        changes = [after[names[s]] - of.before[names[s]] for s in sets]
        shown = ranked(made)["published_mRI_pts"]
        assert dict(shown.dropna()) == {"FT": pytest.approx(np.mean(changes))}
        held_out = beside(slides, "LAION-2B", sets, ["up"], arms, upstream="up", holdout=True)
        assert "published_mRI_pts" not in ranked(held_out)
