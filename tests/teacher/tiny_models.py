"""Tiny, randomly initialised models of every kind of teacher, saved to a folder as a hub would hold them."""
# diffusers exports lazily and types some parameters by their first value.
# pyright: reportPrivateImportUsage=false, reportArgumentType=false

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerAncestralDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxKontextPipeline,
    FluxTransformer2DModel,
    LatentConsistencyModelImg2ImgPipeline,
    LCMScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInstructPix2PixPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

SIDE = 32


def photos(count: int, side: int = SIDE) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def clip_tokenizer(folder: Path) -> CLIPTokenizer:
    """Characters as tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    characters = [chr(c) for c in range(33, 127)]
    words = [*characters, *(f"{c}</w>" for c in characters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: n for n, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77)


def clip_text(projection: bool = False) -> Any:
    torch.manual_seed(1)
    config = CLIPTextConfig(
        vocab_size=200, hidden_size=32, intermediate_size=37, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=77, projection_dim=32, bos_token_id=188, eos_token_id=189, pad_token_id=189,
    )  # fmt: skip
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config).eval()


def kl_vae(channels: int = 4, **options: Any) -> AutoencoderKL:
    torch.manual_seed(2)
    return AutoencoderKL(
        block_out_channels=(16, 32), in_channels=3, out_channels=3, latent_channels=channels, norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, sample_size=32,
        **options,
    ).eval()  # fmt: skip


def unet(in_channels: int, **options: Any) -> UNet2DConditionModel:
    torch.manual_seed(3)
    settings: dict[str, Any] = {
        "block_out_channels": (16, 32), "layers_per_block": 1, "sample_size": 16, "in_channels": in_channels,
        "out_channels": 4, "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "norm_num_groups": 8,
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), "cross_attention_dim": 32, "attention_head_dim": 4,
    }  # fmt: skip
    return UNet2DConditionModel(**{**settings, **options}).eval()


def xl_unet(in_channels: int) -> UNet2DConditionModel:
    return unet(
        in_channels, addition_embed_type="text_time", addition_time_embed_dim=8, cross_attention_dim=64,
        projection_class_embeddings_input_dim=80, transformer_layers_per_block=1, use_linear_projection=True,
    )  # fmt: skip


def ddim() -> DDIMScheduler:
    return DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)


def sd_instruct(folder: Path) -> Any:
    # The scheduler of timbrooks/instruct-pix2pix; it draws noise at every step.
    scheduler = EulerAncestralDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    return StableDiffusionInstructPix2PixPipeline(
        vae=kl_vae(), text_encoder=clip_text(), tokenizer=clip_tokenizer(folder / "t"), unet=unet(8),
        scheduler=scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def xl_instruct(folder: Path) -> Any:
    return StableDiffusionXLInstructPix2PixPipeline(
        vae=kl_vae(), text_encoder=clip_text(), text_encoder_2=clip_text(True), unet=xl_unet(8), scheduler=ddim(),
        tokenizer=clip_tokenizer(folder / "t"), tokenizer_2=clip_tokenizer(folder / "t"), add_watermarker=False,
    )  # fmt: skip


def sd_img2img(folder: Path) -> Any:
    return StableDiffusionImg2ImgPipeline(
        vae=kl_vae(), text_encoder=clip_text(), tokenizer=clip_tokenizer(folder / "t"), unet=unet(4),
        scheduler=ddim(), safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def xl_img2img(folder: Path) -> Any:
    return StableDiffusionXLImg2ImgPipeline(
        vae=kl_vae(), text_encoder=clip_text(), text_encoder_2=clip_text(True), unet=xl_unet(4), scheduler=ddim(),
        tokenizer=clip_tokenizer(folder / "t"), tokenizer_2=clip_tokenizer(folder / "t"), add_watermarker=False,
    )  # fmt: skip


def lcm(folder: Path) -> Any:
    scheduler = LCMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)
    return LatentConsistencyModelImg2ImgPipeline(
        vae=kl_vae(), text_encoder=clip_text(), tokenizer=clip_tokenizer(folder / "t"),
        unet=unet(4, time_cond_proj_dim=32), scheduler=scheduler, safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip


def t5(folder: Path) -> tuple[Any, Any]:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

    words = ["<pad>", "</s>", "<unk>", *(chr(c) for c in range(33, 127))]
    inner = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=77
    )
    torch.manual_seed(4)
    config = T5Config(vocab_size=100, d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4)
    return tokenizer, T5EncoderModel(config).eval()


def flux_kontext(folder: Path) -> Any:
    torch.manual_seed(5)
    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=(4, 4, 8),
        guidance_embeds=True,
    ).eval()  # fmt: skip
    tokenizer_2, text_encoder_2 = t5(folder / "t5")
    vae = kl_vae(4, shift_factor=0.1, scaling_factor=0.4, use_quant_conv=False, use_post_quant_conv=False)
    return FluxKontextPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(), vae=vae, text_encoder=clip_text(),
        tokenizer=clip_tokenizer(folder / "t"), text_encoder_2=text_encoder_2, tokenizer_2=tokenizer_2,
        transformer=transformer,
    )  # fmt: skip


def saved(build: Callable[[Path], Any], folder: Path) -> Path:
    """The model written by `save_pretrained`."""
    target = folder / "model"
    build(folder / "parts").save_pretrained(target, safe_serialization=True)
    return target


def qwen_edit(folder: Path) -> None:
    """Saved part by part: the stock processor can't even be built without torchvision."""
    from diffusers import AutoencoderKLQwenImage, QwenImageTransformer2DModel
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    tokenizer = byte_tokenizer(folder / "tokenizer")
    ids = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("image_pad", "vision_start", "vision_end")}
    torch.manual_seed(6)
    text = {
        "vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 4096,
        "rope_parameters": {"mrope_section": [1, 1, 2], "rope_type": "default", "rope_theta": 1e6},
    }  # fmt: skip
    vision = {"depth": 2, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16}
    config = Qwen2_5_VLConfig(
        text_config=text, vision_config=vision, image_token_id=ids["image_pad"],
        vision_start_token_id=ids["vision_start"], vision_end_token_id=ids["vision_end"],
    )  # fmt: skip
    parts = {
        "text_encoder": Qwen2_5_VLForConditionalGeneration(config).eval(),
        "transformer": QwenImageTransformer2DModel(
            patch_size=2, in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16,
            num_attention_heads=3, joint_attention_dim=16, guidance_embeds=False, axes_dims_rope=(8, 4, 4),
        ),
        "vae": AutoencoderKLQwenImage(
            base_dim=8, z_dim=4, dim_mult=[1, 2, 4], num_res_blocks=1, temperal_downsample=[False, True],
            latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
        ),
        "scheduler": FlowMatchEulerDiscreteScheduler(),
        "processor": Qwen2VLImageProcessorPil(min_pixels=56 * 56, max_pixels=112 * 112),
    }  # fmt: skip
    for name, part in parts.items():
        part.save_pretrained(folder / name)
    library = {"text_encoder": "transformers", "tokenizer": "transformers", "processor": "transformers"}
    classes = {name: [library.get(name, "diffusers"), type(part).__name__] for name, part in parts.items()}
    classes |= {"processor": ["transformers", "Qwen2VLProcessor"], "tokenizer": ["transformers", "Qwen2Tokenizer"]}
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "QwenImageEditPipeline", **classes}))


def byte_tokenizer(folder: Path) -> Any:
    """Bytes as tokens."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2Tokenizer

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
    vocab = {token: n for n, token in enumerate([*sorted(ByteLevel.alphabet()), *special])}
    tokenizer = Qwen2Tokenizer(vocab=vocab, merges=[], additional_special_tokens=special[1:])
    tokenizer.save_pretrained(folder)
    return tokenizer
