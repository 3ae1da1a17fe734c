"""What a finished cell says in the terminal, of made-up predictions."""

from __future__ import annotations

from types import SimpleNamespace

import pyarrow.parquet as pq
from stores import random_hits, table

from engine.commands import outcome


def test_every_set_that_ri_does_not_count_is_marked(tmp_path, monkeypatch, capsys):
    hits = random_hits()

    def predicted(run, mix, name, split):
        path = tmp_path / f"{next(iter(mix))}-{name}.parquet"
        if not path.exists():
            pq.write_table(table(hits("", "", name)), path)
        return path

    monkeypatch.setattr(outcome.splits, "split_of", lambda *_: "all")
    monkeypatch.setattr(outcome.passes, "evaluate", lambda *_: None)
    monkeypatch.setattr(outcome.passes, "predicted", predicted)
    monkeypatch.setattr(outcome.trackers, "log_accuracies", lambda *_: None)
    dataset = SimpleNamespace(sets=["a", "b", "c"], upstream="up")
    method = SimpleNamespace(title="FT", variant="canonical")
    recipe = SimpleNamespace(dataset=dataset, downstream="a", method=method)
    run = SimpleNamespace(recipe=recipe, base=SimpleNamespace(name="base"))
    entry = SimpleNamespace(headline=True, mix={"tuned": 1.0})
    cell = SimpleNamespace(entries=[entry], artifact=SimpleNamespace(folder=tmp_path))
    outcome.show(run, cell)  # pyright: ignore[reportArgumentType]
    lines = capsys.readouterr().out.splitlines()
    marked = {line.split()[0] for line in lines if line.rstrip().endswith("*")}
    assert {"a", "up"} == marked & {"a", "b", "c", "up"}
    assert any("over the sets without *" in line for line in lines)
