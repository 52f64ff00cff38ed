"""FLUX.1 Kontext (Black Forest Labs 2025, arXiv 2506.15742): a flow-matching editor that sees photo and instruction.

Guidance is distilled into the model, so there is no negative prompt and one network call a step.

Example:
    >>> cfg = TeacherConfig(backend="flux-kontext", model="black-forest-labs/FLUX.1-Kontext-dev", dtype="bfloat16")
    >>> FluxKontextTeacher(cfg)
"""
# diffusers exports its public names lazily.
# pyright: reportPrivateImportUsage=false

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from diffusers import FluxKontextPipeline

from e2gan_cluster.config import TeacherConfig
from e2gan_cluster.errors import TeacherError
from e2gan_cluster.teacher.fingerprint import teacher_fingerprint
from e2gan_cluster.teacher.loading import load_pipeline
from e2gan_cluster.teacher.runtime import (
    Batches,
    Defaults,
    LatentCache,
    Settings,
    edit_at_side,
    generators,
    prompt_cache,
    resolve,
    to_uint8,
)
from e2gan_cluster.teacher.vae import encode_mean

DEFAULTS = Defaults(steps=28, guidance_scale=2.5)
NATIVE_SIDE = 1024


class FluxKontextTeacher:
    """Edits by instruction; see `e2gan_cluster.teacher.base.Teacher`.

    Args:
        cfg: Settings.

    Raises:
        TeacherError: The model can't be loaded.
    """

    def __init__(self, cfg: TeacherConfig) -> None:
        self.cfg = cfg
        self.fingerprint = teacher_fingerprint(cfg)
        self.pipe: Any = load_pipeline(FluxKontextPipeline, cfg, "transformer")
        self.side = cfg.resolution or NATIVE_SIDE
        self._batches = Batches(cfg.batch_size)
        self._latents = LatentCache()
        self._prompts = prompt_cache()

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
        if settings.negative_prompt:
            raise TeacherError("flux-kontext takes no negative prompt", "leave negative_prompt empty")
        edit = partial(self._edit, settings)
        return edit_at_side(self._batches, self.side, images_BHWC, prompts, seeds, edit)

    @torch.inference_mode()
    def _edit(
        self, settings: Settings, images_BHWC: np.ndarray, prompts: Sequence[str], seeds: Sequence[int]
    ) -> np.ndarray:
        embeddings = [self._prompts.get(prompt, lambda p=prompt: self._encode_prompt(p)) for prompt in prompts]
        result = self.pipe(
            image=self._latents.get(images_BHWC, self._encode),
            prompt_embeds=torch.cat([tokens for tokens, _ in embeddings]),
            pooled_prompt_embeds=torch.cat([pooled for _, pooled in embeddings]),
            generator=generators(seeds),
            num_inference_steps=settings.steps,
            guidance_scale=settings.guidance_scale,
            height=self.side,
            width=self.side,
            max_area=self.side**2,
            output_type="pt",
            _auto_resize=False,
        )
        return to_uint8(result.images * 2 - 1)

    def _encode_prompt(self, prompt: str) -> tuple[torch.Tensor, torch.Tensor]:
        tokens, pooled, _ = self.pipe.encode_prompt(prompt, None, device=self.pipe._execution_device)
        return tokens, pooled

    def _encode(self, images_BHWC: np.ndarray) -> torch.Tensor:
        config = self.pipe.vae.config
        z_BCHW = (encode_mean(self.pipe, images_BHWC) - config.shift_factor) * config.scaling_factor
        return z_BCHW.to(self.pipe.transformer.dtype)
