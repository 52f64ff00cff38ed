from typing import Any

import pytest
import torch

from e2gan_cluster.nn.discriminator import Discriminator
from e2gan_cluster.nn.losses import discriminator_loss, generator_loss, l1_loss, r1_penalty


def test_one_patch_logit_sees_70_pixels():
    torch.manual_seed(0)
    net: Any = Discriminator(width=4, text_dim=0)
    # Instance norm sees the whole image: take it out to see the window of the convolutions alone.
    for i, layer in enumerate(net.scales[0].features):
        if isinstance(layer, torch.nn.InstanceNorm2d):
            net.scales[0].features[i] = torch.nn.Identity()
    image = torch.zeros(1, 3, 128, 128, requires_grad=True)
    logits = net(torch.zeros(1, 3, 128, 128), image)[0]
    logits[0, 0, 7, 7].backward()
    assert image.grad is not None
    rows = image.grad.abs().sum(dim=(0, 1, 3)).nonzero()
    assert int(rows.max() - rows.min() + 1) == 70


@pytest.mark.parametrize("scales", [1, 2])
def test_every_scale_gives_patch_logits_that_depend_on_source_and_prompt(scales):
    torch.manual_seed(0)
    net = Discriminator(width=8, text_dim=16, scales=scales)
    a, b = torch.rand(2, 3, 64, 64), torch.rand(2, 3, 64, 64)
    prompt = torch.randn(2, 16)
    outputs = net(a, b, prompt)
    assert [tuple(o.shape) for o in outputs] == [(2, 1, 6, 6), (2, 1, 2, 2)][:scales]
    for changed in (net(b, b, prompt), net(a, b, -prompt)):
        assert all(not torch.allclose(x, y) for x, y in zip(outputs, changed, strict=True))


def test_spectral_norm_bounds_the_gain_of_a_layer():
    torch.manual_seed(0)
    net: Any = Discriminator(width=8, text_dim=0, spectral_norm=True)
    for _ in range(30):
        net(torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 32))
    weight = net.scales[0].features[0].weight.detach().flatten(1)
    assert float(torch.linalg.matrix_norm(weight, ord=2)) == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("kind", ["hinge", "lsgan", "nonsaturating"])
def test_discriminator_loss_falls_to_zero_when_real_and_fake_are_told_apart(kind):
    high, low = [torch.full((1, 1, 2, 2), 20.0)], [torch.full((1, 1, 2, 2), -20.0)]
    if kind == "lsgan":
        high, low = [torch.ones(1, 1, 2, 2)], [torch.zeros(1, 1, 2, 2)]
    assert float(discriminator_loss(kind, high, low)) == pytest.approx(0, abs=1e-6)
    assert float(discriminator_loss(kind, low, high)) > 1
    assert float(generator_loss(kind, high)) < float(generator_loss(kind, low))


def test_l1_is_the_mean_absolute_difference():
    assert float(l1_loss(torch.zeros(1, 3, 2, 2), torch.full((1, 3, 2, 2), -0.25))) == 0.25


def test_r1_of_a_linear_judge_equals_its_hand_value():
    image = torch.zeros(2, 1, 2, 2, requires_grad=True)
    logits = [3.0 * image.mean(dim=(1, 2, 3), keepdim=True)]
    assert float(r1_penalty(logits, image)) == pytest.approx(0.5 * 4 * (3 / 4) ** 2)
