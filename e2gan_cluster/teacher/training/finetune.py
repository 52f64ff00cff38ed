"""Fine-tunes an InstructPix2Pix-type teacher on your own triples.

Triples are Parquet shards with the columns ``input_image``, ``edited_image`` (struct ``{bytes, path}``) and
``edit_prompt``, as the pair stage and diffusers' own example write them. The loss is that of InstructPix2Pix (Brooks
et al. 2023, section 3.2) with either prediction type, and its conditioning dropout.

Command: ``python jobs/train_teacher.py --triples DIR --model MODEL --out DIR``; a killed run continues with the same
command. The result, ``OUT/pipeline``, is a folder for `teacher.model` (for the bundled model ``OUT/unet``).
"""

import io
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_instruct_pix2pix import (
    StableDiffusionInstructPix2PixPipeline,
)
from PIL import Image

from e2gan_cluster.errors import InputError, TeacherError
from e2gan_cluster.teacher.bundled import load_bundled_pipeline
from e2gan_cluster.teacher.training.loop import LoopConfig, LoopState, Trainer, train

log = logging.getLogger(__name__)
COLUMNS = ("input_image", "edited_image", "edit_prompt")


@dataclass(frozen=True)
class FinetuneConfig:
    """How the triples are used.

    Attributes:
        resolution: Side in pixels; images are cropped to a square and resized.
        conditioning_dropout: Share of prompts, and of photos, that are left out, so that both guidance scales work.
        gradient_checkpointing: Slower, but much less memory.
    """

    resolution: int = 256
    conditioning_dropout: float = 0.05
    gradient_checkpointing: bool = False


class TripleShards:
    """Rows of Parquet shards in an order that depends on (seed, images seen) only.

    Args:
        folder: Searched for ``*.parquet`` at any depth; rows whose ``status`` is not ``ok`` are left out.
        seed: Of the order.

    Raises:
        InputError: No shard, no usable row, or a column is missing.
    """

    def __init__(self, folder: Path, seed: int = 0) -> None:
        paths = sorted(folder.rglob("*.parquet"))
        if not paths:
            raise InputError(f"No .parquet files in {folder}.", fix="Give the folder of your pair shards.")
        self.table = pa.concat_tables([_read_shard(path) for path in paths])
        if self.table.num_rows == 0:
            raise InputError(f"The shards in {folder} hold no usable rows.", fix="Look at their status column.")
        self.seed = seed

    def draw(self, images_seen: int, batch_size: int, size_px: int) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
        """The batch that follows `images_seen` images: photos and edits in [-1, 1], [B, 3, H, W], and prompts."""
        rows = [self._row(images_seen + offset) for offset in range(batch_size)]
        photos = torch.stack([_decode(row["input_image"]["bytes"], size_px) for row in rows])
        edited = torch.stack([_decode(row["edited_image"]["bytes"], size_px) for row in rows])
        return photos, edited, [row["edit_prompt"] for row in rows]

    def _row(self, position: int) -> dict[str, Any]:
        epoch, offset = divmod(position, self.table.num_rows)
        index = int(np.random.default_rng([self.seed, epoch]).permutation(self.table.num_rows)[offset])
        return self.table.slice(index, 1).to_pylist()[0]


class FinetuneLoss:
    """Callable (images seen, progress) -> loss of the next batch.

    Args:
        pipe: The teacher; its UNet is trained in place.
        shards: Source of triples.
        batch_size: Images a call.
        config: How the triples are used.
        device: cpu or cuda; on CUDA the UNet computes in bf16.
    """

    def __init__(
        self,
        pipe: StableDiffusionInstructPix2PixPipeline,
        shards: TripleShards,
        batch_size: int,
        config: FinetuneConfig,
        device: str = "cpu",
    ) -> None:
        self.pipe, self.shards, self.batch_size, self.config = pipe, shards, batch_size, config
        self.device = device

    def __call__(self, images_seen: int, progress: float) -> torch.Tensor:
        """Draws a batch and returns its loss."""
        photo_BCHW, edited_BCHW, prompts = self.shards.draw(images_seen, self.batch_size, self.config.resolution)
        scheduler: Any = self.pipe.scheduler
        with torch.no_grad():
            vae: Any = self.pipe.vae
            x0_BCHW = vae.encode(edited_BCHW.to(self.device)).latent_dist.sample() * vae.config.scaling_factor
            photo_z_BCHW = vae.encode(photo_BCHW.to(self.device)).latent_dist.mode()
            drop_prompt, drop_photo = torch.rand(2, self.batch_size) < self.config.conditioning_dropout
            kept = ["" if drop else prompt for drop, prompt in zip(drop_prompt, prompts, strict=True)]
            tokens_BTD = encode_prompts(self.pipe, kept, self.device)
            photo_z_BCHW = photo_z_BCHW * (~drop_photo).to(self.device)[:, None, None, None]
        noise_BCHW = torch.randn(x0_BCHW.shape).to(self.device)
        t_B = torch.randint(scheduler.config.num_train_timesteps, (self.batch_size,)).to(self.device)
        noisy_BCHW = scheduler.add_noise(x0_BCHW, noise_BCHW, t_B)
        target_BCHW = _target(scheduler, x0_BCHW, noise_BCHW, t_B)
        with torch.autocast("cuda", torch.bfloat16, enabled=self.device.startswith("cuda")):
            predicted = self.pipe.unet(
                torch.cat([noisy_BCHW, photo_z_BCHW], 1), t_B, encoder_hidden_states=tokens_BTD, return_dict=False
            )[0]
        return F.mse_loss(predicted.float(), target_BCHW)


def finetune(
    triples: Path,
    model: str,
    out: Path,
    loop: LoopConfig,
    config: FinetuneConfig,
    device: str = "cpu",
) -> LoopState:
    """Fine-tunes and saves; the same call continues a killed run.

    Args:
        triples: Folder of Parquet shards.
        model: Hub id or folder of an InstructPix2Pix-type pipeline, or ``bundled``.
        out: Checkpoint, `log.jsonl` and the result.
        loop: Length and pace; the learning rate should be about 5e-5 for full-size models.
        config: How the triples are used.
        device: cpu or cuda.

    Returns:
        The final state.

    Raises:
        TeacherError: The model can't be loaded or is of another kind.
        InputError: The triples can't be used.
    """
    shards = TripleShards(triples, loop.seed)
    pipe = load_model(model).to(device)
    unet: torch.nn.Module = pipe.unet
    if config.gradient_checkpointing:
        pipe.unet.enable_gradient_checkpointing()
    for frozen in (pipe.vae, pipe.text_encoder):
        frozen.requires_grad_(False)
    unet.train().requires_grad_(True)
    trainer = Trainer(unet, loop)
    log.info("%d triples, %.1f M parameters", shards.table.num_rows, sum(p.numel() for p in unet.parameters()) / 1e6)
    state = train(trainer, FinetuneLoss(pipe, shards, loop.batch_size, config, device), out)
    trainer.load_ema_into_model()
    unet.eval()
    if model == "bundled":
        pipe.unet.half().save_pretrained(out / "unet", safe_serialization=True)
    else:
        pipe.save_pretrained(out / "pipeline", safe_serialization=True)
    return state


def load_model(model: str) -> StableDiffusionInstructPix2PixPipeline:
    """Loads an InstructPix2Pix-type pipeline in float32.

    Raises:
        TeacherError: It can't be loaded, or its UNet does not take a photo beside the noise.
    """
    if model == "bundled":
        return load_bundled_pipeline()
    try:
        pipe = StableDiffusionInstructPix2PixPipeline.from_pretrained(
            model,
            torch_dtype=torch.float32,
            use_safetensors=True,
            safety_checker=None,
            local_files_only=Path(model).is_dir(),
        )
    except (OSError, ValueError) as error:
        raise TeacherError(
            f"Can't load {model!r}: {error}", fix="Give a hub id or the folder of an InstructPix2Pix pipeline."
        ) from error
    latents = pipe.vae.config.latent_channels
    if pipe.unet.config.in_channels != 2 * latents:
        raise TeacherError(
            f"{model!r} takes {pipe.unet.config.in_channels} channels, not {2 * latents}: it is no photo editor.",
            fix="Give an InstructPix2Pix-type model such as timbrooks/instruct-pix2pix.",
        )
    return pipe


def encode_prompts(
    pipe: StableDiffusionInstructPix2PixPipeline, prompts: list[str], device: str = "cpu"
) -> torch.Tensor:
    """Prompts to token states [B, T, D], padded to the tokenizer's length as the pipeline pads them."""
    tokenizer: Any = pipe.tokenizer
    batch = tokenizer(
        prompts,
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    ).to(device)
    use_mask = getattr(pipe.text_encoder.config, "use_attention_mask", False)
    return pipe.text_encoder(batch.input_ids, attention_mask=batch.attention_mask if use_mask else None)[0]


def _target(scheduler: Any, x0: torch.Tensor, noise: torch.Tensor, t_B: torch.Tensor) -> torch.Tensor:
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        return noise
    return x0 if kind == "sample" else scheduler.get_velocity(x0, noise, t_B)


def _read_shard(path: Path) -> pa.Table:
    try:
        names = pq.read_schema(path).names
        missing = [name for name in COLUMNS if name not in names]
        if missing:
            raise InputError(f"{path} lacks the columns {missing}.", fix=f"Triples have the columns {COLUMNS}.")
        table = pq.read_table(path, columns=[*COLUMNS, *(["status"] if "status" in names else [])])
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} can't be read: {error}", fix="Make the shard again.") from error
    if "status" in table.column_names:
        table = table.filter(pa.array([status == "ok" for status in table["status"].to_pylist()], pa.bool_()))
    return table.select(list(COLUMNS))


def _decode(data: bytes, size_px: int) -> torch.Tensor:
    with Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP")) as opened:
        image = opened.convert("RGB")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    box = (left, top, left + side, top + side)
    resized = image.resize((size_px, size_px), Image.Resampling.LANCZOS, box=box)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1).float() / 127.5 - 1
