"""InstructPix2Pix teachers: equal to the stock pipelines, and to themselves in any batch."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from e2gan_cluster.config import TeacherConfig
from e2gan_cluster.errors import TeacherError
from e2gan_cluster.teacher.load import load_teacher, teacher_fingerprint
from e2gan_cluster.teacher.runtime import Batches, generators
from tests.teacher import tiny_models

BACKENDS = {"instruct-pix2pix": tiny_models.sd_instruct, "instruct-pix2pix-xl": tiny_models.xl_instruct}
PROMPTS = ["make it snow", "an oil painting", "make it snow"]
SEEDS = [11, 12, 13]


@pytest.fixture(scope="module", params=list(BACKENDS))
def teacher(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tiny_models.saved(BACKENDS[request.param], tmp_path_factory.mktemp("tiny"))
    return load_teacher(TeacherConfig(backend=request.param, model=str(folder), steps=3, device="cpu"))


def stock(teacher: Any, image: np.ndarray, prompt: str, seed: int, **options: Any) -> np.ndarray:
    if teacher.is_xl:
        options |= {"height": image.shape[0], "width": image.shape[1]}
    result = teacher.pipe(
        prompt=prompt, image=Image.fromarray(image), generator=generators([seed])[0], num_inference_steps=3,
        output_type="np", **options,
    )  # fmt: skip
    return (result.images[0] * 255).round().astype(np.uint8)


def off_by(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.abs(a.astype(int) - b.astype(int)).max())


def test_edits_equal_the_stock_pipeline(teacher: Any) -> None:
    images = tiny_models.photos(3)
    for guidance, negative in ((7.5, "blurry"), (1.0, "")):
        edits = teacher.edit(images, PROMPTS, SEEDS, overrides={"guidance_scale": guidance}, negative_prompt=negative)
        for n in range(3):
            options = {"guidance_scale": guidance, "image_guidance_scale": 1.5, "negative_prompt": negative or None}
            if not teacher.is_xl:
                options["negative_prompt"] = negative
            assert off_by(edits[n], stock(teacher, images[n], PROMPTS[n], SEEDS[n], **options)) <= 1


def test_the_bundled_teacher_equals_its_stock_pipeline() -> None:
    bundled: Any = load_teacher(TeacherConfig(device="cpu"))
    images = tiny_models.photos(2, side=64)
    edits = bundled.edit(images, ["make it sepia"] * 2, [1, 2])
    for n in range(2):
        result = bundled.pipe(
            prompt="make it sepia", image=Image.fromarray(images[n]), generator=generators([n + 1])[0],
            num_inference_steps=bundled.defaults.steps, guidance_scale=bundled.defaults.guidance_scale,
            image_guidance_scale=bundled.defaults.image_guidance_scale, output_type="np",
        )  # fmt: skip
        assert off_by(edits[n], (result.images[0] * 255).round().astype(np.uint8)) <= 1


def test_edits_do_not_depend_on_the_batch(teacher: Any) -> None:
    images = tiny_models.photos(3)
    together = teacher.edit(images, PROMPTS, SEEDS)
    alone = [teacher.edit(images[n : n + 1], PROMPTS[n : n + 1], SEEDS[n : n + 1])[0] for n in range(3)]
    assert off_by(together, np.stack(alone)) <= 1
    assert off_by(together, teacher.edit(images, PROMPTS, [21, 22, 23])) > 1


def test_a_batch_that_does_not_fit_is_halved(teacher: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.concatenate([tiny_models.photos(3)] * 2)
    expected = teacher.edit(images, PROMPTS * 2, SEEDS * 2)
    forward = teacher.pipe.unet.forward

    def small_memory(sample: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if len(sample) > 6:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(sample, *args, **kwargs)

    monkeypatch.setattr(teacher.pipe.unet, "forward", small_memory)
    monkeypatch.setattr(teacher, "_batches", Batches(6))
    assert off_by(teacher.edit(images, PROMPTS * 2, SEEDS * 2), expected) <= 1
    assert teacher._batches.size <= 2


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


def test_a_photo_of_another_size_comes_back_in_its_size(teacher: Any) -> None:
    edits = teacher.edit(tiny_models.photos(1, side=48), ["x"], [1])
    assert edits.shape == (1, 48, 48, 3)


def test_strength_is_refused_by_a_teacher_without_it(teacher: Any) -> None:
    with pytest.raises(TeacherError, match="no strength"):
        teacher.edit(tiny_models.photos(1), ["x"], [1], overrides={"strength": 0.5})


def test_a_weight_variant_and_another_dtype_are_loaded(tmp_path: Path) -> None:
    tiny_models.sd_instruct(tmp_path / "parts").save_pretrained(tmp_path / "model", variant="half")
    cfg = TeacherConfig(model=str(tmp_path / "model"), device="cpu", steps=2, dtype="bfloat16")
    with pytest.raises(TeacherError):
        load_teacher(cfg)
    teacher: Any = load_teacher(cfg.model_copy(update={"variant": "half"}))
    assert teacher.pipe.unet.dtype == torch.bfloat16
    assert teacher.edit(tiny_models.photos(1), ["x"], [1]).shape == (1, 32, 32, 3)


def test_a_folder_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    with pytest.raises(TeacherError, match="can't load the teacher"):
        load_teacher(TeacherConfig(model=str(tmp_path), device="cpu"))


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    folder = tiny_models.saved(tiny_models.sd_instruct, tmp_path)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save({}, folder / "unet" / "diffusion_pytorch_model.bin")
    weights.unlink()
    with pytest.raises(TeacherError):
        load_teacher(TeacherConfig(model=str(folder), device="cpu"))


def test_the_fingerprint_follows_weights_and_settings_and_not_the_device(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    cfg = TeacherConfig(model=str(tmp_path))
    first = teacher_fingerprint(cfg)
    assert teacher_fingerprint(cfg.model_copy(update={"device": "cpu", "batch_size": 1})) == first
    assert teacher_fingerprint(cfg.model_copy(update={"steps": 9})) != first
    (tmp_path / "model.safetensors").write_bytes(b"Weights")
    assert teacher_fingerprint(cfg) != first
