"""Strong FT beside timm: its losses, layers' rates and average of weights."""

import copy

import pytest
import torch
from timm.data.mixup import mixup_target
from timm.optim._param_groups import param_groups_layer_decay
from timm.utils.model_ema import ModelEmaV3
from torch.distributions import Beta

from engine.training import loop
from helpers.grids import CONV, VIT, Prepared, prepared, same, trained, weights
from helpers.plain_losses import ON_FEW, check, over_classes, parameters
from helpers.twins import assert_near

OFF = ("method.layer_decay=1", "method.ema=0", "method.label_smoothing=0")
ON = "method=strong_fine_tune"


def soft_cross_entropy(case: Prepared, x: torch.Tensor, share: float = 1.0, smoothing: float = 0.0):
    """The cross-entropy [b] with timm's targets."""
    logits, y = over_classes(case, case.net(x))
    soft = mixup_target(y, logits.shape[1], share, smoothing)
    return -(soft.double() * logits.log_softmax(1)).sum(1)


@pytest.mark.parametrize("few", [False, True])
@pytest.mark.parametrize(("smoothing", "mixup"), [(0.1, 0.0), (0.0, 0.4), (0.2, 0.4)])
def test_smoothing_and_mixing_are_timms(grid, smoothing, mixup, few):
    words = (f"method.label_smoothing={smoothing}", f"method.mixup={mixup}")
    case = prepared(grid, ON, *OFF, *words, *([ON_FEW] if few else []))
    torch.manual_seed(3)
    share = Beta(mixup, mixup).sample().item() if mixup else 1.0
    torch.manual_seed(3)
    x = share * case.x + (1 - share) * case.x.flip(0)
    check(case, soft_cross_entropy(case, x, share, smoothing), parameters(case.net))


def test_mirrored_images_are_those_drawn(grid):
    case = prepared(grid, ON, *OFF, "method.hflip=0.5")
    torch.manual_seed(1)
    flips = torch.rand(5) < 0.5
    assert 0 < flips.sum() < 5
    x = torch.stack([i.flip(-1) if f else i for i, f in zip(case.x, flips, strict=True)])
    torch.manual_seed(1)
    check(case, soft_cross_entropy(case, x), parameters(case.net))


@pytest.mark.parametrize("arch", [VIT, CONV])
def test_every_parameter_has_the_rate_of_its_layer(grid, arch):
    case = prepared(grid, ON, f"model.arch={arch}", "method.layer_decay=0.7", "method.ema=0")
    names = {p: name for name, p in case.method.net.named_parameters()}
    with loop.initialized(case.method, case.builder) as engine:
        loop.optim.set_rate(engine.optimizer, 0.5)
        rates = {names[p]: g["lr"] for g in engine.optimizer.param_groups for p in g["params"]}
    theirs = {p: name for name, p in case.net.named_parameters()}
    expected = {
        theirs[p]: 0.5 * group["lr_scale"]
        for group in param_groups_layer_decay(case.net, layer_decay=0.7)
        for p in group["params"]
    }
    assert rates == pytest.approx(expected) and len(set(rates.values())) > 4


@pytest.mark.parametrize("arch", [VIT, CONV])
def test_the_model_is_timms_average_of_the_weights(grid, arch):
    words = (f"model.arch={arch}", "train.freeze_batchnorm=false", "train.batch_size=5")
    case = prepared(grid, ON, *OFF, "method.ema=0.6", *words)
    net = copy.deepcopy(case.method.net)
    twin = ModelEmaV3(net, decay=0.6, use_warmup=True)
    states = trained(case)
    for step, state in enumerate(states, start=1):
        net.load_state_dict(state)
        twin.update(net, step=step)
    actual = case.method.export().state
    assert len(states) == 10 and not same(actual, states[-1])
    expected = twin.module.state_dict()
    assert dict(actual).keys() == expected.keys()
    for name, tensor in expected.items():
        assert_near(actual[name], tensor, rtol=1e-5, atol=1e-6, name=name)


def test_with_everything_off_it_is_fine_tuning_bit_for_bit(grid):
    for words in ((), (ON_FEW, f"model.arch={CONV}")):
        _, plain = grid.build("method=fine_tune", *words)
        _, strong = grid.build(ON, *OFF, *words)
        assert same(weights(strong), weights(plain))


def test_what_several_ranks_would_draw_otherwise_is_refused(grid, monkeypatch):
    monkeypatch.setattr("engine.machine.ranks.world", lambda: 2)
    with pytest.raises(ValueError, match=r"draw for a whole batch, so they train on one rank"):
        prepared(grid, ON, "method.mixup=0.2")
