import torch
from torch import nn

from e2gan_cluster.nn.baselines import ResNet9, UNet256
from e2gan_cluster.nn.generator import PARTS, Generator
from e2gan_cluster.nn.profile import profile


def test_single_layers_equal_hand_counts():
    x = torch.zeros(2, 4, 10, 10)
    assert profile(nn.Sequential(nn.Conv2d(4, 6, 3, padding=1)), x).macs == 2 * 10 * 10 * 6 * 4 * 9
    assert profile(nn.Sequential(nn.Conv2d(4, 8, 3, stride=2, groups=2)), x).macs == 2 * 4 * 4 * 8 * 2 * 9
    transposed = nn.Sequential(nn.ConvTranspose2d(4, 6, 4, 2, 1))
    assert profile(transposed, x).macs == 2 * 20 * 20 * 6 * 4 * 16
    assert profile(transposed, x, transposed_at="input").macs == 2 * 10 * 10 * 4 * 6 * 16
    linear = profile(nn.Sequential(nn.Linear(5, 7)), torch.zeros(3, 5))
    assert (linear.macs, linear.params) == (3 * 5 * 7, 5 * 7 + 7)


def test_resnet9_has_the_published_size_and_both_published_counts():
    x = torch.zeros(1, 3, 64, 64)  # a sixteenth of 256 px
    net = ResNet9()
    at_output, at_input = profile(net, x), profile(net, x, transposed_at="input")
    assert round(at_output.params / 1e6, 2) == 11.38
    assert round(16 * at_output.macs / 1e9, 1) == 56.8
    assert round(16 * at_input.macs / 1e9, 1) == 49.6


def test_unet256_has_the_published_size():
    assert round(sum(p.numel() for p in UNet256().parameters()) / 1e6, 1) == 54.4


def test_unet_runs_at_its_design_size():
    with torch.no_grad():
        assert UNet256(width=2, levels=6)(torch.zeros(1, 3, 64, 64)).shape == (1, 3, 64, 64)


def test_transformer_part_equals_its_hand_count():
    generator = Generator(width=16, text_dim=32)
    part = profile(generator, torch.zeros(1, 3, 64, 64), torch.zeros(1, 6, 32)).by_part["transformer"]
    c, n, grid, tokens = 64, 8 * 8, 256, 6
    self_attention = c * c * (2 * n + 2 * grid) + 2 * n * grid * c
    cross_attention = 2 * n * c * c + 2 * tokens * 32 * c + 2 * n * tokens * c
    assert part.macs == self_attention + cross_attention + n * 4 * c * c


def test_generator_needs_fewer_macs_and_parameters_than_resnet9():
    x, text = torch.zeros(1, 3, 64, 64), torch.zeros(1, 24, 384)
    ours, theirs = profile(Generator(), x, text), profile(ResNet9(), x)
    assert ours.macs < 0.6 * theirs.macs
    assert ours.params < theirs.params
    assert tuple(ours.by_part) == PARTS
    assert ours.params == sum(part.params for part in ours.by_part.values())


def test_rank_4_adapter_at_width_64_stays_below_400_kb():
    ranks = 0
    for name, layer in Generator().named_modules():
        if name.split(".")[0] not in ("downsample", "ds", "transformer", "us", "upsample"):
            continue
        if isinstance(layer, nn.Linear):
            ranks += layer.in_features + layer.out_features
        elif isinstance(layer, nn.Conv2d):
            ranks += layer.in_channels * layer.kernel_size[0] ** 2 + layer.out_channels
    assert 4 * ranks * 4 < 400_000
