"""ImageNet-RIB on tiny trees of its official layouts: mask, group, train, evaluate, RI."""

import dataclasses
from pathlib import Path

import grids
import imagenet_trees as trees
import numpy as np
import pyarrow.parquet as pq
import pytest
import timm
import torch
from encoded_rib import SUBSAMPLE, rib
from PIL import Image

from engine import cli, models
from engine.commands import outcome
from engine.data import grouping, imagenet, packs, sets
from engine.evaluation import passes
from engine.grid import cell_plan
from engine.grid.build import Builder
from engine.machine.files import cache_folder
from engine.measures import metrics
from engine.measures.predictions import SetPredictions
from engine.recipe import modules
from engine.store import tensors

__all__ = ["rib"]
SETS = [name for name in imagenet.SIZES if name not in ("imagenet_train", "imagenet_val")]


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
    assert objects.members is not None and objects.members.shape == (4, 2)
    for wnids, row in zip(objects.pack.classes, objects.members.tolist(), strict=True):
        assert {imagenet.wnids()[place] for place in row} == set(wnids.split("+"))


def test_masks_are_the_users_choice(rib):
    """Two objects of ObjectNet are two classes here, of which the first answers for both."""
    recipe, device = rib.builder().recipe, rib.device
    masked = {"imagenet_a": 200, "imagenet_r": 200, "objectnet": 4}
    for mask, counts in (("none", {"objectnet": 998}), ("benchmark", masked), ("present", masked)):
        chosen = sets.Sets(recipe, device, cache_folder(), mask=mask)
        for name in SETS:
            labelled = chosen[name]
            answers = 1000 if labelled.mask is None else int(labelled.mask.sum())
            assert answers == counts.get(name, 1000), (mask, name)
            assert labelled.mask is None or labelled.mask[labelled.labels].all()
            rule = "none" if mask == "none" and name in masked else "present"
            assert labelled.mask_rule == rule, (mask, name)
    with pytest.raises(ValueError, match=r"mask 'nine' is not possible; did you mean 'none'"):
        sets.Sets(recipe, device, cache_folder(), mask="nine")


def test_pixels_are_those_of_timms_transform_of_the_file(rib):
    config = timm.get_pretrained_cfg(grids.VIT)
    assert config is not None
    steps = timm.data.create_transform(
        (3, 32, 32), interpolation=config.interpolation, crop_pct=1.0, mean=(0,) * 3, std=(1,) * 3
    )

    def by_timm(image: Image.Image) -> np.ndarray:
        return (steps(image.convert("RGB")) * 255).round().permute(1, 2, 0).numpy()

    labelled = rib.builder().sets["imagenet_sketch"]
    file = rib.folder / "s" / "sketch" / labelled.pack.keys[3]
    assert np.array_equal(labelled.pack.pixels([3])[0], by_timm(Image.open(file)))
    objects = rib.builder().sets["objectnet"].pack  # its red frame is gone
    name = objects.keys[0].split("/")[0]
    number = list(trees.FOLDERS).index(name)
    assert np.array_equal(objects.pixels([0])[0], by_timm(trees.picture([3, number, 0])))


def test_a_cell_on_grouped_classes_to_its_ri(rib, capsys):
    builder = rib.builder()
    cell = builder.build()
    outcome.show(builder.run, cell)
    printed = capsys.readouterr().out
    accuracy = {line.split()[0]: line.split()[1:4] for line in printed.splitlines()[4:-3]}
    assert set(accuracy) == {*SETS, "imagenet_val"}
    marked = {line.split()[0] for line in printed.splitlines() if line.rstrip().endswith("*")}
    assert marked & {*accuracy} == {"objectnet", "imagenet_val"}, "which RI does not count"
    assert accuracy["imagenet_c"][0] == str(SUBSAMPLE)
    ri = float(next(line for line in printed.splitlines() if line.startswith("RI ")).split()[1])
    before_and_after = {n: (float(b), float(a)) for n, (_, b, a) in accuracy.items() if n in SETS}
    expected = metrics.robustness_improvement(
        "objectnet",
        {n: after for n, (_, after) in before_and_after.items()},
        {n: before for n, (before, _) in before_and_after.items()},
        SETS,
    )
    assert ri == pytest.approx(expected, abs=0.1)


def test_predictions_on_objects_are_those_of_the_largest_member(rib):
    builder = rib.builder()
    mix = {builder.base.name: 1.0}
    passes.evaluate(builder.run, [mix], ["objectnet"], "all")
    table = pq.read_table(passes.predicted(builder.run, mix, "objectnet", "all"))
    labelled = builder.sets["objectnet"]
    net = builder.network(builder.base)
    normalize = models.Normalize(builder.recipe.model, builder.device)
    pixels = torch.from_numpy(labelled.pack.pixels(range(len(labelled.pack)))).permute(0, 3, 1, 2)
    with torch.no_grad():
        logits = net(normalize(pixels)).double()
    groups = [[trees.PLACES[w] for w in name.split("+")] for name in labelled.pack.classes]
    by_object = torch.stack([logits[:, places].amax(1) for places in groups], dim=1)
    places = torch.tensor([group[0] for group in groups])
    assert table["top1"].to_pylist() == places[by_object.argmax(1)].tolist()
    p = by_object.softmax(1)
    labels = torch.from_numpy(np.array(labelled.pack.labels))
    true = p.gather(1, labels[:, None])[:, 0]
    assert np.allclose(table["p_true"].to_numpy(), true.numpy(), atol=1e-5)
    assert np.allclose(table["p_top1"].to_numpy(), p.amax(1).numpy(), atol=1e-5)


@pytest.mark.parametrize("method", ["fine_tune", "visual_prompt", "lwf"])
def test_losses_see_grouped_classes(rib, method):
    builder = rib.builder(f"method={method}")
    torch.manual_seed(0)
    built = modules.find(builder.recipe.method.module).Method(builder.recipe.method)
    built.prepare(builder.network(builder.base), builder)
    built.train()
    (batch,) = builder.sets.source("objectnet").batches([np.array([0, 3, 5])])
    loss = built.loss(batch)
    labelled = builder.sets["objectnet"]
    groups = [[trees.PLACES[w] for w in name.split("+")] for name in labelled.pack.classes]
    labels = torch.from_numpy(np.array(labelled.pack.labels[[0, 3, 5]]))

    def of_objects(logits: torch.Tensor) -> torch.Tensor:
        return torch.stack([logits[:, places].amax(1) for places in groups], dim=1)

    x = built.normalize(batch.images)
    if method == "visual_prompt":
        x = x + built.image_prompt()
    by_object = of_objects(built.net(x))
    expected = torch.nn.functional.cross_entropy(by_object, labels, reduction="none")
    if method == "lwf":
        with torch.no_grad():
            before = of_objects(builder.network(builder.base)(x))
        q, log_p = (before / 2).softmax(1), (by_object / 2).log_softmax(1)
        expected = expected + 4 * (q * (q.log() - log_p)).sum(1)
    assert torch.allclose(loss, expected, atol=2e-5)
    loss.mean().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in built.parameters())


def test_gradient_of_grouped_logits_goes_to_the_largest_member():
    position = {name: i for i, name in enumerate("abcdef")}
    members = grouping.members(["a+c", "b", "d+e+f"], position)
    assert members is not None and members.tolist() == [[0, 2, 0], [1, 1, 1], [3, 4, 5]]
    logits = torch.tensor([[1.0, 5, 3, 0, 9, 2]], dtype=torch.float64, requires_grad=True)
    maxima = grouping.grouped(logits, members)
    assert maxima[0, [0, 1, 3]].tolist() == [3, 5, 9] and maxima.shape == logits.shape
    maxima[0, [0, 1, 3]].sum().backward()
    assert logits.grad is not None and logits.grad.tolist() == [[0, 1, 1, 0, 1, 0]]
    apart = torch.arange(12, dtype=torch.float64).reshape(2, 6) + 0.3 * torch.rand(2, 6)
    torch.autograd.gradcheck(lambda x: grouping.grouped(x, members), apart.requires_grad_())
    assert grouping.members(["a", "c"], position) is None
    assert grouping.grouped(logits, None) is logits
    for classes in (["a+c", "a+b"], ["a+c", "b+c"], ["c", "b+c"]):
        with pytest.raises(ValueError, match=r"classes .*c and .*b.* share the output [ac]"):
            grouping.members(classes, position)


def test_one_pack_serves_every_model_of_a_transform(rib):
    resolved = rib.builder().recipe
    runs = Path(resolved.runs)

    def place(name: str, model: dict | None = None, **options: str) -> Path:
        changed = dataclasses.replace(resolved.model, **(model or {}))
        dataset = dataclasses.replace(resolved.dataset, **options)
        return packs.pack_folder(runs, dataset, changed, name)

    usual = place("imagenet_v2")
    assert usual.is_dir()
    assert place("imagenet_v2", {"name": "other", "mean": [0.5] * 3}) == usual
    assert place("imagenet_v2", root="/elsewhere", objectnet="paper", subsample="full") == usual
    assert place("imagenet_v2", pack_format="jpeg") != usual
    assert place("imagenet_v2", {"crop": 0.9}) != usual
    assert place("objectnet", objectnet="paper") != place("objectnet")
    assert place("imagenet_c", subsample="full") != place("imagenet_c")


def test_paper_variant_of_objectnet_is_a_plain_mask(rib):
    assert rib.encode("objectnet", rib.folder / "o", "--partial", "dataset.objectnet=paper") == 0
    usual, paper = rib.builder(), rib.builder("dataset.objectnet=paper")
    labelled = paper.sets["objectnet"]
    assert labelled.members is None and labelled.mask is not None and labelled.mask.sum() == 3
    assert usual.target.pack.fingerprint != paper.target.pack.fingerprint
    assert usual.key() != paper.key(), "no cell is of both"


def test_fifty_corrupted_images_in_fifteen_times_five_folders(rib, tmp_path):
    """Parts without an image do not count; the others of a corruption do, alike."""
    source = trees.corrupted(tmp_path / "c")
    for number, file in enumerate(sorted(source.rglob("*.JPEG"))):
        if number % 3:
            file.unlink()
    assert len(list(source.glob("*/*/*"))) == 75
    assert rib.encode("imagenet_c", source, "--partial", "dataset.subsample=50") == 0
    builder = rib.builder("dataset.subsample=50", "downstream=imagenet_c")
    cell = builder.build()
    passes.evaluate(builder.run, [{cell.name: 1.0}], ["imagenet_c"], "all")
    path = passes.predicted(builder.run, {cell.name: 1.0}, "imagenet_c", "all")
    table = pq.read_table(path)
    assert len(table) == 50
    hits: dict[str, dict[str, list[bool]]] = {}
    for row in table.to_pylist():
        corruption, severity = row["group"].split("/")
        parts = hits.setdefault(corruption, {}).setdefault(severity, [])
        parts.append(row["top1"] == row["label"])
    expected = np.mean([np.mean([np.mean(p) for p in parts.values()]) for parts in hits.values()])
    assert len(hits) == 15
    assert SetPredictions().add(path).accuracy == pytest.approx(100 * expected)


def test_the_in1k_stage_of_a_backbone_without_a_head(rib):
    """The recipe on a tiny training set; its cell is then the pre-trained model of a campaign."""
    alone = ("model=vit_tiny_random", "model.head.fit=true", "train.batch_size=4", "train.epochs=1")
    alone += ("train.warmup_steps=null",)  # of two steps
    stage = cell_plan.resolve("imagenet_rib/pre_fine_tune", (*alone, *rib.words))
    builder = Builder(stage, rib.device)
    cell = builder.build()
    path = cell.artifact.file(tensors.WEIGHTS)
    tuned = ("model.head.fit=false", "model.weights.source=file", f"model.weights.path={path}")
    after = rib.builder(*tuned)
    net = after.network(after.base)
    assert grids.same(dict(net.state_dict()), grids.weights(cell))
    assert models.head(net).out_features == 1000
    passes.evaluate(after.run, [{after.base.name: 1.0}], ["imagenet_a"], "all")


def test_what_a_campaign_says_of_a_set_that_is_not_encoded(rib):
    with pytest.raises(
        ValueError, match=r"imagenet_v2 is not encoded .* run `rib encode imagenet_"
    ):
        _ = rib.builder("model.crop=0.75").sets["imagenet_v2"]
    rooted = rib.builder("model.crop=0.75", f"dataset.root={rib.folder / 'by_root'}")
    trees.by_wnid(rib.folder / "by_root" / "imagenet_a")
    with pytest.raises(ValueError, match="by_root/imagenet_a is not the published imagenet_a"):
        packs.pack_of(rooted.recipe, "imagenet_a", rib.folder)


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
        assert passes.find(builder.run, {builder.base.name: 1.0}, name, "all"), name
    # Without the upstream set its classes are known all the same.
    runs = f"runs={tmp_path / 'runs'}"
    assert rib.encode("imagenet_a", rib.folder / "a", "--partial", runs) == 0
    assert cli.main([*words, runs]) == 0
    rows = map(str.split, capsys.readouterr().out.splitlines())
    assert ["imagenet_val", "not", "encoded"] in rows
