"""The one-way rule, read from the source: who may import whom, and who reads the recipes."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OURS = ("engine", "kernels", "loaders", "recipes", "bench", "tests")
MAY_USE = {
    "kernels": {"torch", "triton", "numba", "llvmlite"},
    "loaders": {"torch", "numpy", "PIL", "ffcv", "tqdm", "resvg_py"},
}
MAY_IMPORT = {
    "kernels": {"kernels"},
    "loaders": {"loaders"},
    "engine": {"engine", "kernels", "loaders"},
    "bench": {"bench", "engine", "kernels", "loaders"},
}
DYNAMIC = ("import_module", "__import__", "run_module")
FILES = sorted(path for package in MAY_IMPORT for path in (ROOT / package).rglob("*.py"))


def imported(source: str) -> Iterator[tuple[int, str]]:
    """Line and dotted name of every import, wherever it stands: in functions and branches too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute"
            yield node.lineno, node.module or ""
        elif isinstance(node, ast.Call) and node.args:
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            first = node.args[0]
            if called in DYNAMIC and isinstance(first, ast.Constant):
                yield node.lineno, str(first.value)


def breaches(package: str, source: str) -> list[str]:
    """Imports that `package` may not have."""
    wrong = []
    for line, name in imported(source):
        top = name.split(".")[0]
        if top in OURS:
            bad = top not in MAY_IMPORT[package]
        else:
            foreign = top not in sys.stdlib_module_names
            bad = foreign and top not in MAY_USE.get(package, {top})
        if bad:
            wrong.append(f"line {line}: {package} imports {name}")
    return wrong


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_go_one_way(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    assert not breaches(package, path.read_text())


@pytest.mark.parametrize(
    ("package", "source"),
    [
        ("kernels", "import numpy"),
        ("kernels", "from loaders import pack"),
        ("kernels", "def f():\n    import engine.models"),
        ("loaders", "from engine.errors import nearest"),
        ("loaders", "import kernels.ewc as k"),
        ("loaders", "import timm"),
        ("engine", "if True:\n    from tests import grids"),
        ("engine", "import bench.cases"),
        ("engine", "import importlib\nimportlib.import_module('tests.grids')"),
        ("bench", "import tests"),
    ],
)
def test_walk_sees_a_breach(package: str, source: str) -> None:
    assert len(breaches(package, source)) == 1


def test_walk_sees_the_packages() -> None:
    found = {path.relative_to(ROOT).parts[0] for path in FILES}
    assert {"engine", "kernels", "loaders"} <= found and len(FILES) > 30


def test_only_the_recipe_module_reads_recipes() -> None:
    """A folder name in code, not in a sentence: a string `recipes`, or a path that starts so."""
    readers = set()
    for path in FILES:
        tree = ast.parse(path.read_text())
        words = [
            n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and type(n.value) is str
        ]
        if any(word == "recipes" or word.startswith(("recipes/", "../recipes")) for word in words):
            readers.add(path.relative_to(ROOT).as_posix())
        yaml_users = {name for _, name in imported(path.read_text())} & {"yaml"}
        if yaml_users:
            readers.add(path.relative_to(ROOT).as_posix())
    assert readers - {"engine/commands/recipes.py"} == {
        "engine/recipe/catalogue.py",
        "engine/recipe/resolve.py",  # writes a resolved recipe
    }


def test_no_engine_module_bears_a_standard_librarys_name() -> None:
    names = {path.stem for path in (ROOT / "engine").rglob("*.py")} - {"__init__"}
    assert not names & sys.stdlib_module_names


@pytest.mark.slow
def test_kernels_and_loaders_load_without_the_rest() -> None:
    """Not only in the source: importing them brings neither the engine nor each other."""
    for package, others in (("kernels", ("loaders", "engine")), ("loaders", ("kernels", "engine"))):
        files = sorted((ROOT / package).rglob("*.py"))
        modules = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files]
        code = (
            f"import importlib, sys\nfor name in {[m for m in modules if '__init__' not in m]!r}:\n"
            f"    importlib.import_module(name)\nprint([m for m in {others!r} if m in sys.modules])"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip().endswith("[]"), done.stdout
