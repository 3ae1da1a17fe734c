"""The sections on shots, fractions and the upstream set: their numbers, claims and figures."""

import dataclasses

import pytest

from engine.errors import RecipeError
from engine.measures.rows import PRE
from engine.recipe.resolve import load_recipe
from engine.report.published import PublishedModel, read_published
from engine.report.results import Results
from engine.report.sections import changes, ranking, varied
from helpers.made_results import of_arms, of_cells
from helpers.stores import SETS

METHODS = {"fine_tune": "FT", "ewc": "EWC"}


def in_settings(settings: dict[str, float]) -> Results:
    """FT and EWC in each setting, whose accuracy elsewhere is the setting's."""
    arms = {
        (method, None, setting): (95.0, of)
        for setting, of in settings.items()
        for method in METHODS
    }
    return of_arms(arms, methods=METHODS)


def test_the_heading_has_the_range_of_fine_tuning():
    section = varied.section(in_settings({"dataset.shots=0": 90, "dataset.shots=1": 20}))
    row = section.tables[0].data.iloc[0]
    assert row["method"] == "FT" and row["value"] == "1"
    assert row["mRI_low"] < row["mRI_pts"] < row["mRI_high"]
    assert row["on_downstream_dataset_pct"] == pytest.approx(95)
    assert section.heading == (
        "By images per class, fine-tuning's mRI ranges from −30.0 (1) to +40.0 (all)"
    )


def test_figures_draw_all_after_the_largest_number_and_name_methods_once():
    section = varied.section(in_settings({f"dataset.shots={k}": 50 for k in (0, 1, 4)}))
    (mri,) = section.figures
    assert mri.name == "shots-lite0"
    assert list(mri.data["x"]) == [1, 4, 8] * 2
    assert list(mri.data["value"]) == ["1", "4", "all"] * 2
    assert set(mri.data["method"]) == {"FT", "EWC"}
    axis = mri.spec["encoding"]["x"]
    assert axis["scale"]["type"] == "log" and axis["axis"]["values"] == [1, 4, 8]
    assert "datum.value === 8.0 ? 'all'" in axis["axis"]["labelExpr"]


def test_curves_are_in_order_with_one_for_each_of_what_else_varies():
    settings = [f"dataset.fraction={p},train.epochs={e}" for e in (1, 3) for p in (1.0, 0.1)]
    made = in_settings(dict.fromkeys(settings, 50))
    assert varied.points(made, "dataset.shots").empty
    points = varied.points(made, "dataset.fraction")
    fine_tune = points[points["key"] == "fine_tune"]
    expected = [(f"train.epochs={e}", fraction) for e in (1, 3) for fraction in (0.1, 1.0)]
    assert list(zip(fine_tune["rest"], fine_tune["x"], strict=True)) == expected
    rest = ("epochs 1", "epochs 3")
    assert set(points["method"]) == {f"{method}, {x}" for method in ("FT", "EWC") for x in rest}


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


def on_upstream(
    accuracy: float, sets=SETS, upstream: str = "up", model: str = "lite0"
) -> list[tuple]:
    """FT and EWC on the upstream set: right on all of it, and on a share of each set."""
    return [
        (model, method, "canonical", None, "", upstream, on, 100 if on == upstream else accuracy)
        for method in METHODS
        for on in (*sets, upstream)
    ]


def test_fine_tuning_upstream_shows_each_set_and_the_mean_change():
    arms = {(method, None, ""): (95, 50) for method in METHODS}
    section = changes.tuned_outside(of_arms(arms, more=on_upstream(30), methods=METHODS))
    assert section.heading.startswith("After fine-tuning on up, accuracy changes by −")
    data = section.tables[0].data
    ft = data[data["method"] == "FT"].set_index("evaluated_on")
    assert ft.index[0] == "up" and set(ft.index) == {"up", *SETS}
    assert ft.loc["up", "accuracy_pct"] == 100
    assert (ft["change_pts"] == ft["accuracy_pct"] - ft["before_pct"]).all()
    assert "published_change_pts" not in data
    assert len(section.figures) == 1 and len(section.figures[0].data) == 2 * 4


def test_published_changes_stand_beside_plain_fine_tuning_of_their_model():
    sets, upstream = ["imagenet_a", "imagenet_r"], "imagenet_val"
    cells = [("OpenAI", PRE, "", None, "", "", on, 50) for on in (*sets, upstream)]
    cells += on_upstream(55, sets, upstream, "OpenAI")
    places = {"sets": sets, "downstreams": [upstream], "upstream": upstream}
    section = changes.tuned_outside(of_cells(cells, methods=METHODS, **places))
    data = section.tables[0].data.set_index(["method", "evaluated_on"])["published_change_pts"]
    assert data["FT", "imagenet_a"] == pytest.approx(-33.4) and data["EWC"].isna().all()


def test_published_methods_stand_beside_those_fine_tuned_on_the_training_set():
    """Every number of the second benchmark's version is a published accuracy of a row."""
    published = read_published(benchmark="imagenet_1k")
    (model,) = published.models
    sets, upstream = [name for name in published.sets if name != "imagenet_val"], "imagenet_val"
    tuned = published.models[model].fine_tuned["imagenet_train"]
    cells = [(model, PRE, "", None, "", "", on, 50) for on in (*sets, upstream)]
    alphas = {"wise_ft": 0.5}
    for method in (*tuned, "ewc"):
        at = (model, method, "canonical", alphas.get(method), "", "imagenet_train")
        cells += [(*at, on, 60) for on in (*sets, upstream)]
    methods = {name: name for name in (*tuned, "ewc")}
    places = {"sets": sets, "downstreams": ["imagenet_train"], "upstream": upstream}
    made = of_cells(cells, methods=methods, **places)
    made = dataclasses.replace(made, published=published)
    data = changes.tuned_outside(made).tables[0].data
    shown = data.assign(method=data["method"].str.split(",").str[0])
    shown = shown.set_index(["method", "evaluated_on"])["published_accuracy_pct"].dropna()
    expected = {
        (method, ours): of[theirs]
        for method, of in tuned.items()
        for ours, theirs in published.sets.items()
    }
    assert shown.to_dict() == expected and len(expected) == 7 * 6
    before = published.of(model).before
    change = [published.of(model).after("imagenet_train", "flyp")[s] - before[s] for s in sets]
    (row,) = made.ranked().query("key == 'flyp'").itertuples()
    assert made.published_mri(row) == pytest.approx(sum(change) / len(change))
    assert read_published().source.startswith("ImageNet-RIB slides")
    assert read_published(benchmark="emoji") == read_published()


def test_the_pre_trained_model_stands_at_its_accuracies_on_the_same_sets():
    """Where the set fine-tuned on is none of the others, the two accuracies are of unlike sets."""
    before = {name: 40 + 10 * k for k, name in enumerate((*SETS, "up"))}
    cells = [("lite0", PRE, "", None, "", "", on, accuracy) for on, accuracy in before.items()]
    section = ranking.trade_off(of_cells([*cells, *on_upstream(30)], downstreams=["up"]))
    points = section.figures[0].data.set_index("label")
    assert points.loc["pretrained", "on_downstream_dataset_pct"] == before["up"] == 70
    assert points.loc["pretrained", "on_other_datasets_pct"] == pytest.approx(50)
