"""Training on augmented images: the same images on any ranks, and no stored teacher."""

import dataclasses

import numpy as np
import pytest
import torch

from engine.cost import estimate, work
from engine.training.batches import batches, epoch_shares
from helpers.grids import prepared, trained

WORDS = ("train.augment=[crop,hflip]", "train.epochs=1")


def test_ranks_and_resumption_see_the_same_images(grid):
    run = grid.builder(*WORDS)
    positions = run.target.training(run.recipe)
    (whole,) = (list(epoch_shares(positions, run, 1, 0, 1)),)
    images = {
        int(position): image
        for share, batch in zip(whole, batches(run, whole, 1), strict=True)
        for position, image in zip(share.index, batch.images, strict=True)
    }
    assert len(images) == len(positions) and len({t.numpy().tobytes() for t in images.values()}) > 1
    of_ranks = [list(epoch_shares(positions, run, 1, rank, 2))[1:] for rank in range(2)]
    for shares in of_ranks:  # from the second step on, as after an interruption
        for share, batch in zip(shares, batches(run, shares, 1), strict=True):
            assert batch.images.shape[1:] == (3, 32, 32)
            for position, image in zip(share.index, batch.images, strict=True):
                assert torch.equal(image, images[int(position)])
    (other,) = (next(batches(run, whole[:1], 0)),)
    assert not torch.equal(other.images[0], images[int(whole[0].index[0])])


def test_crops_read_larger_images_of_the_same_photos(grid):
    run = grid.builder(*WORDS)
    larger = run.sets.training_source(run.recipe).pack
    assert larger.shape == (37, 37) and np.array_equal(larger.keys, run.target.pack.keys)
    plain = grid.builder("train.augment=[hflip]", "train.epochs=1")
    assert plain.sets.training_source(plain.recipe).pack.shape == (32, 32)


@pytest.mark.parametrize("augment", ["[]", "[crop,hflip]"])
def test_the_teacher_sees_the_images_that_the_student_sees(grid, augment):
    case = prepared(grid, "method=lwf", f"train.augment={augment}", "train.epochs=1")
    run = case.builder
    shares = list(epoch_shares(run.target.training(run.recipe), run, 0, 0, 1))[:1]
    (batch,) = batches(run, shares, 0)
    case.method.eval()
    with torch.no_grad():
        before_training = case.method.logits(batch)
    torch.testing.assert_close(case.method.teacher(batch), before_training, atol=1e-4, rtol=1e-4)


def test_training_learns_and_its_key_knows_the_augmentation(grid):
    plain, flipped = grid.builder("train.epochs=1"), grid.builder("train.augment=[hflip]", WORDS[1])
    assert plain.key()["train"] | {"augment": ["hflip"]} == flipped.key()["train"]
    states = trained(prepared(grid, *WORDS))
    assert all(t.isfinite().all() for t in states[-1].values())
    moved = [name for name, t in states[-1].items() if not torch.equal(t, states[0][name])]
    assert moved


def test_its_cost_counts_passes_and_larger_images(grid):
    plain, augmented = (
        [grid.builder("method=lwf", f"train.augment={words}").recipe] for words in ("[]", "[crop]")
    )
    sizes = {name: work.size_of(plain[0], name) for name in plain[0].base_sets}
    net = work.network(plain[0], 5)
    one, two = (work.column([cells], sizes, net)[0][0] for cells in (plain, augmented))
    assert two.operations == pytest.approx(one.operations * 4 / 3)
    stored = [estimate.campaign_cost([[cells]], 1).disk["packs"] for cells in (plain, augmented)]
    assert stored[1] > stored[0]
    assert dataclasses.replace(two, operations=0, traffic=0) == dataclasses.replace(
        one, operations=0, traffic=0
    )
