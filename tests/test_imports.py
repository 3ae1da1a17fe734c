"""Rules of the code that pyproject.toml cannot state: imports, text, who deletes and renames."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import grimp

ROOT = Path(__file__).resolve().parent.parent
MAY_USE = {
    "kernels": {"kernels", "torch", "triton", "numba", "numpy", "llvmlite"},
    "loaders": {
        *("loaders", "torch", "numpy", "numba", "scipy", "PIL", "ffcv", "tqdm", "resvg_py"),
        "torchvision",
        *("msgspec", "filelock", "psutil", "pyarrow"),
    },
}
ROOMS = ("engine", *MAY_USE, "bench")
FILES = [path for room in ROOMS for path in (ROOT / room).rglob("*.py")]
MAY_RENAME = (
    *("loaders/files/root.py", "loaders/files/durable.py"),  # durable.whole removes what it made
    "engine/measures/tables.py",  # values of tables
)
CELL, MOST_LINES = "engine.cells.build", 13_200  # lower it when what a cell needs shrinks
OF_PATHS = {"unlink": 0, "rmdir": 0, "rename": 1, "replace": 1, "symlink_to": 1, "hardlink_to": 1}


def imported(source: str) -> Iterator[str]:
    """The package of every import."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").partition(".")[0]


def test_kernels_and_loaders_use_few_packages():
    for room, packages in MAY_USE.items():
        used = {name for path in (ROOT / room).rglob("*.py") for name in imported(path.read_text())}
        assert room in used and not used - packages - sys.stdlib_module_names


def test_one_module_reads_recipes():
    """It alone names the folder in its code and imports a YAML reader."""
    readers = set()
    for path in FILES:
        source = path.read_text()
        nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)]
        words = [node.value for node in nodes if isinstance(node.value, str)]
        names = [word == "recipes" or word.startswith(("recipes/", "../recipes")) for word in words]
        if any(names) or "yaml" in imported(source):
            readers.add(path.relative_to(ROOT).as_posix())
    listing = {"engine/commands/recipes.py", "engine/cli.py"}  # of that name
    listing |= {"engine/model_files/architectures.py"}  # of a table of timm's networks
    assert readers - listing == {f"engine/recipe/{name}.py" for name in ("catalogue", "yaml_text")}


def test_text_is_read_and_written_with_an_encoding():
    """Ruff's rule (PLW1514) sees it only where it can tell that an object is a path."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and _is_text(node):
                assert any(word.arg == "encoding" for word in node.keywords), (path, node.lineno)


def _is_text(call: ast.Call) -> bool:
    """Whether a call reads or writes text, and has no place for an encoding before its keywords."""
    name = getattr(call.func, "attr", getattr(call.func, "id", ""))
    modes = [mode.value for mode in call.args if isinstance(mode, ast.Constant)]
    return (
        (name == "read_text" and not call.args)
        or (name == "write_text" and len(call.args) < 2)
        or (name == "open" and not (call.args or call.keywords))
        or (name == "open" and any(mode in ("r", "w", "a") for mode in modes))
        or any(word.arg == "text" for word in call.keywords)
    )


def test_no_engine_module_bears_a_standard_librarys_name():
    names = {path.stem for path in (ROOT / "engine").rglob("*.py")} - {"__init__"}
    assert not names & sys.stdlib_module_names


def bare_calls(text: str) -> list[str]:
    """Calls of methods of Path that delete or rename, with their lines.

    Ruff bans the functions of os and shutil by name. Methods are told by their arguments: those of
    texts and tables of the same name take two of them, or keywords.
    """
    calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    return [
        f"{call.lineno}: {call.func.attr}"
        for call in calls
        if isinstance(call.func, ast.Attribute)
        and len(call.args) == OF_PATHS.get(call.func.attr, -1)
        and {keyword.arg for keyword in call.keywords} <= {"missing_ok"}
    ]


def test_only_the_root_deletes_and_renames():
    """`loaders.files.root`: it neither follows links nor leaves its folder."""
    names = {path.relative_to(ROOT).as_posix(): path for path in FILES}
    found = {
        name: calls
        for name, path in names.items()
        if name not in MAY_RENAME and (calls := bare_calls(path.read_text(encoding="utf-8")))
    }
    assert not found and len(FILES) > 100


def test_what_a_cell_needs_stays_small(capsys):
    """All modules that building a cell imports, inside functions too, and their lines."""
    graph = grimp.build_graph(*ROOMS, cache_dir=None)
    needed = {CELL, *graph.find_upstream_modules(CELL)}
    lines = {name: len(_file(name).read_text(encoding="utf-8").splitlines()) for name in needed}
    with capsys.disabled():
        print(f"\n{CELL} needs {len(lines)} files of {sum(lines.values()):,} lines")
    assert CELL in lines and sum(lines.values()) <= MOST_LINES
    rooms = {name.split(".")[1] for name in needed if name.startswith("engine.")}
    assert not rooms & {"campaigns", "report", "exchange", "commands", "extras"}


def _file(module: str) -> Path:
    path = ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
