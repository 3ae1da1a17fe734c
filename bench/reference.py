"""The pages of docs/reference/, written from the code, and the site: `python -m bench.reference`.

Recipe keys come from the schema, commands from their parsers, methods from their recipes and
docstrings, Python functions from docstrings. A test compares the committed pages with the code. The
site's sources are copied to build/docs, with links as the site needs them; `make docs` builds the
site.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import importlib
import inspect
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, get_type_hints

from engine.commands import arguments, recipes
from engine.recipe import campaigns, catalogue, extras, schema
from engine.recipe.campaigns import recipe_names
from engine.recipe.kinds import KINDS
from engine.recipe.methods import METHODS
from engine.recipe.overrides import parsed
from engine.recipe.resolve import load_recipe
from engine.recipe.typed import words as type_in_words

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "docs" / "reference"
SITE = ROOT / "build" / "docs"
OUTSIDE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changes.md",
}
SECTIONS = {  # of a recipe, by the class of `engine.recipe.schema` that holds its keys
    "Recipe": "",
    "ModelRecipe": "model.",
    "WeightsRecipe": "model.weights.",
    "HeadRecipe": "model.head.",
    "DatasetRecipe": "dataset.",
    "SplitRecipe": "dataset.split.",
    "MethodRecipe": "method.",
    "OptimizerRecipe": "optimizer.",
    "TrainRecipe": "train.",
    "EvaluateRecipe": "evaluate.",
}
MODULES = ("engine", "kernels", "kernels.transport")  # of the Python reference
MARK = "Differs from the authors' code: "


def main() -> int:
    PAGES.mkdir(exist_ok=True)
    for name, text in pages().items():
        (PAGES / name).write_text(text, "utf-8")
    _copy_site()
    return 0


def pages() -> dict[str, str]:
    """The text of each page of docs/reference, by file name."""
    made = {
        "recipe.md": ("Recipe keys", _recipe()),
        "commands.md": ("Commands", _commands()),
        "methods.md": ("Methods", _methods()),
        "campaigns.md": ("Recipes", iter([f"```text\n{recipes.everything()}\n```\n"])),
        "python.md": ("Python", _python()),
    }
    return {name: f"# {title}\n\n" + "\n".join(lines) for name, (title, lines) in made.items()}


def _copy_site() -> None:
    shutil.copytree(ROOT / "docs", SITE, dirs_exist_ok=True)
    for source, name in OUTSIDE.items():
        shutil.copy(ROOT / source, SITE / name)
    for page in SITE.rglob("*.md"):
        text = re.sub(r"\]\((?:\.\./)?docs/", "](", page.read_text("utf-8"))
        text = re.sub(r"\]\((?:\.\./)?CONTRIBUTING\.md", "](contributing.md", text)
        outside = r"\[([^\]]+)\]\((?:\.\./|tests/|SECURITY|CITATION|LICENSE)[^)]*\)"
        text = re.sub(outside, r"`\1`", text)  # files that the site does not have
        page.write_text(text, "utf-8")


def _recipe() -> Iterator[str]:
    yield "Options of a method are in [Methods](methods.md).\n"
    yield "## A campaign's own keys\n\nThese keys define the grid; all others define each cell.\n"
    yield "| key | meaning |\n|---|---|"
    yield from (_row(f"`{key}`", meaning) for key, meaning in campaigns.KEYS.items())
    yield ""
    for name, prefix in SECTIONS.items():
        yield from _section(schema, name, f"`{prefix.rstrip('.') or 'top level'}`")
    for kind in KINDS.names():
        yield from _section(KINDS.find(kind), "Recipe", f"`dataset`, of `kind: {kind}`")
    for name, extra in extras.modules().items():
        if hasattr(extra, "Options"):
            yield from _section(extra, "Options", f"`extras.{name}`")


def _section(module: ModuleType, name: str, title: str) -> Iterator[str]:
    """The docstring and the keys of a section's class, without inherited ones."""
    yield f"## {title}\n\n{inspect.cleandoc(getattr(module, name).__doc__)}\n"
    yield from _keys(module, name)


def _keys(module: ModuleType, name: str) -> Iterator[str]:
    lines = inspect.getsource(module).splitlines()
    nodes = {node.name: node for node in _tree(module).body if isinstance(node, ast.ClassDef)}
    recipe = getattr(module, name)
    types = get_type_hints(recipe, include_extras=True)
    fields = {field.name: field for field in dataclasses.fields(recipe)}
    typed = [node for node in nodes[name].body if isinstance(node, ast.AnnAssign)]
    own = [node for node in typed if ast.unparse(node.target) in fields]
    if own:
        yield "| key | type | default | meaning |\n|---|---|---|---|"
    for node in own:
        key = ast.unparse(node.target)
        cells = [f"`{key}`", type_in_words(types[key]), _default(fields[key])]
        yield _row(*cells, _comment(lines, node))
    yield ""


def _tree(module: ModuleType) -> ast.Module:
    return ast.parse(inspect.getsource(module))


def _default(field: dataclasses.Field) -> str:
    made = field.default_factory
    value = field.default if made is dataclasses.MISSING else made()
    if value is schema.MISSING:
        return "must be given"
    return "see its section" if dataclasses.is_dataclass(value) else f"`{value!r}`"


def _comment(lines: list[str], field: ast.AnnAssign) -> str:
    """The comment behind a field, or the lines of comments above it."""
    behind = lines[(field.end_lineno or field.lineno) - 1].partition("  # ")[2]
    above: list[str] = []
    at = field.lineno - 2
    while not behind and lines[at].strip().startswith("# "):
        above.insert(0, lines[at].strip()[2:])
        at -= 1
    return behind or " ".join(above)


def _commands() -> Iterator[str]:
    """Tables in place of argparse's help, whose layout depends on Python's version."""
    for name, parser in arguments.build_parser([*arguments.COMMANDS])[1].items():
        yield f"## `rib {name}`\n"
        if parser.description:
            yield f"```text\n{parser.description.strip()}\n```\n"
        yield "| argument | meaning |\n|---|---|"
        for action in parser._actions:
            if action.dest != "help" and action.help != argparse.SUPPRESS:
                yield _row(f"`{_spelling(action)}`", (action.help or "") % vars(action))
        yield ""


def _spelling(action: argparse.Action) -> str:
    if action.nargs == 0:
        return action.option_strings[-1]
    choices = f"{{{','.join(action.choices)}}}" if action.choices else ""
    value = (
        action.metavar or choices or (action.dest.upper() if action.option_strings else action.dest)
    )
    return " ".join([*action.option_strings[-1:], value if isinstance(value, str) else value[0]])


def _methods() -> Iterator[str]:
    """A table of the recipes, then the docstrings of the modules."""
    yield "Passes are forward passes per training image; a backward pass counts as two.\n"
    yield "| recipe | what it does | starts from | passes | differs from the authors' code: |"
    yield "|---|---|---|---|---|"
    for name in recipe_names("methods"):
        words = parsed([f"method={name}", "dataset.holdout=0.25"])  # for greedy soups
        options = load_recipe("imagenet_rib_clip/fine_tune", words).method
        said = recipes.about(catalogue.path_of("methods", name))
        needs, passes = ", ".join(options.needs), f"{options.passes:g}"
        differs = difference(_docstring(options.module)) or "in nothing known"
        yield _row(f"`{name}`", said, needs, passes, differs)
    yield ""
    for name, options in METHODS.names().items():
        yield f"## `{name}`\n\n{_docstring(name)}\n"
        yield from _keys(importlib.import_module(options), "Recipe")


def _docstring(method: str) -> str:
    """The docstring of a method's module, which is not imported."""
    file = ROOT.joinpath(*METHODS.module(method).split(".")).with_suffix(".py")
    return ast.get_docstring(ast.parse(file.read_text("utf-8"))) or ""


def difference(docstring: str) -> str:
    """What the paragraph `Differs from the authors' code: ...` says, on one line; empty if none."""
    paragraphs = [" ".join(text.split()) for text in docstring.split("\n\n")]
    return "".join(text.removeprefix(MARK) for text in paragraphs if text.startswith(MARK))


def _python() -> Iterator[str]:
    for name in MODULES:
        module = importlib.import_module(name)
        yield f"## `{name}`\n\n```text\n{inspect.getdoc(module)}\n```\n"
        for public in module.__all__:
            definition = getattr(module, public)
            yield f"### `{name}.{public}`\n\n```python\n{_declaration(definition)}\n```\n"
            yield f"{inspect.getdoc(definition)}\n"


def _declaration(definition: Any) -> str:
    """The line that declares a function, or a class's constructor."""
    lines = ast.unparse(ast.parse(textwrap.dedent(inspect.getsource(definition)))).splitlines()
    heads = [line for line in lines if line.startswith(("def ", "class ", "    def __init__"))]
    return heads[-1].strip().removesuffix(":")


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


if __name__ == "__main__":
    sys.exit(main())
