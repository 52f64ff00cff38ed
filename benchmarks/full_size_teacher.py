"""The full-size InstructPix2Pix architecture with random weights: speed does not depend on the weights.

Stable Diffusion 1.5's UNet with 8 input channels, its VAE and its text encoder, after their published configs; the
tokenizer knows single characters only (its vocabulary is not needed for speed).
"""
# diffusers exports lazily and types some parameters by their first value.
# pyright: reportPrivateImportUsage=false, reportArgumentType=false

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    EulerAncestralDiscreteScheduler,
    StableDiffusionInstructPix2PixPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

START, END = 49406, 49407


def save_full_size_teacher(folder: Path, device: str = "cpu", tiny: bool = False) -> None:
    """Writes the pipeline to a folder as `from_pretrained` reads it, in fp16.

    Args:
        folder: Where to.
        device: Where the weights are drawn; a GPU is much faster.
        tiny: An eighth of the widths, to try programs out.
    """
    share = 8 if tiny else 1
    torch.manual_seed(0)
    # The scheduler computes with numpy: it stays outside.
    scheduler = EulerAncestralDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1
    )
    with torch.device(device):
        pipe: Any = StableDiffusionInstructPix2PixPipeline(
            vae=_vae(share), text_encoder=_text_encoder(share), tokenizer=_tokenizer(), unet=_unet(share),
            scheduler=scheduler,
            safety_checker=None, feature_extractor=None, requires_safety_checker=False,
        )  # fmt: skip
    pipe.to(dtype=torch.float16)
    pipe.save_pretrained(folder, safe_serialization=True)


def _unet(share: int) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=64, in_channels=8, out_channels=4, layers_per_block=2, attention_head_dim=8,
        block_out_channels=tuple(c // share for c in (320, 640, 1280, 1280)), cross_attention_dim=768 // share,
        norm_num_groups=32 // share,
    )  # fmt: skip


def _vae(share: int) -> AutoencoderKL:
    return AutoencoderKL(
        sample_size=512, latent_channels=4, layers_per_block=2, norm_num_groups=32 // share,
        block_out_channels=tuple(c // share for c in (128, 256, 512, 512)),
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip


def _text_encoder(share: int) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=END + 1,
            hidden_size=768 // share,
            intermediate_size=3072 // share,
            num_hidden_layers=12,
            num_attention_heads=12,
            max_position_embeddings=77,
            bos_token_id=START,
            eos_token_id=END,
            pad_token_id=END,
        )
    ).eval()


def _tokenizer() -> CLIPTokenizer:
    with tempfile.TemporaryDirectory() as folder:
        vocab, merges = Path(folder) / "vocab.json", Path(folder) / "merges.txt"
        characters = [chr(c) for c in range(33, 127)]
        words = {word: n for n, word in enumerate([*characters, *(f"{c}</w>" for c in characters)])}
        vocab.write_text(json.dumps({**words, "<|startoftext|>": START, "<|endoftext|>": END}))
        merges.write_text("#version: 0.2\n")
        return CLIPTokenizer(str(vocab), str(merges), model_max_length=77)
