"""Methods and kinds of datasets are found by one rule, and users' files run where they may."""

import sys
from pathlib import Path

import pytest

from engine.recipe.finder import allow_users_files, users_files_allowed
from engine.recipe.finder import run as run_file
from engine.recipe.kinds import KINDS
from engine.recipe.methods import METHODS
from helpers.processes import run

THREADS = """
import threading
from engine.recipe.methods import METHODS
start, found = threading.Barrier(8), []

def find():
    start.wait()
    for name in METHODS.names():
        found.append(METHODS.find(name).Method)

threads = [threading.Thread(target=find) for _ in range(8)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(len(found) == 8 * len(METHODS.names()), len(set(found)) == len(METHODS.names()))
"""
FAILED = """
import sys
from engine.recipe.methods import METHODS
sys.modules["torch"] = None  # as one that cannot be imported
for _ in range(2):
    try: METHODS.find("soup")
    except ImportError: print("no torch")
del sys.modules["torch"]
print(METHODS.find("soup").Method(None).recipe)
"""


def test_a_name_is_that_of_a_module_and_what_stands_beside_defines_no_method():
    names = METHODS.names()
    assert names["ewc"] == "engine.methods.options.ewc"
    assert names["l2sp"] == "engine.methods.beyond.options.l2sp"
    assert not names.keys() & {"base", "heads", "teacher", "task_vectors", "options", "beyond"}
    kinds = ["cifar_c", "emoji", "fmow", "folder", "imagenet", "table"]
    assert [*KINDS.names()] == kinds
    for modules in (METHODS, KINDS):
        for name in modules.names():
            assert issubclass(modules.planned({modules.key: name}), modules.base), name


@pytest.mark.slow
def test_threads_that_find_methods_for_the_first_time_all_do():
    done = run([sys.executable, "-c", THREADS])
    assert done.stdout.split() == ["True", "True"], done.stderr


@pytest.mark.slow
def test_a_method_is_found_after_an_import_failed():
    done = run([sys.executable, "-c", FAILED])
    assert done.stdout.splitlines() == ["no torch", "no torch", "None"], done.stderr


def test_a_users_file_runs_only_in_a_context_that_allows_it(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")

    def refused() -> None:
        with pytest.raises(PermissionError, match=r"mine\.py is a program: only commands that"):
            run_file(str(file))
        assert not users_files_allowed() and not (tmp_path / "ran").exists()

    refused()
    with allow_users_files(False):
        refused()
    with allow_users_files(), allow_users_files(False):
        assert users_files_allowed(), "an inner context takes no permission away"
        run_file(str(file))
    Path(tmp_path / "ran").unlink()
    refused()
