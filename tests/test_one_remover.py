"""Only `loaders.files.root` deletes and renames: it neither follows links nor leaves its folder."""

import ast

from helpers.processes import ROOT

ALLOWED = (
    *("loaders/files/root.py", "loaders/files/durable.py"),  # durable.whole removes what it made
    "engine/measures/tables.py",  # values of tables
)
OF_PATHS = {"unlink": 0, "rmdir": 0, "rename": 1, "replace": 1, "symlink_to": 1, "hardlink_to": 1}


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
    rooms = ("engine", "loaders", "kernels", "bench")
    files = [path for room in rooms for path in (ROOT / room).rglob("*.py")]
    names = {path.relative_to(ROOT).as_posix(): path for path in files}
    found = {
        name: calls
        for name, path in names.items()
        if name not in ALLOWED and (calls := bare_calls(path.read_text(encoding="utf-8")))
    }
    assert not found and len(files) > 100
