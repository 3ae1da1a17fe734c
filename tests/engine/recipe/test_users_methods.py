"""A user's method: to show it runs nothing of it, and it is checked where it runs."""

import dataclasses
from pathlib import Path

import pytest

from engine import cli
from engine.campaigns.make_plan import make_plan
from engine.cells.plan_cell import plan_cell
from engine.errors import RecipeError
from engine.methods import soup
from engine.recipe.finder import allow_users_files
from engine.recipe.methods import METHODS, method_of
from engine.recipe.overrides import parsed
from engine.recipe.resolve import load_recipe
from engine.recipe.schema import Recipe
from engine.recipe.typed import dump_recipe

METHOD = """
from dataclasses import dataclass, field
from typing import Annotated, Literal
import msgspec
from engine.methods.base import Trained
from engine.methods.soup import Recipe as Soup
from engine.recipe.schema import MethodRecipe

@dataclass(frozen=True)
class Recipe(MethodRecipe):
    strength: Annotated[float, msgspec.Meta(gt=0)] = 0.5
    kind: Literal["near", "far"] = "near"
    steps: int | None = None

    def check(self, cell):
        if cell.train.epochs > 50:
            raise ValueError("too long for this method")

Method = Trained
"""


def cell(tmp_path: Path, text: str, *words: str) -> Recipe:
    (tmp_path / "mine.py").write_text(text)
    (tmp_path / "mine.yaml").write_text("name: mine\ntitle: Mine\nmodule: mine.py\nsteps: 3\n")
    return load_recipe("emoji/fine_tune", parsed([f"method={tmp_path}/mine.yaml", *words]))


def test_a_file_lies_beside_the_one_that_names_it(tmp_path, monkeypatch):
    """On the command line it is relative to the working directory; a dump has the whole path."""
    place = tmp_path / "beside"
    place.mkdir()
    of_file = cell(place, METHOD).method
    assert (of_file.name, of_file.module) == ("mine", str(place / "mine.py"))
    section = (place / "mine.yaml").read_text().strip().replace("\n", ", ")
    inline = place / "own.yaml"
    inline.write_text(f"campaign: emoji\nmethod: {{{section}}}\n")
    assert load_recipe(str(inline)).method == of_file
    assert load_recipe(str(inline), method="lwf") == load_recipe("emoji", method="lwf")
    words = ["method.module=mine.py", "method.steps=3"]
    with pytest.raises(RecipeError, match=r"mine\.py' is not a Python file\. A relative path"):
        load_recipe("emoji/fine_tune", parsed(words))
    monkeypatch.chdir(place)
    resolved = load_recipe("emoji/fine_tune", parsed(words))
    assert resolved.method.module == of_file.module
    (tmp_path / "dumped.yaml").write_text(dump_recipe(resolved))
    assert dump_recipe(load_recipe(str(tmp_path / "dumped.yaml"))) == dump_recipe(resolved)


@pytest.mark.usefixtures("users_files")
def test_options_are_shown_as_written_and_completed_where_the_method_runs(tmp_path):
    shown = cell(tmp_path, METHOD, "method.strength=2")
    shared = {"name": "mine", "title": "Mine", "module": f"{tmp_path}/mine.py"}
    shared["variant"] = "original"
    assert dataclasses.asdict(shown.method) == shared | {"steps": 3, "strength": 2}
    assert shown == cell(tmp_path, METHOD, "method.strength=2")
    options = {"strength": 2.0, "kind": "near", "steps": 3}
    assert dataclasses.asdict(method_of(shown).recipe) == shared | options


@pytest.mark.usefixtures("users_files")
@pytest.mark.parametrize(
    ("text", "words", "message"),
    [
        (METHOD, "method.strenght=2", "mine.py: unknown key 'method.strenght'; .*strength'"),
        (METHOD, "method.strength=0", r"mine.py: method.strength=0 must be a number above 0"),
        (METHOD, "train.epochs=60", "too long for this method"),
        ("x = 1\ny = (\n", "seed=1", r"mine.py, line 2: '\(' was never closed"),
        ("class Recipe: pass\n", "seed=1", "mine.py does not define Method; see docs/extend.md"),
        ("class Recipe: pass\nMethod = Recipe", "seed=1", "Recipe does not extend engine.recipe"),
    ],
)
def test_what_its_module_refuses(tmp_path, text, words, message):
    shown = cell(tmp_path, text, words)
    with pytest.raises(ValueError, match=message):
        method_of(shown)


@pytest.mark.usefixtures("users_files")
def test_its_file_runs_once_for_each_content(tmp_path):
    runs = f"open({str(tmp_path / 'runs')!r}, 'a').write('.')\n"
    shown = cell(tmp_path, METHOD + runs)
    for text in (METHOD + runs, METHOD + runs + "more = 1\n"):
        Path(shown.method.module).write_text(text, encoding="utf-8")
        found = [METHODS.find(shown.method.module) for _ in range(2)]
        assert found[0] is found[1]
    assert (tmp_path / "runs").read_text() == ".."


@pytest.mark.usefixtures("users_files")
def test_options_may_extend_those_of_a_method_of_the_engine(tmp_path):
    shown = cell(tmp_path, METHOD.replace("(MethodRecipe)", "(Soup)"), "method.members=[ewc]")
    method = method_of(shown).recipe
    assert (
        isinstance(method, soup.Recipe) and method.members == ["ewc"] and method.select == "uniform"
    )


def test_its_recipe_names_the_cells_that_it_starts_from(tmp_path):
    """Which are known where its file runs; a mix of cells is none of them."""
    text = METHOD.replace("    strength:", '    needs = ("ewc",)\n    strength:')
    shown = cell(tmp_path, text)
    words = [f"method={shown.method.module.replace('.py', '.yaml')}"]
    assert not plan_cell("emoji/fine_tune", parsed(words)).needs
    with allow_users_files():
        planned = plan_cell("emoji/fine_tune", parsed(words))
    assert planned.needs["ewc"].recipe.method.name == "ewc"
    cell(tmp_path, text.replace("ewc", "wise_ft"))
    with (
        allow_users_files(),
        pytest.raises(RecipeError, match="mine needs wise_ft, which averages cells"),
    ):
        plan_cell("emoji/fine_tune", parsed(words))


def test_to_show_a_strangers_recipe_runs_nothing_of_it(folder, tmp_path, capsys):
    victim, grid = tmp_path / "victim", tmp_path / "grid.yaml"
    cell(tmp_path, f"{METHOD}open({str(victim)!r}, 'w').close()\n")
    method, runs = f"{tmp_path}/mine.yaml", f"runs={tmp_path / 'runs'}"
    text = (folder / "shapes.yaml").read_text()
    grid.write_text(text.replace("fine_tune: {}", f"{method}: {{}}"))
    assert cli.main(["train", "recipe=emoji/fine_tune", f"method={method}", "--print"]) == 0
    assert "steps: 3" in capsys.readouterr().out
    make_plan(str(grid), parsed([runs]), 1)
    assert cli.main(["plan", str(grid), runs]) == 0  # from counts, without the method
    assert cli.main(["report", str(grid), runs]) == 2 and not victim.exists()
    with allow_users_files():  # as a campaign does when it begins
        make_plan(str(grid), parsed([runs]), 1)
    assert victim.exists()
