"""Qwen-Image-Edit on a tiny model, without torchvision."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit

from e2gan_cluster.config import TeacherConfig
from e2gan_cluster.teacher import qwen_edit
from e2gan_cluster.teacher.load import load_teacher
from tests.teacher import tiny_models


def test_edits_follow_photo_prompt_and_seed_and_not_the_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_models.qwen_edit(tmp_path)
    # The stock pipeline enlarges every photo to a megapixel.
    stock = pipeline_qwenimage_edit.calculate_dimensions
    monkeypatch.setattr(pipeline_qwenimage_edit, "calculate_dimensions", lambda _, ratio: stock(64 * 64, ratio))
    monkeypatch.setattr(qwen_edit, "NATIVE_SIDE", 64)
    cfg = TeacherConfig(backend="qwen-image-edit", model=str(tmp_path), device="cpu", steps=2, resolution=32)
    teacher: Any = load_teacher(cfg)
    images = tiny_models.photos(2)
    prompts, seeds = ["make it snow", "make it snow"], [1, 2]
    together = teacher.edit(images, prompts, seeds)
    assert together.shape == images.shape
    alone = [teacher.edit(images[n : n + 1], prompts[n : n + 1], seeds[n : n + 1])[0] for n in range(2)]
    assert np.abs(together.astype(int) - np.stack(alone)).max() <= 1
    for changed in (
        teacher.edit(images, ["an oil painting"] * 2, seeds),
        teacher.edit(images, prompts, [3, 4]),
        teacher.edit(images[::-1].copy(), prompts, seeds),
    ):
        assert (changed != together).any()
