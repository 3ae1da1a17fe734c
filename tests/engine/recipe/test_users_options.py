"""A user's method is read to be shown, and runs only where it trains."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import campaigns
import pytest

from engine import cli, recipe
from engine.commands import train
from engine.grid import campaign
from engine.methods import ewc, soup
from engine.recipe import modules
from engine.recipe.schema import MethodRecipe
from engine.recipe.users_options import options_class

folder = campaigns.folder
HEAD = """
from dataclasses import dataclass, field
from engine.methods import ewc, soup
from engine.methods.base import Trained
from engine.methods.fine_tune import Recipe as Plain
from engine.recipe.schema import MethodRecipe
Method = Trained
"""
OPTIONS = '''
@dataclass(frozen=True)
class Recipe(MethodRecipe):
    """Options of every kind that is read."""
    strength: float = 1
    steps: int | None = None
    kind: str = "near"  # near | far
    sure: bool = True
    levels: list[float] = field(default_factory=lambda: [0.0, -0.5])
    pair: tuple[int, int] = (1, 2)
    names: dict[str, int] = field(default_factory=dict)

    def check(self, cell):
        raise RuntimeError
'''


CLASS = "@dataclass\nclass Recipe(MethodRecipe):\n"


def written(tmp_path: Path, text: str, head: str = HEAD) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(head + text)
    return path


def test_options_are_those_of_the_class_as_python_builds_it(tmp_path: Path) -> None:
    path = written(tmp_path, OPTIONS)
    options, built = modules.options(str(path)), modules.find(str(path)).Recipe
    assert dataclasses.asdict(options) == dataclasses.asdict(built())
    read = {field.name: field.type for field in dataclasses.fields(type(options))}
    assert read == {field.name: read[field.name] for field in dataclasses.fields(built)}
    names = [f.name for f in dataclasses.fields(built) if f.type in (int | None, dict[str, int])]
    assert names == ["steps", "names"] and read["steps"] == int | None
    assert type(options).check is MethodRecipe.check  # the file's is not read
    assert options.levels is not options_class(path)().levels  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("text", "base"),
    [
        ("@dataclass\nclass Recipe(ewc.Recipe):\n    more: int = 1\n", ewc.Recipe),
        ("class Between(soup.Recipe): pass\nclass Recipe(Between): pass\n", soup.Recipe),
        ("Recipe = Plain\n", MethodRecipe),
        ("Recipe = MethodRecipe\n", MethodRecipe),
    ],
)
def test_a_base_is_a_class_of_the_engine(tmp_path: Path, text: str, base: type) -> None:
    options = options_class(written(tmp_path, text))
    assert issubclass(options, base)
    assert options().name == MethodRecipe().name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("class Recipe(", "was never closed"),
        ("x = 1\n", "does not define Recipe"),
        ("class Recipe: pass\n", None),
        ("class Recipe(object): pass\n", "object is not read without running the file"),
        ("import os\nclass Recipe(os.PathLike): pass\n", "os.PathLike is not read without"),
        ("from os import PathLike\nclass Recipe(PathLike): pass\n", "PathLike is not read"),
        ("from engine.machine import entry as Recipe\n", "Recipe is not read without running"),
        ("from engine.methods import nowhere as Recipe\n", "No module named 'engine.methods.now"),
        ("class Recipe(Recipe): pass\n", "maximum recursion depth"),
        ("Recipe = Recipe\n", "maximum recursion depth"),
        ("Recipe = type('Recipe', (), {})\n", "Recipe is not read without running the file"),
        (CLASS + "    x: float = 2 * 3\n", r"line 10: 'x: float = 2 \* 3' is not NAME: TYPE = VAL"),
        (CLASS + "    x: float\n", "line 10: 'x: float' is not NAME: TYPE"),
        (CLASS + "    x: 'open(1)' = 1\n", "is not NAME: TYPE = VALUE"),
        (CLASS + "    x: Path = 1\n", "of the types int, float, str, bool"),
        (CLASS[11:] + "    x: int = 1\n", r"line 8: .* needs @dataclass\(frozen=True\) above"),
        ("@field\n" + CLASS + "    x: int = 1\n", "and no more than that"),
        ("x = " + "(" * 100_000, "too many nested parentheses"),
        ("\0", "null bytes"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_line(
    tmp_path: Path, text: str, message: str | None
) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ValueError, match=message) as caught:
        options_class(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


BOOBY_TRAP = """
from dataclasses import dataclass
open({victim!r}, "w").close()
from engine.methods.fine_tune import Method
from engine.recipe.schema import MethodRecipe
@dataclass(frozen=True)
class Recipe(MethodRecipe):
    strength: float = 0.5
"""


def test_to_show_a_strangers_recipe_runs_nothing_of_it(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    victim = tmp_path / "victim"
    (tmp_path / "evil.py").write_text(BOOBY_TRAP.format(victim=str(victim)))
    (tmp_path / "evil.yaml").write_text("name: evil\ntitle: Evil\nmodule: evil.py\n")
    text = (folder / "shapes.yaml").read_text()
    grid = str(tmp_path / "grid.yaml")
    Path(grid).write_text(text.replace("fine_tune: {}", f"{tmp_path}/evil.yaml: {{}}"))
    method, runs = f"method={tmp_path}/evil.yaml", f"runs={tmp_path / 'runs'}"
    assert train.launch(["recipe=emoji/fine_tune", method, "--print"]) == 0
    assert "strength: 0.5" in capsys.readouterr().out
    assert recipe.load("emoji/fine_tune", [method]).method.name == "evil"
    plan = campaign.plan(grid, [runs], 1)
    assert cli.main(["plan", grid, runs]) == 0
    for executor in ("local", "slurm"):
        cli.main(["campaign", grid, runs, "--dry-run", "--executor", executor])
    assert cli.main(["metrics", grid, runs]) == 2
    plan.path.parent.mkdir(parents=True)
    plan.path.write_bytes(campaign.text(plan))
    assert cli.main(["report", str(plan.folder)]) == 2 and not victim.exists()
    campaign.plan(grid, [runs], 1, run_users=True)  # as a campaign does when it begins
    assert victim.exists()
