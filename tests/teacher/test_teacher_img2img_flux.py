"""Image-to-image and FLUX Kontext teachers on tiny models."""
# diffusers exports its public names lazily.
# pyright: reportPrivateImportUsage=false

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from e2gan_cluster.config import TeacherConfig
from e2gan_cluster.errors import TeacherError
from e2gan_cluster.teacher.load import load_teacher
from e2gan_cluster.teacher.runtime import generators
from tests.teacher import tiny_models

KINDS = {
    "img2img": ("img2img", tiny_models.sd_img2img, {}),
    "img2img-xl": ("img2img", tiny_models.xl_img2img, {}),
    "turbo-xl": ("turbo", tiny_models.xl_img2img, {}),
    "lcm": ("lcm", tiny_models.lcm, {"steps": 4}),
    "lcm-lora": ("lcm", tiny_models.sd_img2img, {"steps": 4, "guidance_scale": 1.0}),
    "flux-kontext": ("flux-kontext", tiny_models.flux_kontext, {"steps": 2, "resolution": 32}),
}
PROMPTS = ["make it snow", "an oil painting", "make it snow"]
SEEDS = [11, 12, 13]


@pytest.fixture(scope="module", params=list(KINDS))
def teacher(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    backend, build, options = KINDS[request.param]
    folder = tiny_models.saved(build, tmp_path_factory.mktemp("tiny"))
    options = {"steps": 4, "resolution": 32, **options}
    return load_teacher(TeacherConfig(backend=backend, model=str(folder), device="cpu", **options))


def test_edits_follow_photo_prompt_and_seed_and_not_the_batch(teacher: Any) -> None:
    images = tiny_models.photos(3)
    together = teacher.edit(images, PROMPTS, SEEDS)
    assert together.shape == images.shape
    assert together.dtype == np.uint8
    alone = [teacher.edit(images[n : n + 1], PROMPTS[n : n + 1], SEEDS[n : n + 1])[0] for n in range(3)]
    assert np.abs(together.astype(int) - np.stack(alone)).max() <= 1
    for changed in (
        teacher.edit(images, ["a drawing"] * 3, SEEDS),
        teacher.edit(images, PROMPTS, [1, 2, 3]),
        teacher.edit(images[::-1].copy(), PROMPTS, SEEDS),
    ):
        assert (changed != together).any(axis=(1, 2, 3)).any()


def test_photos_and_prompts_are_encoded_once(teacher: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    images = tiny_models.photos(4)[3:]
    teacher.edit(images, ["a new prompt"], [1])

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("encoded again")

    monkeypatch.setattr(teacher.pipe.vae, "encode", refuse)
    monkeypatch.setattr(teacher.pipe.text_encoder, "forward", refuse)
    assert teacher.edit(images, ["a new prompt"], [2]).shape == images.shape
    for other_images, other_prompt in ((tiny_models.photos(5)[4:], "a new prompt"), (images, "a newer prompt")):
        with pytest.raises(AssertionError, match="encoded again"):
            teacher.edit(other_images, [other_prompt], [2])


def test_flux_edits_equal_the_stock_pipeline(tmp_path: Path) -> None:
    from PIL import Image

    folder = tiny_models.saved(tiny_models.flux_kontext, tmp_path)
    cfg = TeacherConfig(backend="flux-kontext", model=str(folder), device="cpu", steps=2, resolution=32)
    flux: Any = load_teacher(cfg)
    image = tiny_models.photos(1)
    stock = flux.pipe(
        image=Image.fromarray(image[0]), prompt="make it snow", generator=generators([5])[0], height=32, width=32,
        num_inference_steps=2, guidance_scale=2.5, max_area=32 * 32, _auto_resize=False, output_type="np",
    ).images[0]  # fmt: skip
    edit = flux.edit(image, ["make it snow"], [5])[0]
    assert np.abs(edit.astype(int) - (stock * 255).round()).max() <= 1


def test_impossible_settings_are_refused(tmp_path: Path) -> None:
    folder = tiny_models.saved(tiny_models.sd_img2img, tmp_path)
    teacher = load_teacher(TeacherConfig(backend="img2img", model=str(folder), device="cpu"))
    with pytest.raises(TeacherError, match="make no step"):
        teacher.edit(tiny_models.photos(1), ["x"], [1], overrides={"steps": 1, "strength": 0.3})
    with pytest.raises(TeacherError, match="no image_guidance_scale"):
        teacher.edit(tiny_models.photos(1), ["x"], [1], overrides={"image_guidance_scale": 1.0})
    with pytest.raises(TeacherError, match="bundled teacher is of the kind"):
        load_teacher(TeacherConfig(backend="img2img"))


def test_lora_weights_change_the_teacher(tmp_path: Path) -> None:
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    folder = tiny_models.saved(tiny_models.sd_img2img, tmp_path)
    unet = tiny_models.unet(4)
    unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_k"], init_lora_weights=False))
    layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(unet))
    from diffusers import StableDiffusionImg2ImgPipeline

    StableDiffusionImg2ImgPipeline.save_lora_weights(tmp_path / "lora", unet_lora_layers=layers)
    cfg = TeacherConfig(backend="img2img", model=str(folder), device="cpu", steps=4)
    plain = load_teacher(cfg)
    tuned = load_teacher(cfg.model_copy(update={"lora": str(tmp_path / "lora")}))
    assert plain.fingerprint != tuned.fingerprint
    images = tiny_models.photos(1)
    assert (plain.edit(images, ["x"], [1]) != tuned.edit(images, ["x"], [1])).any()
