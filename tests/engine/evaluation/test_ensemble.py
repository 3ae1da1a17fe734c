"""Output ensembles: the mean of logits, without a forward pass beside the members' own."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from evaluations import (
    IMAGES,
    SET,
    Counted,
    expected,
    fresh,
    mixes,
    room_for_models,
    same,
    small_slices,
    tables,
)
from grids import CLASSES, FEW, grid, images, labels, reference

from engine.evaluation import bank, passes
from engine.measures import predictions
from engine.store import cells
from engine.store.cells import Ensemble, Entry

__all__ = ["expected", "fresh", "grid", "mixes", "small_slices"]


@pytest.fixture
def members(mixes) -> list[cells.Mix]:
    """A fine-tuned model, one with a prompt, the pre-trained one and a probe."""
    return mixes[4:]


def of(members: list[cells.Mix]) -> Ensemble:
    return Ensemble(name for mix in members for name in mix)


@pytest.mark.parametrize("name", ["tinted", "few"])  # few: among three of the head's classes
def test_an_ensemble_is_the_mean_of_its_members_logits(grid, name):
    words = "method.members=[pre,fine_tune,visual_prompt]"
    builder, cell = grid.build("method=ensemble", words)
    (entry,) = cell.entries
    members = [builder.base, builder.cell("fine_tune"), builder.cell("visual_prompt")]
    assert entry == Entry(Ensemble(member.name for member in members))
    passes.evaluate(builder.run, [entry.mix], [name], "all")
    path = passes.predicted(builder.run, entry.mix, name, "all")
    assert predictions.mix_of(path) == cells.essential(entry.mix)
    table = pq.read_table(path)
    index = table["index"].to_numpy()
    x, truth = images(grid, name, index), labels(grid, name, index)
    with torch.no_grad():
        logits = [
            reference(member.state())(x if (prompt := member.prompt()) is None else x + prompt)
            for member in members
        ]
    mean = torch.stack(logits).mean(0)
    assert {len(set(single.argmax(1).tolist())) for single in logits} != {1}
    if name == "few":
        mean[:, [CLASSES.index(other) for other in set(CLASSES) - set(FEW)]] = -torch.inf
    p = mean.softmax(dim=1)
    assert table["top1"].to_pylist() == mean.argmax(1).tolist()
    of_truth = p.gather(1, truth[:, None])[:, 0]
    np.testing.assert_allclose(table["p_top1"], p.amax(1), rtol=1e-4)
    np.testing.assert_allclose(table["p_true"], of_truth, rtol=1e-3, atol=1e-30)
    rivals = mean.scatter(1, truth[:, None], -torch.inf).amax(1)
    margins = mean.gather(1, truth[:, None])[:, 0] - rivals
    np.testing.assert_allclose(table["margin"], margins, rtol=1e-4, atol=1e-4)
    # The mean of probabilities, and the mean of weights, are other models.
    of_probabilities = torch.stack([single.softmax(1) for single in logits]).mean(0)
    assert not np.allclose(of_probabilities.amax(1), table["p_top1"], rtol=1e-2)


def test_an_ensemble_costs_no_forward_pass(
    fresh, mixes, members, expected, small_slices, monkeypatch
):
    """Of models that see the images anyway, which a head on stored features does not."""
    forward, seen = bank.forward, []

    def counting(model, x_BCHW):
        seen.append(len(x_BCHW))
        return forward(model, x_BCHW)

    monkeypatch.setattr(bank, "forward", counting)
    counted = Counted(monkeypatch)
    ensemble = of(members[:2])
    *alone, of_ensemble = tables(fresh.builder(), [*mixes, ensemble])
    assert same(alone, expected)  # to the bit
    assert (counted.images, counted.models) == (IMAGES, 6)
    assert sum(seen) == 6 * IMAGES  # the six models that an evaluation without it runs
    # Without its members beside it, it is the same to the bit; they run for it.
    (place,) = (fresh.runs / "store" / "predictions").glob(f"*{_hash(fresh, ensemble)}")
    place.rename(fresh.runs / "away")
    del seen[:]
    assert same(tables(fresh.builder(), [ensemble]), [of_ensemble])
    assert sum(seen) == 2 * IMAGES


def _hash(grid, ensemble: Ensemble) -> str:
    builder = grid.builder()
    key = passes.key_of(builder.run, cells.essential(ensemble), builder.sets[SET], "all")
    return builder.store.place("predictions", *key).name.rpartition("-")[2]


def test_a_bank_that_does_not_fit_holds_an_ensembles_members_together(
    grid, fresh, mixes, members, monkeypatch
):
    ensembles = [of(members[:3]), of(members[1:])]
    models = [*mixes, *ensembles]
    apart = tables(grid.builder(), models)
    monkeypatch.setattr(bank, "free_memory", lambda device: room_for_models(grid, mixes, 3))
    counted = Counted(monkeypatch)
    assert same(tables(fresh.builder(), models), apart)
    # The six, the two heads as whole models, and two that are members of both ensembles.
    assert counted.models == 6 + 2 + 2


def test_an_ensemble_that_does_not_fit_is_refused(grid, fresh, mixes, members, monkeypatch):
    monkeypatch.setattr(bank, "free_memory", lambda device: room_for_models(grid, mixes, 2))
    with pytest.raises(ValueError, match=r"the ensemble of .*fine_tune.* needs 3 models .* 2 fit"):
        tables(fresh.builder(), [*mixes, of(members[:3])])


def test_groups_repeat_no_model_where_ensembles_share_their_members():
    alone = [{name: 1.0} for name in "abcdef"]
    ensembles = [Ensemble("cf"), Ensemble("bf"), Ensemble("cf")]
    groups = bank.groups([*alone, *ensembles], 3)
    assert [sorted(map(str, group)) for group in groups] == [
        sorted(map(str, [*ensembles, *(alone[k] for k in (1, 2, 5))])),
        sorted(map(str, [alone[0], alone[3], alone[4]])),
    ]


def test_a_mix_and_an_ensemble_of_the_same_cells_have_predictions_of_their_own(grid):
    builder, cell = grid.build("method=ensemble", "method.members=[pre,fine_tune]")
    (entry,) = cell.entries
    mix = dict.fromkeys(entry.mix, 0.5)
    passes.evaluate(builder.run, [entry.mix, mix], [SET], "all")
    one, other = (passes.predicted(builder.run, each, SET, "all") for each in (entry.mix, mix))
    assert one != other
    assert not pq.read_table(one)["p_true"].equals(pq.read_table(other)["p_true"])
    turned = Ensemble(reversed(entry.mix))
    assert passes.predicted(builder.run, turned, SET, "all") == one


@pytest.mark.parametrize("members", ["[]", "[fine_tune]", "[pre,pre]", "[ewc,lwf,ewc]"])
def test_members_are_two_or_more_and_none_twice(grid, members):
    with pytest.raises(ValueError, match="name two methods or more, or `pre`, none twice"):
        grid.builder("method=ensemble", f"method.members={members}")


def test_no_method_starts_from_an_ensemble(grid):
    with pytest.raises(ValueError, match="soup needs ensemble, which mixes cells"):
        grid.builder("method=soup", "method.members=[pre,ensemble]")
