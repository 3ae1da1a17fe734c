"""Augmentation: torchvision's and timm's distributions, from numbers that counters give."""

import random

import numpy as np
import pytest
import scipy.stats
import torch
from PIL import Image
from timm.data.transforms_factory import create_transform
from torchvision.transforms import RandomResizedCrop, v2
from torchvision.transforms.v2 import functional as tv

from loaders import augment
from loaders.augment import Augment, crops, uniform

SEVERAL = 4000


def smooth(side: int, count: int = 1) -> torch.Tensor:
    """uint8 [count, 3, side, side] of slow waves, on which interpolations agree."""
    y, x = np.mgrid[:side, :side] / side
    waves = [np.sin(2 * x + i) * np.cos(3 * y - c) for i in range(count) for c in range(3)]
    return torch.tensor(np.stack(waves).reshape(count, 3, side, side) * 100 + 128).byte()


def test_numbers_are_uniform_and_independent():
    index, columns = np.arange(SEVERAL), np.arange(4)
    of_epochs = [uniform(3, epoch, index, columns) for epoch in range(2)]
    flat = np.concatenate(of_epochs).ravel()
    assert flat.min() >= 0 and flat.max() < 1
    assert scipy.stats.kstest(flat, "uniform").pvalue > 1e-3
    series = np.concatenate([*(e.T for e in of_epochs), uniform(4, 0, index, columns).T])
    correlations = np.corrcoef(series) - np.eye(len(series))
    assert abs(correlations).max() < 5 / np.sqrt(SEVERAL)
    neighbours = scipy.stats.pearsonr(series[0][1:], series[0][:-1])
    assert abs(neighbours.statistic) < 5 / np.sqrt(SEVERAL)


@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.9, 1.0)])
def test_boxes_are_distributed_as_torchvisions(scale):
    draws = uniform(0, 0, np.arange(SEVERAL), np.arange(22))
    ours = crops(draws, 256, scale)
    torch.manual_seed(0)
    image = torch.empty(3, 256, 256)
    theirs = np.array(
        [RandomResizedCrop.get_params(image, list(scale), [3 / 4, 4 / 3]) for _ in ours]
    )
    assert (ours[:, :2] >= 0).all() and (ours[:, :2] + ours[:, 2:] <= 256).all()
    for column in range(4):
        assert scipy.stats.ks_2samp(ours[:, column], theirs[:, column]).pvalue > 1e-3
    ratios = ours[:, 3] / ours[:, 2], theirs[:, 3] / theirs[:, 2]
    assert scipy.stats.ks_2samp(*ratios).pvalue > 1e-3


@pytest.mark.parametrize("bicubic", [False, True])
def test_a_crop_is_that_box_resized(bicubic):
    images, index = smooth(256, 6), np.arange(6)
    out = Augment(224, ["crop"], bicubic=bicubic, seed=1)(images, index, 2)
    draws = uniform(1, 2, index, np.arange(22))
    way = tv.InterpolationMode.BICUBIC if bicubic else tv.InterpolationMode.BILINEAR
    for image, box, ours in zip(images, crops(draws, 256, (0.08, 1.0)), out, strict=True):
        theirs = tv.resized_crop(image, *box.tolist(), [224, 224], way, antialias=False)
        inside = (slice(None), slice(4, -4), slice(4, -4))  # edges see beyond the box here
        assert (ours[inside].int() - theirs[inside].int()).abs().max() <= 1


def test_statistics_are_those_of_timms_training_transform():
    """Means and deviations of pixels over draws, on a picture with a bright corner."""
    side, size = 256, 224
    array = np.zeros((side, side, 3), np.uint8)
    array[:128, :64] = 255
    images = torch.from_numpy(array).permute(2, 0, 1)[None].expand(SEVERAL // 8, -1, -1, -1)
    ours = Augment(size, ["crop", "hflip"])(images, np.arange(len(images)), 0).float()
    theirs = create_transform(
        size, is_training=True, interpolation="bicubic", color_jitter=None, normalize=False
    )
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    drawn = torch.stack([torch.as_tensor(np.asarray(theirs(Image.fromarray(array)))) for _ in ours])
    for rows in (slice(0, 112), slice(112, 224)):
        for columns in (slice(0, 112), slice(112, 224)):
            a = ours[:, :, rows, columns].mean((1, 2, 3)).numpy()
            b = drawn.float()[:, :, rows, columns].mean((1, 2, 3)).numpy()
            assert scipy.stats.ks_2samp(a, b).pvalue > 1e-3


def test_flips_are_half_of_all_and_exact():
    images, index = smooth(8, 3).repeat(200, 1, 1, 1), np.arange(600)
    out = Augment(8, ["hflip"])(images, index, 0)
    flipped = torch.tensor([torch.equal(a, b.flip(2)) for a, b in zip(out, images, strict=True)])
    kept = torch.tensor([torch.equal(a, b) for a, b in zip(out, images, strict=True)])
    assert (flipped ^ kept).all() and 240 < flipped.sum() < 360


@pytest.mark.parametrize("name", augment.OPERATIONS)
def test_an_operation_is_torchvisions(name):
    images = smooth(32, 2)
    theirs = v2.RandAugment(magnitude=9)
    values, is_signed = theirs._AUGMENTATION_SPACE[name]
    levels = values(31, 32, 32)
    for sign in (1, -1) if is_signed else (1,):
        level = 0.0 if levels is None else float(levels[9])
        expected = theirs._apply_image_or_video_transform(
            images, name, sign * level, tv.InterpolationMode.NEAREST, {}
        )
        ours = augment.OPERATIONS[name](images, sign * 9 / 30)
        assert (ours.int() - expected.int()).abs().max() <= 1  # its magnitudes are float32


def test_an_image_is_augmented_alike_in_any_batch():
    images = (torch.rand(40, 3, 36, 36, generator=torch.Generator().manual_seed(0)) * 255).byte()
    augmented = Augment(32, ["crop", "hflip", "randaugment"], seed=5)
    index = np.random.default_rng(0).permutation(40)
    whole = augmented(images[index], index, 3)
    parts = [augmented(images[part], part, 3) for part in np.array_split(index, 7)]
    assert torch.equal(whole, torch.cat(parts))
    assert not torch.equal(whole, augmented(images[index], index, 4))
    assert whole.dtype == torch.uint8 and whole.shape == (40, 3, 32, 32)
