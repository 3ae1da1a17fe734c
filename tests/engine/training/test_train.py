"""Training: the same weights on one rank, on two and in a plain loop; the schedule; batch norms."""

import copy
import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from timm.layers.norm_act import BatchNormAct2d, SyncBatchNormAct
from torch import nn

from engine.cells.build import Builder
from engine.evaluation import passes
from engine.machine import ranks
from engine.recipe.schema import TrainRecipe
from engine.run import Run
from engine.training import batches, fisher, loop
from helpers import rank_worker
from helpers.grids import CONV, SETS, Grid, distance, images, labels, prepared, reference, weights

EPOCHS, BATCH, WARMUP = 4, 12, 3  # 25 images: 12, 12 and 1 for up to six parts; 12 steps
RATES = {"sgd": 0.02, "adamw": 5e-4}


def words_of(name: str, accumulation: int, clip: float) -> list[str]:
    """A key's bias has no gradient but noise, which AdamW would amplify: hence the large eps."""
    return [
        f"optimizer.name={name}",
        f"optimizer.lr={RATES[name]}",
        "optimizer.eps=1e-3",
        "optimizer.weight_decay=0.1",
        f"train.accumulation={accumulation}",
        f"train.clip={clip}",
        f"train.epochs={EPOCHS}",
        f"train.batch_size={BATCH}",
        f"train.warmup_steps={WARMUP}",
        "seed=4",
    ]


# Any two of the three choices take all their values.
SETTINGS = [("sgd", 1, 0.0), ("sgd", 3, 0.3), ("adamw", 1, 0.3), ("adamw", 3, 0.0)]


def plain_loop(grid: Grid, builder: Builder, name: str, clip: float) -> dict[str, torch.Tensor]:
    """The same run in plain PyTorch, float64, whole batches."""
    net = reference(builder.base.state())
    rate, options = RATES[name], {"weight_decay": 0.1}
    if name == "sgd":
        optimizer = torch.optim.SGD(net.parameters(), rate, momentum=0.9, **options)
    else:
        optimizer = torch.optim.AdamW(net.parameters(), rate, eps=1e-3, **options)
    positions = builder.target.split("train")
    total = EPOCHS * math.ceil(len(positions) / BATCH)
    norms = []
    step = 0
    for epoch in range(EPOCHS):
        order = np.random.default_rng([4, epoch]).permutation(positions)
        for start in range(0, len(order), BATCH):
            index = order[start : start + BATCH]
            warm = (step + 1) / WARMUP
            cosine = 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / (total - WARMUP)))
            optimizer.param_groups[0]["lr"] = rate * (warm if step < WARMUP else cosine)
            optimizer.zero_grad()
            logits = net(images(grid, "outline", index))
            F.cross_entropy(logits, labels(grid, "outline", index)).backward()
            norms.append(torch.nn.utils.clip_grad_norm_(net.parameters(), clip or math.inf).item())
            optimizer.step()
            step += 1
    assert not clip or max(norms) > clip, "nothing was clipped"
    return net.state_dict()


@pytest.mark.parametrize(("name", "accumulation", "clip"), SETTINGS)
def test_one_rank_equals_a_plain_loop(grid, name, accumulation, clip):
    builder, cell = grid.build(*words_of(name, accumulation, clip))
    expected = plain_loop(grid, builder, name, clip)
    assert distance(builder.base.state(), expected) > 3e-3, "a run that hardly moves shows nothing"
    assert distance(weights(cell), expected) < 1e-5
    history = json.loads((cell.artifact.folder / "history.json").read_text())
    assert [entry["step"] for entry in history] == [3 * (i + 1) for i in range(EPOCHS)]


CELLS = [
    words_of("sgd", 3, 0.3),
    ["method=ewc", "method.lam=2", "method.fisher_scale=mean", *words_of("adamw", 3, 0.3)],
    ["method=visual_prompt", *words_of("sgd", 1, 0.0)],
    ["method=lwf", "downstream=few", *words_of("adamw", 1, 0.0)],
    ["method=strong_fine_tune", *words_of("adamw", 1, 0.3)],
    ["downstream=outline+few", "train.augment=[crop]", *words_of("adamw", 3, 0.3)],
    [f"model.arch={CONV}", *words_of("sgd", 3, 0.3)],  # frozen batch norms
]
FREE = [f"model.arch={CONV}", "model.image_size=64", "train.freeze_batchnorm=false"]
REFUSED = [[*words_of("sgd", 1, 0.0), "train.batch_size=13"], FREE]


@pytest.fixture(scope="module")
def two_ranks(
    grid: Grid, forked: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> list[str]:
    """The folders of what two ranks made of CELLS, starting from our base models, why they refused
    what is REFUSED, and how far their clipped gradients are from DeepSpeed's."""
    folder = tmp_path_factory.mktemp("two")
    bases = [(), (f"model.arch={CONV}",), FREE]
    place = grid.elsewhere(folder / "runs", *(grid.builder(*words) for words in bases))
    jobs = [{"words": words, "runs": place.runs} for words in [*CELLS, *REFUSED]]
    jobs[0]["how"] = "evaluate"
    process, results = rank_worker.run(grid, folder, [*jobs, {"how": "clip"}], 2, forked)
    assert process.returncode == 0, process.stderr[-3000:]
    return [cell_or_message for cell_or_message, *_ in results]


@pytest.mark.slow
def test_two_ranks_equal_one_rank(grid, two_ranks):
    for words, folder in zip(CELLS, map(Path, two_ranks), strict=False):
        _, cell = grid.build(*words)
        assert distance(load_file(folder / "weights.safetensors"), weights(cell)) < 1e-5, words
        of_one_rank, of_two_ranks = (
            json.loads((at / "history.json").read_text()) for at in (cell.artifact.folder, folder)
        )
        for single, double in zip(of_one_rank, of_two_ranks, strict=True):
            assert double == pytest.approx(single, rel=1e-3), words
        assert ("penalty" in of_one_rank[-1]) == ("method=ewc" in words)
        if cell.prompt() is not None:
            two = load_file(folder / "prompt.safetensors")
            assert distance(two, {"prompt": cell.prompt()}) < 1e-5


def test_a_filler_touches_no_statistics(grid):
    """A batch of one image in three micro-batches: two of them are fillers."""
    words = ("train.epochs=1", "train.batch_size=24", "train.accumulation=3")
    builder, cell = grid.build(*FREE, *words)
    before, after = builder.base.state(), weights(cell)
    counts = [name for name in after if "num_batches" in name]
    assert counts and all(after[name] - before[name] == 3 + 1 for name in counts)


@pytest.mark.slow
def test_two_ranks_refuse_a_batch_that_does_not_divide_and_batch_norms_that_learn(two_ranks):
    *_, uneven, free, _ = two_ranks
    assert "train.batch_size=13 is not divisible by 2 ranks" in uneven
    assert "requires GPUs: set train.freeze_batchnorm=true" in free


@pytest.mark.slow
def test_two_ranks_clip_as_deepspeed_does(two_ranks):
    assert two_ranks[-1] == 0.0


@pytest.mark.slow
def test_two_ranks_evaluate_as_one_does_bit_for_bit(grid, two_ranks):
    """The same weights under the same names, in two stores: one's predictions are dropped."""
    folder = Path(two_ranks[0])
    grid_of_two_ranks = Grid(grid.folder, folder.parents[2], grid.device)
    builder, cell = grid_of_two_ranks.build(*CELLS[0])
    assert cell.artifact.folder == folder
    mixes = [{cell.name: 1.0}, {builder.base.name: 0.5, cell.name: 0.5}]
    paths = [passes.predicted(builder, m, name, "all") for m in mixes for name in SETS]
    two = [pq.read_table(path) for path in paths]
    for path in paths:
        shutil.rmtree(path.parent)
    passes.evaluate(builder, mixes, SETS, "all")
    assert all(pq.read_table(p).equals(t) for p, t in zip(paths, two, strict=True))


def fake_run(seed: int, batch_size: int, accumulation: int) -> SimpleNamespace:
    settings = SimpleNamespace(batch_size=batch_size, accumulation=accumulation)
    return SimpleNamespace(recipe=SimpleNamespace(seed=seed, train=settings))


def shares(n: int, epoch: int, world: int, run: SimpleNamespace) -> list[list[batches.Share]]:
    """Every rank's shares of an epoch, positions being 10, 11, ..."""
    positions = np.arange(10, 10 + n)
    return [list(batches.epoch_shares(positions, run, epoch, r, world)) for r in range(world)]


@given(
    n=st.integers(1, 60),
    world=st.integers(1, 4),
    accumulation=st.integers(1, 4),
    micro=st.integers(1, 4),
    seed=st.integers(0, 3),
    epoch=st.integers(0, 3),
)
def test_a_schedule_sees_every_sample_once_with_the_weight_of_a_mean(
    n, world, accumulation, micro, seed, epoch
):
    parts = world * accumulation
    run = fake_run(seed, micro * parts, accumulation)
    by_rank = shares(n, epoch, world, run)
    (plain,) = shares(n, epoch, 1, fake_run(seed, micro * parts, 1))
    steps = math.ceil(n / (micro * parts))
    assert [len(rank_shares) for rank_shares in by_rank] == [steps * accumulation] * world
    for step, whole in enumerate(plain):
        micro_batches = [
            [shares_of_rank[step * accumulation + micro] for shares_of_rank in by_rank]
            for micro in range(accumulation)
        ]
        for micro_batch in micro_batches:
            samples = sum(len(share.index) for share in micro_batch if share.weight)
            assert all(share.samples == samples for share in micro_batch)
        step_shares = [share for micro_batch in micro_batches for share in micro_batch]
        assert all(1 <= len(share.index) <= micro for share in step_shares)
        positions = np.concatenate([share.index for share in step_shares if share.weight])
        np.testing.assert_array_equal(positions, whole.index)
        # DeepSpeed sums over ranks and averages over micro-batches: every sample must weigh
        # 1 / len(batch).
        for share in step_shares:
            assert share.weight in (0.0, pytest.approx(accumulation / len(whole.index)))
    everything = np.concatenate([share.index for share in plain])
    np.testing.assert_array_equal(np.sort(everything), np.arange(10, 10 + n))


def test_a_step_computes_in_the_precision_of_the_recipe(grid, monkeypatch):
    """DeepSpeed switches an outer autocast off, but looks at the GPU's alone."""
    is_enabled = torch.is_autocast_enabled
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind="cpu": is_enabled(kind))
    made = prepared(grid, "train.precision=bf16")
    dtypes = set()
    layer = made.method.net.patch_embed.proj  # norms and the head are in fp32 all the same
    layer.register_forward_hook(lambda layer, images, patches: dtypes.add(patches.dtype))
    with loop.initialized(made.method, made.builder) as engine:
        loop.epochs(engine, made.method, made.builder)
    assert dtypes == {torch.bfloat16}


def test_a_warm_up_is_a_tenth_of_the_steps_and_196_at_most():
    for total, steps in ((300, 30), (9, 0), (1960, 196), (9999, 196)):
        assert TrainRecipe(warmup_steps=None).warmup(total) == steps
    assert TrainRecipe(warmup_steps=3).warmup(20) == 3
    never_ends = r"warmup_steps=10, .* 6 steps.*set train\.warmup_steps=null"
    with pytest.raises(ValueError, match=never_ends):
        TrainRecipe(warmup_steps=10).warmup(6)


def test_a_cell_is_made_on_its_recipes_threads_whatever_a_launcher_allows(grid, monkeypatch):
    """Sums of another number of threads round otherwise, under the same name."""
    threads: list[int] = []

    def noted(module, name) -> None:
        work = getattr(module, name)

        def counted(*arguments, **options):
            threads.append(torch.get_num_threads())
            return work(*arguments, **options)

        monkeypatch.setattr(module, name, counted)

    for module, name in ((loop, "epochs"), (passes, "reduced"), (fisher, "diagonal")):
        noted(module, name)
    torch.set_num_threads(3)
    words = ["method=ewc", "method.fisher_images=5", "seed=7", "train.epochs=1"]
    words += ["train.batch_size=25", "train.warmup_steps=0"]
    for count in (1, 2):
        builder, cell = grid.build(*words, f"threads={count}")
        passes.evaluate(builder, [{cell.name: 1.0}], ["tinted"], "all")
        assert len(threads) >= 2 and set(threads) == {count}  # the Fisher may be there
        versions = json.loads((cell.artifact.folder / "versions.json").read_text())
        assert (versions["threads"], versions["ranks"]) == (str(count), "1") and versions["cpu"]
        threads.clear()
    assert torch.get_num_threads() == 3
    torch.set_num_threads(1)


def test_a_batch_that_does_not_divide_is_refused(grid):
    with pytest.raises(ValueError, match=r"batch_size=12 is not .* train.accumulation=5"):
        grid.build("train.accumulation=5")


GPU = torch.device("cuda")  # nothing computes on it
LEARN = (f"model.arch={CONV}", "train.freeze_batchnorm=false")


def on(device: torch.device, run: Run) -> Run:
    moved = copy.copy(run)
    moved.device = device
    return moved


def test_several_gpus_train_torchs_synchronised_batch_norms(grid: Grid, monkeypatch):
    made = prepared(grid, *LEARN, "train.batch_size=5")
    before = dict(made.method.named_parameters())
    kinds = [type(norm) for norm in loop.learning_norms(made.method)]
    assert BatchNormAct2d in kinds
    monkeypatch.setattr(ranks, "world", lambda: 2)
    loop.synchronise_norms(made.method, on(GPU, made.builder))
    after = loop.learning_norms(made.method)
    assert len(after) == len(kinds) and all(isinstance(norm, nn.SyncBatchNorm) for norm in after)
    assert sum(isinstance(norm, SyncBatchNormAct) for norm in after) == kinds.count(BatchNormAct2d)
    parameters = dict(made.method.named_parameters())
    assert parameters.keys() == before.keys()
    assert all(parameters[name] is before[name] for name in before)


def test_synchronised_batch_norms_are_not_compiled(grid: Grid, monkeypatch):
    """Of the graphs of a training, each covers a whole forward pass; SyncBatchNorm's would end at
    every norm (`aten.nonzero`, for which the host waits)."""
    made = prepared(grid, *LEARN, "train.compile=always")
    options = []
    monkeypatch.setattr(loop, "compile_in_place", lambda _, option, __: options.append(option))
    for several in (False, True):
        monkeypatch.setattr(loop, "synchronise_norms", lambda *_, several=several: several)
        with loop.initialized(made.method, made.builder):
            pass
    assert options == ["always", "never"]


def test_what_ranks_cannot_share_is_refused_by_the_key_to_set(grid: Grid, monkeypatch):
    made = prepared(grid, *LEARN)
    few = prepared(grid, *LEARN, "train.batch_size=24")  # and then one image
    frozen = prepared(grid, f"model.arch={CONV}")
    monkeypatch.setattr(ranks, "world", lambda: 2)
    loop.synchronise_norms(frozen.method, frozen.builder)
    with pytest.raises(ValueError, match=r"requires GPUs: set train\.freeze_batchnorm=true"):
        loop.synchronise_norms(made.method, made.builder)
    with pytest.raises(
        ValueError, match=r"has 1 images, but training batch norms needs.*change train\.batch_size"
    ):
        loop.synchronise_norms(few.method, on(GPU, few.builder))


def test_an_epochs_loss_is_the_mean_of_its_steps_however_often_it_is_read(grid, monkeypatch):
    losses = []
    for every in (50, 1):
        monkeypatch.setattr(loop, "LOOK_EVERY", every)
        case = prepared(grid, "optimizer.lr=0.2", "train.epochs=1")
        with loop.initialized(case.method, case.builder) as engine:
            losses += [row["loss"] for row in loop.epochs(engine, case.method, case.builder)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
