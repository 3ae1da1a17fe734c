"""`--limit N`: a smoke run of any campaign, on few images, marked as one."""

import json

import numpy as np
import pytest

from engine import cli
from engine.data import packs
from helpers import campaigns


@pytest.mark.slow
def test_a_smoke_run_is_a_campaign_of_its_own_and_marked(folder, finished, monkeypatch, capsys):
    campaigns.in_this_process(monkeypatch)
    words = ["campaign", str(folder / "shapes.yaml"), f"runs={finished}", "--limit", "12"]
    before = (finished / "shapes" / "report" / "accuracy.csv").read_bytes()
    assert cli.main(words) == 0
    assert "a smoke run on at most 12 images" in capsys.readouterr().out
    (place,) = finished.glob("shapes-limit-12-*")
    page = (place / "report" / "index.html").read_text("utf-8")
    assert "<h1>Smoke run: " in page and "This is a smoke run on at most 12 images" in page
    rows = campaigns.rows(place / "report" / "accuracy.csv")
    assert {row["downstream"] for row in rows} == {"", *campaigns.SETS}
    assert all(int(row["images"]) <= 12 for row in rows)
    assert (finished / "shapes" / "report" / "accuracy.csv").read_bytes() == before
    plan = json.loads(next(place.glob("plans/*/plan.json")).read_text())
    assert {row["recipe"]["train"]["epochs"] for row in plan["rows"].values()} == {1}


def test_a_smoke_runs_packs_are_parts_of_the_whole_ones(grid):
    whole, few = (grid.builder(*words) for words in ((), ("dataset.limit=12",)))
    for name in ("upstream", "few"):
        all_images, some = whole.sets[name].pack, few.sets[name].pack
        places = [all_images.keys.tolist().index(key) for key in some.keys.tolist()]
        assert len(places) == 12 and places == sorted(places)
        assert np.array_equal(some.pixels(range(12)), all_images.pixels(places))
        assert np.array_equal(some.labels, all_images.labels[places])
        assert some.classes == all_images.classes, "the head and its mask stay"
        assert some.fingerprint != all_images.fingerprint and some.folder != all_images.folder
    for split in ("train", "holdout"):
        assert len(few.sets["few"].split(split)), "some are held out"
    assert few.key() != whole.key()


def test_a_damaged_image_is_not_copied(grid, tmp_path):
    recipe = grid.builder(f"runs={tmp_path}").recipe
    whole = packs.pack_of(recipe, "outline", tmp_path)
    content = bytearray(whole.beton.read_bytes())
    for sample in range(len(whole)):
        content[int(whole.shard.rows["pointer"][sample])] ^= 1
    whole.beton.write_bytes(content)
    limited = grid.builder(f"runs={tmp_path}", "dataset.limit=12").recipe
    with pytest.raises(ValueError, match="were altered"):
        packs.pack_of(limited, "outline", tmp_path)


def test_classes_are_the_same_in_all_sets_and_a_larger_limit_adds_images():
    classes = [f"class-{i % 50}" for i in range(1000)]
    few, more = (packs.chosen(classes, [f"{i}" for i in range(1000)], n) for n in (100, 130))
    assert set(few) <= set(more) and len(few) == 100
    other = packs.chosen(classes[::-1], [f"x/{i}" for i in range(1000)], 100)
    assert {classes[i] for i in few} == {classes[::-1][i] for i in other}
    assert len({classes[i] for i in few}) == 17, "six images a class"
    assert packs.chosen(classes[:5], list("abcde"), 100) == list(range(5))
