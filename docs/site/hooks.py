"""Pages of the docs site that are made from the code and from files outside of `docs/`.

MkDocs calls these hooks (`mkdocs.yml`). Recipe keys come from the schema, commands from their own
help texts, methods from their modules' docstrings, so that none of them can be out of date.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

from mkdocs.structure.files import File, Files

from engine.recipe import schema
from engine.recipe.typed import words as type_in_words

ROOT = Path(__file__).resolve().parents[2]
MADE_OF = {
    "index.md": "README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changes.md": "CHANGELOG.md",
}
SECTIONS = {  # of a recipe, by the class of `engine.recipe.schema` that holds its keys
    "Recipe": "",
    "ModelRecipe": "model.",
    "WeightsRecipe": "model.weights.",
    "HeadRecipe": "model.head.",
    "DatasetRecipe": "dataset.",
    "OptimizerRecipe": "optimizer.",
    "TrainRecipe": "train.",
    "EvaluateRecipe": "evaluate.",
}
MODULES = {  # of the Python reference
    "engine": "The engine",
    "kernels": "Kernels",
    "kernels.transport": "Optimal transport",
}


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are made here."""
    pages = {name: (ROOT / source).read_text() for name, source in MADE_OF.items()}
    pages |= {
        "reference/recipe.md": "# Recipe keys\n\n" + "\n".join(_recipe()),
        "reference/commands.md": "# Commands\n\n" + "\n".join(_commands()),
        "reference/methods.md": "# Methods\n\n" + "\n".join(_methods()),
        "reference/python.md": "# Python\n\n" + "\n".join(_python()),
    }
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links as the site needs them: the sources are written to be read in the repository."""
    text = re.sub(r"\]\((?:\.\./)?docs/", "](", markdown)
    text = re.sub(r"\]\((?:\.\./)?CONTRIBUTING\.md", "](contributing.md", text)
    return re.sub(r"\[([^\]]+)\]\(\.\./[^)]+\)", r"`\1`", text)  # files that the site has not


def _recipe() -> Iterator[str]:
    source = (ROOT / "engine/recipe/schema.py").read_text()
    lines = source.splitlines()
    classes = {node.name: node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)}
    for name, prefix in SECTIONS.items():
        node, types = classes[name], get_type_hints(getattr(schema, name), include_extras=True)
        yield f"## `{prefix.rstrip('.') or 'top level'}`\n\n{ast.get_docstring(node) or ''}\n"
        yield "| key | type | default | meaning |\n|---|---|---|---|"
        for field in node.body:
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                cells = [f"`{field.target.id}`", type_in_words(types[field.target.id])]
                cells += [_default(field.value), _comment(lines, field)]
                yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
        yield ""


def _default(value: ast.expr | None) -> str:
    text = ast.unparse(value) if value else "MISSING"
    if text == "MISSING":
        return "must be given"
    made = re.fullmatch(r"field\(default_factory=(?:lambda: )?(.*)\)", text)
    made_of = {"list": "[]", "dict": "{}"}
    if made:
        text = made_of.get(made[1], made[1])
    return "see its section" if text.endswith("Recipe") else f"`{text}`"


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
    for command in [[], *([name] for name in _names())]:
        title = " ".join(["rib", *command])
        program = [sys.executable, "-m", "engine.cli", *command, "--help"]
        shown = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=True)
        yield f"## `{title}`\n\n```text\n{shown.stdout.strip()}\n```\n"


def _names() -> list[str]:
    program = [sys.executable, "-m", "engine.cli", "--help"]
    shown = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return re.findall(r"^  ([a-z]+) ", shown, re.M)


def _methods() -> Iterator[str]:
    yield "Each method's formula, source and variants, from its module.\n"
    for path in sorted((ROOT / "engine/methods").glob("*.py")):
        tree = ast.parse(path.read_text())
        names = {getattr(node, "name", "") for node in tree.body}
        assigned = [n.targets[0] for n in tree.body if isinstance(n, ast.Assign)]
        names |= {target.id for target in assigned if isinstance(target, ast.Name)}
        if "Method" in names:
            yield f"## `{path.stem}`\n\n{ast.get_docstring(tree)}\n"


def _python() -> Iterator[str]:
    for module, title in MODULES.items():
        yield f"## {title}\n\n::: {module}\n"
