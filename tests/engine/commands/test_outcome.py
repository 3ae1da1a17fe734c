"""What a finished cell says in the terminal, of made-up accuracies."""

from __future__ import annotations

from types import SimpleNamespace

from engine.commands import outcome
from engine.evaluation.accuracies import OnSet


def test_every_set_that_ri_does_not_count_is_marked(tmp_path, monkeypatch, capsys):
    def on(name: str, accuracy: float, **change: float) -> OnSet:
        return OnSet("", "", "", None, "", "", name, 50, accuracy, **change)

    changes = {"a": 9.0, "b": 1.0, "c": 2.0, "up": 5.0}
    pairs = {
        name: (on(name, 40), on(name, 40 + c, change=c, change_low=c - 1, change_high=c + 1))
        for name, c in changes.items()
    }
    monkeypatch.setattr(outcome.passes, "evaluate", lambda *_: None)
    monkeypatch.setattr(outcome.accuracies, "compared", lambda *_, **__: pairs)
    monkeypatch.setattr(outcome.trackers, "log_accuracies", lambda *_: None)
    dataset = SimpleNamespace(sets=["a", "b", "c"], upstream="up", places=["up", "a", "b", "c"])
    method = SimpleNamespace(title="FT", variant="canonical")
    recipe = SimpleNamespace(dataset=dataset, downstream="a", method=method, split_of=str)
    run = SimpleNamespace(recipe=recipe, base=SimpleNamespace(name="base"))
    entry = SimpleNamespace(headline=True, mix={"tuned": 1.0})
    cell = SimpleNamespace(entries=[entry], artifact=SimpleNamespace(folder=tmp_path))
    outcome.show(run, cell)  # pyright: ignore[reportArgumentType]
    shown = capsys.readouterr().out
    marked = {line.split()[0] for line in shown.splitlines() if line.rstrip().endswith("*")}
    assert {"a", "up"} == marked & {"a", "b", "c", "up"}
    assert "RI +1.50 points, the mean change over the sets without *" in shown
    assert "±1.0" in shown
