"""Rows of a campaign that are a method once more, under another name."""

import pytest

from engine.cells.plan_cell import plan_cell
from engine.errors import RecipeError
from engine.recipe.campaigns import each_model, methods_of
from engine.recipe.catalogue import ROOT
from engine.recipe.overrides import parsed
from engine.recipe.resolve import load_recipe

ROWS = """\
extends: emoji
methods:
  ewc_released: {base: ewc, method: {variant: released}}
  ewc_strong: {base: ewc, method: {lam: 10.0}, optimizer: {lr: 0.001}}
  third: {base: wise_ft}
  named: {base: soup, title: All of them, method: {variant: released}}
  two: {base: ensemble, method: {members: [pretrained, ewc]}}
"""


@pytest.fixture
def campaign(tmp_path) -> str:
    file = tmp_path / "rows.yaml"
    file.write_text(ROWS)
    return str(file)


def test_a_row_has_its_bases_settings_and_over_them_its_own(campaign):
    base = load_recipe(campaign, method="ewc")
    released = load_recipe(campaign, method="ewc_released")
    strong = load_recipe(campaign, method="ewc_strong")
    assert (released.method.module, released.method.name) == ("ewc", "ewc")
    assert (base.method.variant, released.method.variant) == ("original", "released")
    assert (base.method.fisher_images, strong.method.fisher_images) == (400, 400)
    assert (base.method.lam, released.method.lam, strong.method.lam) == (1.0, 1.0, 10.0)
    assert (base.optimizer.lr, strong.optimizer.lr) == (3e-4, 1e-3)


def test_a_title_is_the_bases_with_what_differs_unless_it_is_given(campaign):
    for name, title in (
        ("ewc_released", "EWC (released)"),
        ("ewc_strong", "EWC, lam 10.0, optimizer.lr 0.001"),
        ("named", "All of them"),
    ):
        assert load_recipe(campaign, method=name).method.title == title


def test_rows_are_selected_by_their_names_and_need_others_in_their_variant(campaign):
    assert methods_of(campaign, parsed(["methods=[third,ewc_released]"])) == [
        "ewc_released",
        "third",
    ]
    assert (
        load_recipe(campaign, parsed(["methods=[third,ewc_released]"])).method.title
        == "EWC (released)"
    )
    ewc = plan_cell(campaign, method="named").needs["ewc"].recipe.method
    assert (ewc.variant, ewc.fisher_images) == ("released", 400)
    assert [*plan_cell(campaign, method="two").needs] == ["ewc"]
    settings = {"method.variant": "original", "method.members": ()}  # options of its own stay
    cell = plan_cell(campaign, method="named").on("twemoji", settings)
    assert cell.needs["ewc"].recipe.method.variant == "original"


def test_what_a_row_needs_has_its_settings_though_a_list_leaves_it_out(tmp_path):
    listed, more = tmp_path / "listed.yaml", tmp_path / "more.yaml"
    listed.write_text("extends: emoji\nmethods: [soup]\n")
    more.write_text(f"extends: {listed}\nmethods: {{ewc: {{method: {{lam: 2.0}}}}}}\n")
    assert methods_of(str(listed)) == ["soup"]
    assert methods_of(str(more)) == ["soup", "ewc"]
    for file, lam in ((listed, 1.0), (more, 2.0)):
        ewc = plan_cell(str(file), method="soup").needs["ewc"].recipe.method
        assert (ewc.lam, ewc.fisher_images, ewc.fisher_scale) == (lam, 400, "mean")


def test_an_own_method_is_a_row_beside_those_of_the_campaign(tmp_path, monkeypatch):
    """By its path, on the command line or in a list, or under a name of its own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bit_fit.yaml").write_text("name: bit_fit\ntitle: BitFit\nmodule: fine_tune\n")
    (tmp_path / "listed.yaml").write_text("extends: emoji\nmethods: [ewc, bit_fit.yaml]\n")
    (tmp_path / "named.yaml").write_text(
        "extends: emoji\nmethods:\n  mine: {base: bit_fit.yaml, train: {epochs: 1}}\n"
    )
    for name, words in (("emoji", ["methods=[ewc,bit_fit.yaml]"]), ("listed.yaml", [])):
        assert methods_of(name, parsed(words)) == ["ewc", "bit_fit"]
        row = load_recipe(name, parsed(words), method="bit_fit")
        assert (row.method.name, row.method.title, row.train.epochs) == ("bit_fit", "BitFit", 2)
    row = load_recipe("named.yaml", method="mine")
    assert methods_of("named.yaml")[-1] == "mine" and row.train.epochs == 1
    assert row.method.title == "BitFit, train.epochs 1"


def test_the_files_that_a_file_names_begin_at_its_folder(tmp_path):
    model = (ROOT / "models" / "vit_tiny_random.yaml").read_text()
    (tmp_path / "of").mkdir()
    for name, text in {
        "of/small.yaml": model,
        "of/bit_fit.yaml": "name: bit_fit\ntitle: BitFit\nmodule: fine_tune\n",
        "of/base.yaml": "extends: emoji\nmodel: {extends: small.yaml}\nmodels: [small.yaml]\n",
        "named.yaml": "extends: of/base.yaml\n"
        "methods: [ewc, of/bit_fit.yaml, {mine: {base: of/bit_fit.yaml, title: Mine}}]\n",
    }.items():
        (tmp_path / name).write_text(text)
    named = str(tmp_path / "named.yaml")
    assert methods_of(named) == ["ewc", "bit_fit", "mine"]
    row = load_recipe(named, method="mine")
    assert (row.model.name, row.method.name) == ("vit_tiny_random", "bit_fit")
    (grid,) = each_model(named, parsed(["model=all"]))
    assert load_recipe(named, grid).model == row.model


def test_a_mistake_in_a_campaign_that_is_extended_names_that_file(tmp_path):
    base, over = tmp_path / "base.yaml", tmp_path / "over.yaml"
    base.write_text("extends: emoji\nmethods: {ewc: {method: {lam: -1}}}\n")
    over.write_text(f"extends: {base}\nmethods: [fine_tune, ewc]\n")
    with pytest.raises(RecipeError, match=r"base\.yaml \(methods\.ewc\): method\.lam=-1 must be"):
        load_recipe(str(over), method="ewc")
