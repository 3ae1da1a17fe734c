"""`rib bench` on a CPU: a row for each method and pass, and what it refuses."""

from __future__ import annotations

import json

import pytest

from engine import cli

SMALL = ["vit_tiny_random", "device=cpu", "--steps", "2", "--batch", "2,4"]


@pytest.mark.slow
def test_a_row_for_each_method_and_pass(tmp_path, capsys):
    file = tmp_path / "speed.json"
    assert cli.main(["bench", *SMALL, "--json", str(file)]) == 0
    table = capsys.readouterr().out
    rows = json.loads(file.read_text())["rows"]
    names = ["fine_tune", "ewc", "lwf", "evaluation", "plain training", "plain evaluation"]
    assert [(row["what"], row["batch"]) for row in rows] == [
        (name, batch) for batch in (2, 4) for name in names
    ]
    for row in rows:
        assert row["what"] in table and row["peak_mb"] is None and row["mfu"] > 0
        assert row["images_s"] == pytest.approx(1e3 * row["batch"] / row["ms"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["vit_tiny_random", "--batch", "64,none"], "numbers above 0, as 64,256 and 20"),
        (["vit_tiny_random", "--methods", "wise_ft", *SMALL[1:]], "wise_ft mixes finished cells"),
        (["vit_tiny_random", "--pack", "nowhere", *SMALL[1:]], "nowhere: missing"),
    ],
)
def test_what_cannot_be_timed_is_named(words, message, capsys):
    assert cli.main(["bench", *words]) == 2
    assert message in capsys.readouterr().err
