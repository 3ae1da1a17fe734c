"""Digests of sources: numbers change them, words and line breaks do not."""

import shutil

import pytest

from engine.recipe import methods, source_code
from engine.recipe.source_code import digest_of_folder, digest_of_method
from engine.store import made_by

EWC, LORA, DORA = (f"engine/methods/{name}.py" for name in ("ewc", "lora", "beyond/dora"))
STRENGTH = "self.penalty = Penalty(recipe.lam, anchor, prefixed)"


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A copy of the methods, which tests may edit."""
    shutil.copytree(source_code.ROOT / "engine/methods", tmp_path / "engine/methods")
    monkeypatch.setattr(source_code, "ROOT", tmp_path)
    caches = (
        *(source_code._tree, digest_of_folder),
        *(methods._digest_of_engines, made_by.installed),
    )

    def edit(file, old, new):
        text = (tmp_path / file).read_text()
        assert old in text
        (tmp_path / file).write_text(text.replace(old, new))
        for cache in caches:
            cache.cache_clear()

    edit(EWC, "", "")
    yield edit
    for cache in caches:
        cache.cache_clear()


def test_a_changed_penalty_is_another_cell_and_a_comment_is_not(root, grid):
    name = grid.builder("method=ewc").key()
    root(EWC, STRENGTH, f"# the strength\n            {STRENGTH}".replace(", ", ",\n"))
    root(EWC, '"""EWC: ', '"""Another docstring. EWC: ')
    assert grid.builder("method=ewc").key() == name
    root(EWC, "Penalty(recipe.lam,", "Penalty(100 * recipe.lam,")
    assert grid.builder("method=ewc").key() != name


def test_a_method_changes_with_the_module_of_its_base_class(root, tmp_path):
    mine = tmp_path / "mine.py"
    mine.write_text("from engine.methods.beyond.dora import Method, Recipe\n")
    files = [tmp_path / DORA, mine, tmp_path / EWC]
    dora, users, ewc = map(digest_of_method, files)
    root(LORA, "a=math.sqrt(5)", "a=math.sqrt(6)")
    assert digest_of_method(files[0]) != dora
    assert digest_of_method(files[1]) != users
    assert digest_of_method(files[2]) == ewc
    mine.write_text("not Python")
    digest_of_method(mine)


def test_a_folder_changes_with_code_alone(root):
    before = digest_of_folder("engine/methods")
    root("engine/methods/heads.py", "MOST_ITERATIONS = 1000", "MOST_ITERATIONS = (1000)  # many")
    assert digest_of_folder("engine/methods") == before
    root("engine/methods/heads.py", "(1000)", "(1001)")
    assert digest_of_folder("engine/methods") != before
