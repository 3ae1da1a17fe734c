"""The section on single images whose predictions flip."""

import base64
import io

import numpy as np
from PIL import Image

from engine.data import thumbnails
from engine.extras import changed_images
from engine.report.merged import merged
from engine.report.results import of_campaign
from helpers import reports


def test_thumbnails_are_the_images_of_the_table(tmp_path):
    run = reports.finished(tmp_path, thumbnails=reports.pictures())
    section = changed_images.section(of_campaign(run))
    data = section.tables[0].data
    for number, name in enumerate(reports.SETS):
        for change in ("positive flip", "negative flip"):
            pictures = section.pictures[f"{name}: {change}"]
            rows = data[(data["evaluated_on"] == name) & (data["change"] == change)]
            assert len(rows) == len(pictures) > 0
            for row, thumbnail in zip(rows.to_dict("records"), pictures, strict=True):
                webp = base64.b64decode(thumbnail.url.partition(",")[2])
                image = np.asarray(Image.open(io.BytesIO(webp)).convert("RGB"))
                assert max(image.shape[:2]) == thumbnails.PX
                colour = (6 * row["image"], 80 * number, 9)
                np.testing.assert_allclose(image.mean((0, 1)), colour, atol=6)
                assert thumbnail.alt.startswith(f"{row['class']}: ")
                assert f"{change} by {row['models']} of {row['of']} models" in thumbnail.alt
    assert {caption.partition(":")[0] for caption in section.pictures} == set(reports.SETS)


def test_rows_name_classes_answers_and_methods(tmp_path):
    section = changed_images.section(of_campaign(reports.finished(tmp_path)))
    assert not section.pictures
    data = section.tables[0].data
    assert {*data["change"]} == {"positive flip", "negative flip", "disputed"}
    for row in data[data["change"] != "disputed"].to_dict("records"):
        right = row["after"] if row["change"] == "positive flip" else row["before"]
        assert row["class"] == right != (set(row[k] for k in ("before", "after")) - {right}).pop()
        counts = [int(part.rpartition(" ")[2]) for part in row["by_method"].split(", ")]
        assert sum(counts) == row["models"] and counts == sorted(counts, reverse=True)


def test_two_campaigns_show_the_images_of_both(tmp_path):
    shown = [reports.pictures(sets) for sets in (["flat"], ["flat", "mono"])]
    runs = [
        reports.finished(tmp_path, name, model=name, seed=seed, thumbnails=of)
        for seed, (name, of) in enumerate(zip("ab", shown, strict=True))
    ]
    section = changed_images.section(merged(runs))
    assert {
        "flat: positive flip of a",
        "flat: negative flip of b",
        "mono: positive flip of a",
    } <= set(section.pictures)
