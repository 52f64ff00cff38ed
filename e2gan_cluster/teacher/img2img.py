"""Image-to-image teachers: SDEdit (Meng et al. 2021, arXiv 2108.01073), latent consistency and turbo models.

The photo is noised to `strength` and denoised under the prompt. Latents are the mean of the VAE's distribution, so a
photo is encoded once for all concepts and the noise of a row comes from its seed alone.

Example:
    >>> Img2ImgTeacher(TeacherConfig(backend="turbo", model="stabilityai/sd-turbo", device="cuda", dtype="float16"))
    >>> Img2ImgTeacher(TeacherConfig(backend="lcm", model="SimianLuo/LCM_Dreamshaper_v7"))
"""
# diffusers exports its public names lazily.
# pyright: reportPrivateImportUsage=false

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoPipelineForImage2Image,
    LatentConsistencyModelImg2ImgPipeline,
    LCMScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionXLImg2ImgPipeline,
)

from e2gan_cluster.config import TeacherConfig
from e2gan_cluster.errors import TeacherError
from e2gan_cluster.teacher.fingerprint import teacher_fingerprint
from e2gan_cluster.teacher.loading import load_pipeline, native_side
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

DEFAULTS = {
    "img2img": Defaults(steps=30, guidance_scale=7.5, strength=0.6),
    # Luo et al. 2023 (arXiv 2310.04378): 4 steps, guidance distilled in.
    "lcm": Defaults(steps=4, guidance_scale=8.5, strength=0.6),
    # Sauer et al. 2023 (arXiv 2311.17042): no guidance; steps x strength must be 1 or more.
    "turbo": Defaults(steps=2, guidance_scale=0.0, strength=0.5),
}
_KINDS = (StableDiffusionImg2ImgPipeline, StableDiffusionXLImg2ImgPipeline, LatentConsistencyModelImg2ImgPipeline)


class Img2ImgTeacher:
    """Edits by noising and denoising; see `e2gan_cluster.teacher.base.Teacher`.

    Args:
        cfg: Settings.

    Raises:
        TeacherError: The model can't be loaded, or is of a kind that isn't known here.
    """

    def __init__(self, cfg: TeacherConfig) -> None:
        self.cfg = cfg
        self.fingerprint = teacher_fingerprint(cfg)
        self.defaults = DEFAULTS[cfg.backend]
        self.pipe = load_pipeline(AutoPipelineForImage2Image, cfg, "unet")
        if not isinstance(self.pipe, _KINDS) or self.pipe.vae.config.latent_channels != 4:
            kinds = ", ".join(kind.__name__ for kind in _KINDS)
            raise TeacherError(
                f"{cfg.model!r} is a {type(self.pipe).__name__}, not one of {kinds}", "take another model"
            )
        self.is_xl = isinstance(self.pipe, StableDiffusionXLImg2ImgPipeline)
        self.is_lcm = isinstance(self.pipe, LatentConsistencyModelImg2ImgPipeline)
        if cfg.backend == "lcm" and not self.is_lcm:
            # An ordinary model with LCM-LoRA.
            self.pipe.scheduler = LCMScheduler.from_config(self.pipe.scheduler.config)
        self.side = cfg.resolution or native_side(self.pipe.unet.config.sample_size, self.pipe.vae_scale_factor)
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
        settings = resolve(self.cfg, self.defaults, overrides, negative_prompt)
        if int(settings.steps * settings.strength) < 1:
            raise TeacherError(
                f"{settings.steps} steps x strength {settings.strength} make no step", "raise steps or strength"
            )
        edit = partial(self._edit, settings)
        return edit_at_side(self._batches, self.side, images_BHWC, prompts, seeds, edit)

    @torch.inference_mode()
    def _edit(
        self, settings: Settings, images_BHWC: np.ndarray, prompts: Sequence[str], seeds: Sequence[int]
    ) -> np.ndarray:
        embeddings = [self._prompt(prompt, settings.negative_prompt) for prompt in prompts]
        result = self.pipe(
            image=self._latents.get(images_BHWC, self._encode),
            generator=generators(seeds),
            num_inference_steps=settings.steps,
            strength=settings.strength,
            guidance_scale=settings.guidance_scale,
            output_type="pt",
            **{name: torch.cat([row[name] for row in embeddings]) for name in embeddings[0]},
        )
        return to_uint8(result.images * 2 - 1)

    def _prompt(self, prompt: str, negative: str) -> dict[str, torch.Tensor]:
        """The call's embedding arguments for one prompt; encoded once."""
        return self._prompts.get((prompt, negative), lambda: self._encode_prompt(prompt, negative))

    def _encode_prompt(self, prompt: str, negative: str) -> dict[str, torch.Tensor]:
        pipe: Any = self.pipe
        device = pipe._execution_device
        if self.is_lcm:
            return {"prompt_embeds": pipe.encode_prompt(prompt, device, 1, False)[0]}
        names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
        if self.is_xl:
            values = pipe.encode_prompt(
                prompt, device=device, num_images_per_prompt=1, do_classifier_free_guidance=True,
                negative_prompt=negative or None,
            )  # fmt: skip
        else:
            values = pipe.encode_prompt(prompt, device, 1, True, negative)
        return dict(zip(names, values, strict=False))

    def _encode(self, images_BHWC: np.ndarray) -> torch.Tensor:
        config = self.pipe.vae.config
        z_BCHW = encode_mean(self.pipe, images_BHWC)
        mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
        if self.is_xl and mean is not None and std is not None:
            z_BCHW = (z_BCHW - torch.tensor(mean).view(1, -1, 1, 1).to(z_BCHW)) / torch.tensor(std).view(
                1, -1, 1, 1
            ).to(z_BCHW)
        return (z_BCHW * config.scaling_factor).to(self.pipe.unet.dtype)
