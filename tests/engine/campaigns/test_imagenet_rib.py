"""ImageNet-RIB on tiny trees of its official layouts: mask, group, train, evaluate, RI."""

import dataclasses
import math

import numpy as np
import pyarrow.parquet as pq
import pytest
import timm
import torch

from engine import cli, models
from engine.cells.build import Builder
from engine.cells.plan_cell import plan_cell
from engine.commands import outcome
from engine.data import imagenet, masks, sets
from engine.data.kinds.imagenet import SIZES
from engine.data.sets import LabelledSet
from engine.evaluation import passes
from engine.machine.files import cache_folder
from engine.measures.predictions import SetPredictions
from engine.measures.rows import robustness_improvement
from engine.recipe.methods import METHODS
from engine.recipe.overrides import parsed
from engine.store import tensors
from helpers import grids
from helpers import imagenet_trees as trees
from helpers.encoded_rib import SUBSAMPLE
from helpers.twins import assert_near

SETS = [name for name in SIZES if name not in ("imagenet_train", "imagenet_val")]


def test_every_set_opens_with_the_heads_labels_and_its_mask(rib):
    builder = rib.builder()
    assert builder.sets.classes == imagenet.wnids()
    for name in ("imagenet_val", *SETS):
        labelled = builder.sets[name]
        wnids = [labelled.pack.classes[label].split("+")[0] for label in labelled.pack.labels]
        assert labelled.labels.tolist() == [trees.PLACES[wnid] for wnid in wnids]
        unmasked = None if labelled.mask is None else int(labelled.mask.sum())
        assert unmasked == {"imagenet_a": 200, "imagenet_r": 200, "objectnet": 4}.get(name), name
        assert (labelled.members is None) == (name != "objectnet")
        assert (labelled.group is None) == (name != "imagenet_c")
    val = set(builder.sets["imagenet_val"].pack.sources)
    for name in SETS:  # drawn from its images, so that intervals resample them as one
        sources = set(builder.sets[name].pack.sources)
        drawn = name in ("imagenet_cartoon", "imagenet_drawing", "imagenet_c")
        assert (sources <= val) if drawn else not sources & val, name
    objects = builder.sets["objectnet"]
    assert objects.members.shape == (4, 2)
    for wnids, row in zip(objects.pack.classes, objects.members.tolist(), strict=True):
        assert {imagenet.wnids()[place] for place in row} == set(wnids.split("+"))


def test_masks_are_the_users_choice(rib):
    """Two objects of ObjectNet are two classes here, of which the first answers for both."""
    recipe, device = rib.builder().recipe, rib.device
    for mask, rule, outputs in (("none", "none", 998), ("benchmark", "present", 4)):
        labelled = sets.Sets(recipe, device, cache_folder(), mask=mask)["objectnet"]
        assert labelled.mask[labelled.labels].all()
        assert (labelled.mask_rule, int(labelled.mask.sum())) == (rule, outputs)
    with pytest.raises(ValueError, match=r"mask 'nine' is not valid; did you mean 'none'"):
        sets.Sets(recipe, device, cache_folder(), mask="nine")


def test_objects_lose_their_red_frame_before_timms_transform(rib):
    config = timm.get_pretrained_cfg(grids.VIT)
    transform = timm.data.create_transform(
        (3, 32, 32), interpolation=config.interpolation, crop_pct=1.0, mean=(0,) * 3, std=(1,) * 3
    )
    pack = rib.builder().sets["objectnet"].pack
    number = list(trees.FOLDERS).index(pack.keys[0].split("/")[0])
    pixels = transform(trees.picture([3, number, 0]).convert("RGB")) * 255
    assert np.array_equal(pack.pixels([0])[0], pixels.round().permute(1, 2, 0).numpy())


def test_a_cell_on_grouped_classes_to_its_ri(rib, capsys):
    builder = rib.builder()
    cell = builder.build()
    outcome.show(builder, cell)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    accuracy = {words[0]: words[1:4] for words in lines[4:-3]}
    assert set(accuracy) == {*SETS, "imagenet_val"}
    marked = {words[0] for words in lines if words[-1:] == ["*"]}
    assert marked & {*accuracy} == {"objectnet", "imagenet_val"}, "which RI does not count"
    assert accuracy["imagenet_c"][0] == str(SUBSAMPLE)
    (ri,) = [float(words[1]) for words in lines if words[:1] == ["RI"]]
    before, after = ({name: float(accuracy[name][k]) for name in SETS} for k in (1, 2))
    expected = robustness_improvement("objectnet", after, before, SETS)
    assert ri == pytest.approx(expected, abs=0.1)


def of_objects(labelled: LabelledSet, logits: torch.Tensor) -> torch.Tensor:
    """The largest logit of each of a set's groups of classes."""
    groups = [[trees.PLACES[w] for w in name.split("+")] for name in labelled.pack.classes]
    return torch.stack([logits[:, places].amax(1) for places in groups], dim=1)


def test_predictions_on_objects_are_those_of_the_largest_member(rib):
    builder = rib.builder()
    mix = {builder.base.name: 1.0}
    passes.evaluate(builder, [mix], ["objectnet"], "all")
    table = pq.read_table(passes.predicted(builder, mix, "objectnet", "all"))
    labelled = builder.sets["objectnet"]
    net = builder.network(builder.base)
    normalize = models.Normalize(builder.recipe.model, builder.device)
    pixels = torch.from_numpy(labelled.pack.pixels(range(len(labelled.pack)))).permute(0, 3, 1, 2)
    with torch.no_grad():
        by_object = of_objects(labelled, net(normalize(pixels)).double())
    places = [trees.PLACES[name.split("+")[0]] for name in labelled.pack.classes]
    assert table["top1"].to_pylist() == torch.tensor(places)[by_object.argmax(1)].tolist()
    p, labels = by_object.softmax(1), torch.from_numpy(np.array(labelled.pack.labels))
    true = p.gather(1, labels[:, None])[:, 0]
    assert np.allclose(table["p_true"].to_numpy(), true.numpy(), atol=1e-5)
    assert np.allclose(table["p_top1"].to_numpy(), p.amax(1).numpy(), atol=1e-5)


@pytest.mark.parametrize("method", ["fine_tune", "lwf"])
def test_losses_see_grouped_classes(rib, method):
    builder = rib.builder(f"method={method}")
    torch.manual_seed(0)
    built = METHODS.find(builder.recipe.method.module).Method(builder.recipe.method)
    built.prepare(builder.network(builder.base), builder)
    built.train()
    (batch,) = builder.sets.source("objectnet").batches([np.array([0, 3, 5])])
    loss = built.loss(batch)
    labelled = builder.sets["objectnet"]
    labels = torch.from_numpy(np.array(labelled.pack.labels[[0, 3, 5]]))
    x = built.normalize(batch.images)
    by_object = of_objects(labelled, built.net(x))
    expected = torch.nn.functional.cross_entropy(by_object, labels, reduction="none")
    if method == "lwf":
        with torch.no_grad():
            before = of_objects(labelled, builder.network(builder.base)(x))
        q, log_p = (before / 2).softmax(1), (by_object / 2).log_softmax(1)
        expected = expected + 4 * (q * (q.log() - log_p)).sum(1)
    assert_near(loss, expected, rtol=1e-5, atol=2e-5)
    loss.mean().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in built.parameters())


def members_of(classes: list[str], position: dict[str, int]) -> torch.Tensor | None:
    return masks.members({name: masks.names(name, position) for name in classes}, position)


def test_gradient_of_grouped_logits_goes_to_the_largest_member():
    position = {name: i for i, name in enumerate("abcdef")}
    members = members_of(["a+c", "b", "d+e+f"], position)
    assert members.tolist() == [[0, 2, 0], [1, 1, 1], [3, 4, 5]]
    logits = torch.tensor([[1.0, 5, 3, 0, 9, 2]], dtype=torch.float64, requires_grad=True)
    maxima = masks.grouped(logits, members)
    assert maxima[0, [0, 1, 3]].tolist() == [3, 5, 9] and maxima.shape == logits.shape
    maxima[0, [0, 1, 3]].sum().backward()
    assert logits.grad.tolist() == [[0, 1, 1, 0, 1, 0]]
    sums = masks.grouped(logits, members, "sum")
    assert sums[0, 0].item() == pytest.approx(math.log(math.exp(1) + math.exp(3)))
    means = masks.grouped(logits, members, "mean")
    probabilities = logits.softmax(1)[0]
    of_means = means[0, [0, 1, 3]] - logits.logsumexp(1)
    expected = [probabilities[[0, 2]].mean(), probabilities[1], probabilities[3:].mean()]
    assert torch.allclose(of_means.exp(), torch.stack(expected))
    assert members_of(["a", "c"], position) is None
    assert masks.grouped(logits, None) is logits
    for classes in (["a+c", "b+c"], ["c", "b+c"]):
        with pytest.raises(ValueError, match=r"classes .*c and b\+c share the output c"):
            members_of(classes, position)


def test_released_variant_of_objectnet_is_a_plain_mask(rib):
    assert rib.encode("objectnet", rib.folder / "o", "--partial", "dataset.objectnet=released") == 0
    usual, released = rib.builder(), rib.builder("dataset.objectnet=released")
    labelled = released.sets["objectnet"]
    assert labelled.members is None and labelled.mask.sum() == 3
    assert usual.target.pack.fingerprint != released.target.pack.fingerprint
    assert usual.key() != released.key(), "no cell is of both"


def test_accuracy_on_corruptions_is_their_mean(rib):
    builder = rib.builder()
    mix = {builder.base.name: 1.0}
    passes.evaluate(builder, [mix], ["imagenet_c"], "all")
    path = passes.predicted(builder, mix, "imagenet_c", "all")
    table = pq.read_table(path).to_pandas()
    hit = table.index % 3 == 0  # as a model that is right on every third image
    parts = table.assign(hit=hit).groupby("group")["hit"].mean()
    by_corruption = parts.groupby(parts.index.str.split("/").str[0]).mean()
    assert (len(parts), len(by_corruption)) == (75, 15)
    images = SetPredictions()
    images.add(path)
    actual = images.by_source(hit).sum() / images.total.sum()
    assert actual == pytest.approx(by_corruption.mean()) != pytest.approx(hit.mean())


def test_the_in1k_stage_of_a_backbone_without_a_head(rib):
    """The recipe on a tiny training set; its cell is then the pretrained model of a campaign."""
    alone = ("model=vit_tiny_random", "model.head.fit=true", "train.batch_size=4", "train.epochs=1")
    alone += ("train.warmup_steps=null",)  # of two steps
    alone += ("train.augment=[]", "train.crop_scale=[0.08,1]")  # no second pack
    stage = plan_cell("imagenet_rib/pre_fine_tune", parsed((*alone, *rib.words)))
    builder = Builder(stage, rib.device)
    cell = builder.build()
    path = cell.artifact.file(tensors.WEIGHTS)
    tuned = ("model.head.fit=false", "model.weights.source=file", f"model.weights.path={path}")
    after = rib.builder(*tuned)
    net = after.network(after.base)
    assert grids.same(dict(net.state_dict()), grids.weights(cell))
    assert models.head(net).out_features == 1000
    passes.evaluate(after, [{after.base.name: 1.0}], ["imagenet_a"], "all")


@pytest.mark.slow
def test_verify_shares_its_predictions_with_campaigns(rib, capsys, tmp_path):
    torch.manual_seed(0)
    weights = tmp_path / "own.safetensors"
    plain = dataclasses.replace(rib.builder().recipe.model, projection=0)
    tensors.save(models.create(plain, 1000).state_dict(), weights)
    from_file = ["model.head.fit=false", "model.weights.source=file"]
    from_file.append(f"model.weights.path={weights}")
    options = ("--campaign", str(rib.folder / "rib.yaml"))
    words = ("verify", "vit_tiny_random", *options, *rib.words, *from_file)
    assert cli.main([*words, "model.published.imagenet_a=80"]) in (0, 1)
    assert "DIFFERS by more than 33.0" in capsys.readouterr().out  # 0.3, and 2 errors at 80% of 6
    builder = rib.builder(*from_file)
    for name in ("imagenet_val", *SETS):
        assert passes.find(builder, {builder.base.name: 1.0}, name, "all"), name
    runs = f"runs={tmp_path / 'runs'}"
    assert rib.encode("imagenet_a", rib.folder / "a", "--partial", runs) == 0
    assert cli.main([*words, runs]) == 0, "the classes are known without the upstream set"
    rows = map(str.split, capsys.readouterr().out.splitlines())
    assert ["imagenet_val", "not", "encoded"] in rows
