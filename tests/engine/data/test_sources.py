"""The list of sources: complete, and checked where a user writes another."""

import pytest

from engine.data import sources
from engine.errors import RecipeError
from engine.recipe import catalogue
from engine.recipe.resolve import load_recipe

SET = "imagenet_a: {page: p, terms: t, files: [{name: a.tar, sha256: 0a, addresses: [http://a]}]}"


def test_every_set_of_the_benchmark_has_a_source_with_a_checksum():
    published = sources.read_sources()
    dataset = catalogue.read_recipe(catalogue.path_of("datasets", "imagenet_rib"))
    assert set(published) == {dataset["upstream"], *dataset["sets"], *dataset["train_sets"]}
    for source in published.values():
        assert source.terms and source.page.startswith("https://")
        for file in source.files:
            assert len(file.sha256) in (0, 64) and len(file.md5) in (0, 32)
            assert all(address.startswith("https://") for address in file.addresses)
    of_form = [name for name in published if published[name].form]
    assert of_form == ["imagenet_val", "imagenet_train"]
    assert "sources" not in catalogue.names()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("imagenet_a: {page: p}", "imagenet_a: Object missing required field `terms`"),
        (SET.replace("a.tar", "../a.tar"), r"\.\./a\.tar is not a plain file name"),
        (SET.replace("name", "nam"), "imagenet_a: .*unknown field `nam` - at `.*files"),
        (SET.replace("[http://a]", "[]"), "neither addresses nor"),
        (SET.replace("sha256: 0a, ", ""), "neither sha256 nor md5"),
        (
            SET.replace("}]", "}, {name: b.zip, md5: 0b, unpack: zip, addresses: [http://b]}]"),
            "imagenet_a: a dataset in a zip file cannot have other files",
        ),
    ],
)
def test_a_list_that_cannot_be_used_is_refused(tmp_path, text, message):
    (tmp_path / "list.yaml").write_text(text)
    with pytest.raises(RecipeError, match=f"(?s)list.yaml: .*{message}"):
        sources.read_sources(tmp_path / "list.yaml")


def test_sets_are_located_by_their_usual_names(tmp_path):
    published = sources.read_sources()["imagenet_sketch"]
    assert sources.locate(tmp_path, "imagenet_sketch", published) is None
    (tmp_path / "sketch").mkdir()
    assert sources.locate(tmp_path, "imagenet_sketch", published) == tmp_path / "sketch"
    (tmp_path / "imagenet_sketch.tar").touch()
    place = sources.locate(tmp_path, "imagenet_sketch", published)
    assert place == tmp_path / "imagenet_sketch.tar", "the engine's name comes first"
    assert sources.locate(tmp_path, "imagenet_sketch", None) == place


def test_the_folders_of_the_released_code_are_found(tmp_path):
    """It reads them at `--root`."""
    names = [
        "imagenet/val",
        *(f"imagenet-{of}" for of in ["v2", "a", "r", "sketch", "cartoon", "drawing", "c"]),
    ]
    for name in (*names, "objectnet-1.0"):
        (tmp_path / name).mkdir(parents=True)
    dataset, published = load_recipe("imagenet_rib/ewc").dataset, sources.read_sources()
    found = {n: sources.locate(tmp_path, n, published[n]) for n in dataset.evaluated_sets}
    assert None not in found.values() and len({*found.values()}) == 9, found
