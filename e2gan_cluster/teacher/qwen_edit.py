"""Qwen-Image-Edit (Qwen team 2025, arXiv 2508.02324): a vision-language model reads photo and instruction.

The prompt's embedding depends on the photo here, so neither can be cached for the other concepts; batches run through
the stock pipeline. Its own processor needs torchvision for videos, which nothing here has: `PhotoPromptProcessor`
does the image half with the same image processor and tokenizer.

Example:
    >>> QwenEditTeacher(TeacherConfig(backend="qwen-image-edit", model="Qwen/Qwen-Image-Edit", dtype="bfloat16"))
"""
# diffusers exports its public names lazily.
# pyright: reportPrivateImportUsage=false

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import QwenImageEditPipeline
from PIL import Image
from transformers import BatchFeature
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from e2gan_cluster.config import TeacherConfig
from e2gan_cluster.errors import TeacherError
from e2gan_cluster.teacher.fingerprint import teacher_fingerprint
from e2gan_cluster.teacher.loading import load_pipeline
from e2gan_cluster.teacher.runtime import Batches, Defaults, Settings, edit_at_side, generators, resolve, to_uint8

DEFAULTS = Defaults(steps=50, guidance_scale=4.0)
NATIVE_SIDE = 1024
IMAGE_TOKEN = "<|image_pad|>"


class PhotoPromptProcessor:
    """Photo and text to model inputs, as `Qwen2VLProcessor` does for images.

    Args:
        image_processor: Cuts photos into patches.
        tokenizer: Of the language model.
    """

    def __init__(self, image_processor: Any, tokenizer: Any) -> None:
        self.image_processor = image_processor
        self.tokenizer = tokenizer

    def __call__(self, text: Sequence[str], images: Any, padding: bool, return_tensors: str) -> BatchFeature:
        """Tokens with one place per merged patch, and the patches."""
        vision = self.image_processor(images=images, return_tensors=return_tensors)
        places = vision["image_grid_thw"].prod(dim=1) // self.image_processor.merge_size**2
        filled = [t.replace(IMAGE_TOKEN, IMAGE_TOKEN * int(n), 1) for t, n in zip(text, places, strict=True)]
        tokens = self.tokenizer(filled, padding=padding, return_tensors=return_tensors)
        return BatchFeature({**tokens, **vision})


class QwenEditTeacher:
    """Edits by instruction; see `e2gan_cluster.teacher.base.Teacher`.

    Args:
        cfg: Settings.

    Raises:
        TeacherError: The model can't be loaded.
    """

    def __init__(self, cfg: TeacherConfig) -> None:
        self.cfg = cfg
        self.fingerprint = teacher_fingerprint(cfg)
        self.pipe: Any = load_pipeline(QwenImageEditPipeline, cfg, "transformer", processor=None)
        self.pipe.processor = PhotoPromptProcessor(_image_processor(cfg), self.pipe.tokenizer)
        self.side = cfg.resolution or NATIVE_SIDE
        self._batches = Batches(cfg.batch_size)

    def edit(
        self,
        images_BHWC: np.ndarray,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        overrides: Mapping[str, float] | None = None,
        negative_prompt: str | None = None,
    ) -> np.ndarray:
        """See `Teacher.edit`."""
        settings = resolve(self.cfg, DEFAULTS, overrides, negative_prompt)
        # The model sees photos of one megapixel whatever the size of the edit.
        edit = partial(self._edit, settings)
        return edit_at_side(self._batches, NATIVE_SIDE, images_BHWC, prompts, seeds, edit)

    @torch.inference_mode()
    def _edit(
        self, settings: Settings, photos_BHWC: np.ndarray, prompts: Sequence[str], seeds: Sequence[int]
    ) -> np.ndarray:
        result = self.pipe(
            image=[Image.fromarray(photo) for photo in photos_BHWC],
            prompt=list(prompts),
            # Guidance runs only with a negative prompt, even an empty one.
            negative_prompt=[settings.negative_prompt or " "] * len(prompts),
            true_cfg_scale=settings.guidance_scale,
            generator=generators(seeds),
            num_inference_steps=settings.steps,
            height=self.side,
            width=self.side,
            output_type="pt",
        )
        return to_uint8(result.images * 2 - 1)


def _image_processor(cfg: TeacherConfig) -> Any:
    try:
        options: dict[str, Any] = {"revision": cfg.revision} if cfg.revision else {}
        return Qwen2VLImageProcessorPil.from_pretrained(
            cfg.model, subfolder="processor", local_files_only=Path(cfg.model).is_dir(), **options
        )
    except (OSError, ValueError) as error:
        raise TeacherError(
            f"can't load the photo processor of {cfg.model!r}: {error}", "check teacher.model"
        ) from error
