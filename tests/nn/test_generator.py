import pytest
import torch

from e2gan_cluster.nn.blocks import pooled_of
from e2gan_cluster.nn.generator import PARTS, Generator


def _text(batch: int = 1, tokens: int = 6, dim: int = 32) -> torch.Tensor:
    text = torch.randn(batch, tokens, dim, generator=torch.Generator().manual_seed(0))
    text[:, tokens // 2 :] = 0
    return text


def _randomised(**options) -> Generator:
    """Heads start at zero; give every weight a value so that all paths show."""
    torch.manual_seed(1)
    generator = Generator(width=8, text_dim=32, **options)
    for p in generator.parameters():
        if not p.any():
            torch.nn.init.normal_(p, std=0.1)
    return generator.eval()


@pytest.mark.parametrize("side", [16, 64, 192, 256])
def test_generator_keeps_the_size_of_any_image(side):
    x = torch.randn(1, 3, side, side + 16)
    assert _randomised()(x, _text()).shape == x.shape


def test_direct_submodules_are_the_parts_of_the_paper_in_order():
    assert tuple(name for name, _ in Generator(width=8, text_dim=32).named_children()) == PARTS


def test_untrained_generator_returns_the_photo():
    x = torch.rand(1, 3, 32, 32)
    assert torch.equal(Generator(width=8, text_dim=32)(x, _text()), x)


@pytest.mark.parametrize("output", ["direct", "residual", "mapped"])
@pytest.mark.parametrize("upsample", ["nearest", "bilinear", "shuffle"])
def test_prompt_changes_the_output_of_every_variant(output, upsample):
    generator = _randomised(output=output, upsample=upsample)
    x = torch.rand(1, 3, 32, 32)
    assert not torch.allclose(generator(x, _text()), generator(x, -_text()), atol=1e-4)


def test_padding_rows_do_not_change_the_output():
    generator, x, text = _randomised(), torch.rand(1, 3, 32, 32), _text()
    longer = torch.cat((text, torch.zeros(1, 9, 32)), dim=1)
    assert torch.allclose(generator(x, text), generator(x, longer), atol=1e-5)


def test_empty_prompt_gives_finite_output():
    assert _randomised()(torch.rand(1, 3, 32, 32), torch.zeros(1, 4, 32)).isfinite().all()


def test_result_does_not_depend_on_neighbours_in_the_batch():
    generator, x, text = _randomised(), torch.rand(3, 3, 32, 32), _text(3)
    assert torch.allclose(generator(x, text)[1:2], generator(x[1:2], text[1:2]), atol=1e-5)


def test_only_linear_and_ungrouped_conv_layers_carry_weights():
    layers = (torch.nn.Linear, torch.nn.Conv2d, torch.nn.LayerNorm)
    for module in Generator(width=8, text_dim=32).modules():
        if list(module.parameters(recurse=False)):
            assert isinstance(module, layers)
            assert getattr(module, "groups", 1) == 1
            assert getattr(module, "padding_mode", "zeros") == "zeros"


def test_pooled_prompt_is_the_unit_mean_of_real_tokens():
    text = torch.tensor([[[3.0, 0.0], [0.0, 4.0], [0.0, 0.0]]])
    assert torch.allclose(pooled_of(text), torch.tensor([[0.6, 0.8]]))


def test_attention_at_512_px_holds_a_bounded_number_of_logits():
    generator = Generator(width=8, text_dim=32)
    shapes = []
    generator.transformer.self_attention.attend.register_forward_hook(
        lambda _m, args, _o: shapes.append((args[0].shape[2], args[1].shape[2]))
    )
    with torch.no_grad():
        generator(torch.zeros(1, 3, 512, 512), _text())
    assert shapes == [(64 * 64, 256)]
