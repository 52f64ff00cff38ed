"""InstructPix2Pix-type teachers (Brooks et al. 2023, arXiv 2211.09800), Stable Diffusion and XL, and the bundled one.

The denoising loop is written here over the pipeline's parts, so that prompts are encoded once per concept and photos
once for all concepts; it gives what the stock pipeline gives for the same noise (a test holds it to that).

Example:
    >>> teacher = InstructTeacher(TeacherConfig(model="timbrooks/instruct-pix2pix", device="cuda", dtype="float16"))
"""
# diffusers exports its public names lazily.
# pyright: reportPrivateImportUsage=false

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from diffusers.utils.torch_utils import randn_tensor

from e2gan_cluster.config import TeacherConfig
from e2gan_cluster.teacher.fingerprint import teacher_fingerprint
from e2gan_cluster.teacher.loading import dtype_of, load_pipeline, native_side, place
from e2gan_cluster.teacher.runtime import (
    Batches,
    Defaults,
    LatentCache,
    Settings,
    edit_at_side,
    generators,
    pick_device,
    prompt_cache,
    resolve,
    to_uint8,
)
from e2gan_cluster.teacher.vae import encode_mean, vae_precision

# Section 5 of the paper: 100 steps of Euler ancestral, text guidance 7.5, image guidance 1.5; 20 steps are usual.
DEFAULTS = Defaults(steps=20, guidance_scale=7.5, image_guidance_scale=1.5)


@dataclass(frozen=True)
class _Prompt:
    """An encoded prompt and its negative; the pooled parts are XL's."""

    tokens_1TD: torch.Tensor
    negative_1TD: torch.Tensor
    pooled_1D: torch.Tensor | None = None
    negative_pooled_1D: torch.Tensor | None = None


class InstructTeacher:
    """Edits by instruction; see `e2gan_cluster.teacher.base.Teacher`.

    Args:
        cfg: Settings; `model: bundled` is the teacher that ships with the package.

    Raises:
        TeacherError: The model can't be loaded.
    """

    def __init__(self, cfg: TeacherConfig) -> None:
        self.cfg = cfg
        self.fingerprint = teacher_fingerprint(cfg)
        self.pipe, self.defaults = _load(cfg)
        self.is_xl = cfg.backend == "instruct-pix2pix-xl"
        unet, scale = self.pipe.unet, self.pipe.vae_scale_factor
        own = None if cfg.model == "bundled" else native_side(unet.config.sample_size, scale)
        self.side = cfg.resolution or own
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
        edit = partial(self._edit, settings)
        return edit_at_side(self._batches, self.side, images_BHWC, prompts, seeds, edit)

    @torch.inference_mode()
    def _edit(
        self, settings: Settings, images_BHWC: np.ndarray, prompts: Sequence[str], seeds: Sequence[int]
    ) -> np.ndarray:
        pipe = self.pipe
        device, dtype = pipe._execution_device, pipe.unet.dtype
        guided = settings.guidance_scale > 1.0 and settings.image_guidance_scale >= 1.0
        condition = self._condition([self._prompt(p, settings.negative_prompt) for p in prompts], images_BHWC, guided)
        photo_BCHW = self._latents.get(images_BHWC, self._encode)
        rows = generators(seeds)
        pipe.scheduler.set_timesteps(settings.steps, device=device)
        z_BCHW = randn_tensor(photo_BCHW.shape, generator=rows, device=torch.device(device), dtype=dtype)
        z_BCHW = z_BCHW * pipe.scheduler.init_noise_sigma
        if guided:
            photo_BCHW = torch.cat([photo_BCHW, photo_BCHW, torch.zeros_like(photo_BCHW)])
        step_options = _step_options(pipe.scheduler, rows)
        for t in pipe.scheduler.timesteps:
            noisy = pipe.scheduler.scale_model_input(torch.cat([z_BCHW] * 3) if guided else z_BCHW, t)
            prediction = pipe.unet(torch.cat([noisy, photo_BCHW], dim=1), t, **condition, return_dict=False)[0]
            if guided:
                text, image, neither = prediction.chunk(3)
                prediction = (
                    neither
                    + settings.guidance_scale * (text - image)
                    + settings.image_guidance_scale * (image - neither)
                )
            z_BCHW = pipe.scheduler.step(prediction, t, z_BCHW, **step_options, return_dict=False)[0].to(dtype)
        return self._decode(z_BCHW)

    def _prompt(self, prompt: str, negative: str) -> _Prompt:
        """Encoded once; one prompt at a time, so that its embedding does not depend on its neighbours."""

        def encode() -> _Prompt:
            device = self.pipe._execution_device
            if self.is_xl:
                tokens, negative_tokens, pooled, negative_pooled = self.pipe.encode_prompt(
                    prompt, device=device, num_images_per_prompt=1, do_classifier_free_guidance=True,
                    negative_prompt=negative or None,
                )  # fmt: skip
                return _Prompt(tokens, negative_tokens, pooled, negative_pooled)
            tokens, negative_tokens, _ = self.pipe._encode_prompt(prompt, device, 1, True, negative).chunk(3)
            return _Prompt(tokens, negative_tokens)

        return self._prompts.get((prompt, negative), encode)

    def _condition(self, rows: Sequence[_Prompt], images_BHWC: np.ndarray, guided: bool) -> dict[str, Any]:
        """The UNet's prompt inputs: one branch, or (text, negative, negative) for guidance."""
        tokens = torch.cat([row.tokens_1TD for row in rows])
        negative = torch.cat([row.negative_1TD for row in rows])
        condition: dict[str, Any] = {
            "encoder_hidden_states": torch.cat([tokens, negative, negative]) if guided else tokens
        }
        if self.is_xl:
            pooled = torch.cat([row.pooled_1D for row in rows if row.pooled_1D is not None])
            no_pooled = torch.cat([row.negative_pooled_1D for row in rows if row.negative_pooled_1D is not None])
            side = (images_BHWC.shape[1], images_BHWC.shape[2])
            times = torch.tensor([[*side, 0, 0, *side]], dtype=tokens.dtype, device=tokens.device)
            condition["added_cond_kwargs"] = {
                "text_embeds": torch.cat([pooled, no_pooled, no_pooled]) if guided else pooled,
                "time_ids": times.repeat(len(rows) * (3 if guided else 1), 1),
            }
        return condition

    def _encode(self, images_BHWC: np.ndarray) -> torch.Tensor:
        return encode_mean(self.pipe, images_BHWC).to(self.pipe.unet.dtype)

    def _decode(self, z_BCHW: torch.Tensor) -> np.ndarray:
        vae = self.pipe.vae
        z_BCHW = z_BCHW / vae.config.scaling_factor
        mean, std = getattr(vae.config, "latents_mean", None), getattr(vae.config, "latents_std", None)
        if self.is_xl and mean is not None and std is not None:
            mean_1C11 = torch.tensor(mean).view(1, -1, 1, 1).to(z_BCHW)
            z_BCHW = z_BCHW * torch.tensor(std).view(1, -1, 1, 1).to(z_BCHW) + mean_1C11
        with vae_precision(self.pipe) as dtype:
            x_BCHW = vae.decode(z_BCHW.to(dtype), return_dict=False)[0]
        edits_BHWC = to_uint8(x_BCHW)
        return edits_BHWC if self.is_xl else _black_where_flagged(self.pipe, x_BCHW, edits_BHWC)


def _load(cfg: TeacherConfig) -> tuple[Any, Defaults]:
    if cfg.model == "bundled":
        from e2gan_cluster.teacher.bundled import BUNDLED_DEFAULTS as OWN
        from e2gan_cluster.teacher.bundled import load_bundled_pipeline

        pipe = place(load_bundled_pipeline(pick_device(cfg.device), dtype_of(cfg)), cfg, "unet")
        return pipe, Defaults(OWN.steps, OWN.guidance_scale, OWN.image_guidance_scale)
    if cfg.backend == "instruct-pix2pix-xl":
        from diffusers import StableDiffusionXLInstructPix2PixPipeline

        return load_pipeline(StableDiffusionXLInstructPix2PixPipeline, cfg, "unet"), DEFAULTS
    from diffusers import StableDiffusionInstructPix2PixPipeline

    return load_pipeline(StableDiffusionInstructPix2PixPipeline, cfg, "unet"), DEFAULTS


def _step_options(scheduler: Any, rows: list[torch.Generator]) -> dict[str, Any]:
    """Per-row generators for schedulers that draw noise at every step."""
    return {"generator": rows} if "generator" in inspect.signature(scheduler.step).parameters else {}


def _black_where_flagged(pipe: Any, x_BCHW: torch.Tensor, edits_BHWC: np.ndarray) -> np.ndarray:
    """Edits that the model's own safety checker flags become black, which the filters drop."""
    if getattr(pipe, "safety_checker", None) is None:
        return edits_BHWC
    _, flagged = pipe.run_safety_checker(x_BCHW.clone(), pipe._execution_device, pipe.unet.dtype)
    for n, is_flagged in enumerate(flagged or ()):
        if is_flagged:
            edits_BHWC[n] = 0
    return edits_BHWC
