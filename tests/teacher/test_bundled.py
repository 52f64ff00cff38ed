"""The bundled teacher: its weights, and the stock pipeline that runs them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_instruct_pix2pix import (
    StableDiffusionInstructPix2PixPipeline,
)
from PIL import Image

from e2gan_cluster.errors import TeacherError
from e2gan_cluster.teacher import bundled
from e2gan_cluster.teacher.bundled import (
    BUNDLED_DEFAULTS,
    BUNDLED_DIR,
    PixelFold,
    PromptPooledUNet,
    assemble_pipeline,
    build_unet,
    load_bundled_pipeline,
)
from e2gan_cluster.text.encoder import PromptEncoder

PHOTOS = Path(bundled.__file__).resolve().parent.parent / "assets" / "photos"
MAX_WEIGHT_BYTES = 25 * 1000 * 1000


@pytest.fixture(scope="module")
def encoder() -> PromptEncoder:
    return PromptEncoder("minilm")


@pytest.fixture(scope="module")
def teacher() -> StableDiffusionInstructPix2PixPipeline:
    return load_bundled_pipeline()


def _photo(name: str = "coffee", size: tuple[int, int] = (128, 128)) -> Image.Image:
    return Image.open(PHOTOS / f"{name}.jpg").convert("RGB").resize(size)


def _edit(
    pipe: StableDiffusionInstructPix2PixPipeline, image: Image.Image, seed: int = 0, **inputs: object
) -> np.ndarray:
    generator = torch.Generator().manual_seed(seed)
    options = {**BUNDLED_DEFAULTS.call_options(), **inputs}
    output: Any = pipe(image=image, generator=generator, output_type="np", **options)
    return np.asarray(output.images[0])


def test_folding_pixels_loses_nothing() -> None:
    x_BCHW = torch.rand(2, 3, 32, 48)
    fold = PixelFold()
    z_BCHW = fold.encode(x_BCHW).latent_dist.mode()
    assert z_BCHW.shape == (2, fold.config["latent_channels"], 8, 12)
    assert torch.equal(fold.decode(z_BCHW, return_dict=False)[0], x_BCHW)


def test_an_untrained_network_gives_the_photo_back(encoder: PromptEncoder) -> None:
    pipe = assemble_pipeline(build_unet((16, 16, 32)), encoder)
    photo = _photo(size=(64, 64))
    edited = _edit(pipe, photo, prompt="make it snow")
    assert np.abs(edited - np.asarray(photo) / 255).max() < 0.01


def test_a_saved_network_loads_with_the_same_output(tmp_path: Path) -> None:
    torch.manual_seed(0)
    unet = build_unet((16, 16, 32)).eval()
    torch.nn.init.normal_(unet.conv_out.weight, std=0.1)
    unet.save_pretrained(tmp_path)
    loaded = PromptPooledUNet.from_pretrained(tmp_path).eval()
    inputs = (torch.randn(1, 96, 16, 16), torch.tensor([999]), torch.randn(1, 24, 384))
    with torch.no_grad():
        assert torch.equal(unet(*inputs).sample, loaded(*inputs).sample)


def test_the_prompt_reaches_the_network_through_its_pooled_tokens() -> None:
    torch.manual_seed(0)
    unet = build_unet((16, 16, 32)).eval()
    torch.nn.init.normal_(unet.conv_out.weight, std=0.1)
    sample, t = torch.randn(1, 96, 16, 16), torch.tensor([999])
    with torch.no_grad():
        first, second = (unet(sample, t, torch.randn(1, 24, 384)).sample for _ in range(2))
    assert (first - second).abs().mean() > 1e-4


def test_bundled_weights_are_small_safetensors_only() -> None:
    files = [path for path in BUNDLED_DIR.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".safetensors", ".json"}
    assert sum(path.stat().st_size for path in files) < MAX_WEIGHT_BYTES


def test_prompt_and_prompt_embeds_give_the_same_edit(
    teacher: StableDiffusionInstructPix2PixPipeline, encoder: PromptEncoder
) -> None:
    prompt = "turn it into a Japanese woodblock print"
    tokens_BTD = encoder.encode([prompt]).tokens_BTD
    by_text = _edit(teacher, _photo(), prompt=prompt)
    by_tokens = _edit(teacher, _photo(), prompt_embeds=tokens_BTD, negative_prompt_embeds=torch.zeros_like(tokens_BTD))
    assert np.abs(by_text - by_tokens).max() < 1e-3


def test_the_seed_decides_the_edit(teacher: StableDiffusionInstructPix2PixPipeline) -> None:
    prompt = "make it a Van Gogh painting"
    first, again, other = (_edit(teacher, _photo(), seed, prompt=prompt) for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert np.abs(first - other).mean() > 1e-4


def test_other_multiples_of_16_and_guidance_run(teacher: StableDiffusionInstructPix2PixPipeline) -> None:
    edited = _edit(teacher, _photo(size=(176, 144)), prompt="make it a cyanotype", guidance_scale=1.3)
    assert edited.shape == (144, 176, 3)
    assert np.isfinite(edited).all()


def test_edits_look_as_their_prompts_say(teacher: StableDiffusionInstructPix2PixPipeline) -> None:
    photo = _photo()
    original = np.asarray(photo) / 255
    looks = ("a sepia photograph", "a cyanotype", "a moonlit night", "a pencil sketch")
    sepia, cyanotype, night, pencil = (_edit(teacher, photo, prompt=f"make it {look}") for look in looks)
    assert sepia[..., 0].mean() > sepia[..., 2].mean() + 0.08
    assert cyanotype[..., 2].mean() > cyanotype[..., 0].mean() + 0.08
    assert night.mean() < 0.7 * original.mean()
    assert np.ptp(pencil.mean((0, 1))) < 0.6 * np.ptp(original.mean((0, 1)))


def test_missing_weights_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundled, "BUNDLED_DIR", tmp_path / "nothing")
    with pytest.raises(TeacherError, match="weights are missing"):
        load_bundled_pipeline()
