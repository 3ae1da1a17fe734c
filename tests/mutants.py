"""How many random faults of the code the tests notice.

python tests/mutants.py [PLACE ...] [--number 40] [--seed 0] [--marks "not slow and not exhaustive"]

Each mutant is a copy of the tree with a single change at a random place of engine, kernels or
loaders, or of the folders and files of them that are named. The tests of its room run on it until
one fails. Which mutant a seed gives depends on the code alone, so that two states of the tests can
be compared on the same ones.
"""

import argparse
import ast
import copy
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("engine", "kernels", "loaders")
LIMIT_S = 1200  # a mutant that never ends is noticed
SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div},  # `/` joins paths, too
    **{ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.And: ast.Or, ast.Or: ast.And},
    **{ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt},
    **{ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.In: ast.NotIn, ast.NotIn: ast.In},
    **{ast.Is: ast.IsNot, ast.IsNot: ast.Is},
}


def changes(tree: ast.AST) -> Iterator[tuple[ast.AST, Callable[[ast.AST], None]]]:
    """Each node of a program that can be changed, and the change."""
    types = {id(inner) for node in ast.walk(tree) for inner in _annotations(node)}
    for node in ast.walk(tree):
        if id(node) in types:
            continue
        if isinstance(node, ast.BinOp | ast.BoolOp) and type(node.op) in SWAPS:
            yield node, lambda node: setattr(node, "op", SWAPS[type(node.op)]())
        elif isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
            yield node, lambda node: node.ops.__setitem__(0, SWAPS[type(node.ops[0])]())
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            yield node, lambda node: setattr(node, "op", ast.UAdd())
        elif isinstance(node, ast.Constant) and type(node.value) in (int, bool):
            yield node, lambda node: setattr(node, "value", _other(node.value))
        elif isinstance(node, ast.Call) and node.keywords:
            yield node, lambda node: node.keywords.pop()
        elif isinstance(node, ast.Call) and len(node.args) > 1:
            yield node, lambda node: node.args.pop()


def _other(value: int | bool) -> int | bool:
    return not value if isinstance(value, bool) else value + 1


def _annotations(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a node's type annotations, where a change is none."""
    for name in ("annotation", "returns"):
        if isinstance(part := getattr(node, name, None), ast.AST):
            yield from ast.walk(part)


def mutants(among: Sequence[str], seed: int, number: int) -> Iterator[tuple[Path, int, str, str]]:
    """File, line, what becomes of it, and the file's new text."""
    files = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
    files = [path for path in files if any(path.is_relative_to(ROOT / name) for name in among)]
    trees = {path: ast.parse(path.read_text()) for path in files}
    places = [(path, k) for path in files for k, _ in enumerate(changes(trees[path]))]
    for path, k in random.Random(seed).sample(places, number):
        tree = copy.deepcopy(trees[path])
        node, change = list(changes(tree))[k]
        before = ast.unparse(node)
        change(node)
        line = getattr(node, "lineno", 0)
        yield path.relative_to(ROOT), line, f"{before} -> {ast.unparse(node)}", ast.unparse(tree)


def tests_of(file: Path) -> str:
    """The folder of tests that mirrors a file's room, or its package where there is none."""
    room = Path("tests", *file.parent.parts[:2])
    return str(room if (ROOT / room).is_dir() else room.parent)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("among", nargs="*", default=ROOMS, metavar="PLACE", help="folder or file")
    parser.add_argument("--number", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--marks", default="not slow and not exhaustive", help="pytest's -m")
    words = parser.parse_args()
    noticed = 0
    with tempfile.TemporaryDirectory(prefix="rib-mutants-") as folder:
        ignored = shutil.ignore_patterns(".*", "runs", "build")
        shutil.copytree(ROOT, folder, ignore=ignored, dirs_exist_ok=True)
        for file, line, change, text in mutants(words.among, words.seed, words.number):
            original = Path(folder, file).read_text(encoding="utf-8")
            Path(folder, file).write_text(text, encoding="utf-8")
            command = ["-m", "pytest", "-x", "-m", words.marks, "-p", "no:cacheprovider"]
            try:
                ended = subprocess.run(
                    [sys.executable, *command, tests_of(file)], cwd=folder, capture_output=True,
                    text=True, timeout=LIMIT_S,
                )  # fmt: skip
                is_noticed = ended.returncode != 0
            except subprocess.TimeoutExpired:
                is_noticed = True
            noticed += is_noticed
            verdict = "noticed" if is_noticed else "NOT NOTICED"
            print(f"{verdict}: {file}:{line}: {' '.join(change.split())[:150]}", flush=True)
            Path(folder, file).write_text(original, encoding="utf-8")
    print(f"{noticed} of {words.number} noticed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
