"""Rules of imports that the contracts of pyproject.toml cannot state, and who reads the recipes."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAY_USE = {
    "kernels": {"kernels", "torch", "triton", "numba", "numpy", "llvmlite"},
    "loaders": {
        *(
            "loaders",
            "torch",
            "numpy",
            "numba",
            "scipy",
            "PIL",
            "ffcv",
            "tqdm",
            "resvg_py",
            "msgspec",
            "filelock",
            "psutil",
        )
    },
}
DYNAMIC = ("import_module", "__import__", "run_module")
FILES = {
    package: sorted((ROOT / package).rglob("*.py"))
    for package in ("engine", "kernels", "loaders", "bench")
}


def imported(source: str) -> Iterator[tuple[int, str]]:
    """Line and dotted name of every import, also of those that name a module in a string."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, node.module or ""
        elif isinstance(node, ast.Call) and node.args:
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            first = node.args[0]
            if called in DYNAMIC and isinstance(first, ast.Constant):
                yield node.lineno, str(first.value)


def breaches(package: str, source: str) -> list[str]:
    """Imports of what `package` may not use: neither of the standard library nor allowed."""
    allowed = MAY_USE[package] | sys.stdlib_module_names
    return [
        f"line {line}: {package} imports {name}"
        for line, name in imported(source)
        if name.split(".")[0] not in allowed
    ]


@pytest.mark.parametrize("package", MAY_USE)
def test_kernels_and_loaders_use_few_packages(package: str) -> None:
    assert len(FILES[package]) > 10
    wrong = {path.name: breaches(package, path.read_text()) for path in FILES[package]}
    assert not any(wrong.values()), wrong


@pytest.mark.parametrize(
    ("package", "source"),
    [
        ("kernels", "import pandas"),
        ("kernels", "def f():\n    import engine.models"),
        ("loaders", "import timm"),
        ("loaders", "if True:\n    from kernels import ewc"),
        ("loaders", "import importlib\nimportlib.import_module('engine.models')"),
    ],
)
def test_a_breach_is_seen(package: str, source: str) -> None:
    assert len(breaches(package, source)) == 1


def test_one_module_reads_recipes() -> None:
    """It alone names the folder in its code and imports a YAML reader."""
    readers = set()
    for path in (path for files in FILES.values() for path in files):
        source = path.read_text()
        words = [
            node.value
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        ]
        named = any(
            word == "recipes" or word.startswith(("recipes/", "../recipes")) for word in words
        )
        if named or any(name == "yaml" for _, name in imported(source)):
            readers.add(path.relative_to(ROOT).as_posix())
    listing = {"engine/commands/recipes.py", "engine/cli.py"}  # of that name
    assert readers - listing == {f"engine/recipe/{name}.py" for name in ("catalogue", "yaml_text")}


def test_no_engine_module_bears_a_standard_librarys_name() -> None:
    names = {path.stem for path in FILES["engine"]} - {"__init__"}
    assert not names & sys.stdlib_module_names


@pytest.mark.slow
@pytest.mark.parametrize(
    ("package", "absent"), [("kernels", ("loaders", "engine")), ("loaders", ("kernels", "engine"))]
)
def test_kernels_and_loaders_load_without_the_rest(package: str, absent: tuple[str, ...]) -> None:
    """Importing them loads neither the engine nor each other, also not indirectly."""
    paths = [path.relative_to(ROOT).with_suffix("") for path in FILES[package]]
    modules = [".".join(path.parts) for path in paths if path.name != "__init__"]
    code = (
        f"import importlib, sys\nfor name in {modules!r}:\n    importlib.import_module(name)\n"
        f"print([name for name in {absent!r} if name in sys.modules])"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert process.stdout.strip().endswith("[]"), process.stdout
