"""Loads a diffusers pipeline from a folder or a hub id: safetensors only, on its device, quiet.

Example:
    >>> pipe = load_pipeline(StableDiffusionInstructPix2PixPipeline, cfg, denoiser="unet")
"""

import logging
from pathlib import Path
from typing import Any

import torch

from e2gan_cluster.config import TeacherConfig
from e2gan_cluster.errors import TeacherError
from e2gan_cluster.teacher.runtime import pick_device

_LOG = logging.getLogger(__name__)


def dtype_of(cfg: TeacherConfig) -> torch.dtype:
    """The torch dtype of a config's `dtype`."""
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[cfg.dtype]


def load_pipeline(pipeline_class: Any, cfg: TeacherConfig, denoiser: str, **components: Any) -> Any:
    """Loads and places a pipeline.

    Args:
        pipeline_class: A diffusers pipeline (or auto-pipeline) class.
        cfg: Model, revision, variant, LoRA, dtype, device, compile.
        denoiser: Name of the component that is run at every step.
        **components: Passed on, replacing parts of the model.

    Raises:
        TeacherError: The model can't be found, is of another kind, or has no safetensors weights.
    """
    is_folder = Path(cfg.model).is_dir()
    try:
        pipe = pipeline_class.from_pretrained(
            cfg.model,
            torch_dtype=dtype_of(cfg),
            variant=cfg.variant,
            revision=cfg.revision,
            use_safetensors=True,
            local_files_only=is_folder,
            **components,
        )
        if cfg.lora:
            _add_lora(pipe, cfg.lora)
    except (OSError, ValueError, TypeError, AttributeError, KeyError, RuntimeError) as error:
        raise TeacherError(
            f"can't load the teacher {cfg.model!r} as {pipeline_class.__name__}: {error}",
            "give a folder or hub id of that kind with .safetensors weights, or change teacher.backend",
        ) from error
    return place(pipe, cfg, denoiser)


def place(pipe: Any, cfg: TeacherConfig, denoiser: str) -> Any:
    """Moves a pipeline to its device and makes its denoiser fast."""
    device = pick_device(cfg.device)
    pipe.to(device)
    pipe.set_progress_bar_config(disable=True)
    module = getattr(pipe, denoiser)
    if device == "cuda":
        # Convolutions on tensor cores want it; on CPUs it was measured to bring nothing.
        module.to(memory_format=torch.channels_last)
    if cfg.compile:
        module.compile()
    return pipe


def _add_lora(pipe: Any, lora: str) -> None:
    """Adds LoRA weights and folds them in, so that they cost nothing at every step."""
    path = Path(lora)
    options = {"weight_name": path.name} if path.is_file() else {}
    pipe.load_lora_weights(str(path.parent) if path.is_file() else lora, use_safetensors=True, **options)
    pipe.fuse_lora()
    pipe.unload_lora_weights()


def native_side(sample_size: int | None, scale: int) -> int | None:
    """The side in pixels that a model was trained at; None if it doesn't say."""
    return sample_size * scale if sample_size else None
