"""The bundled teacher: a small pixel-space editor run by diffusers' own InstructPix2Pix pipeline.

The photo is folded by 4 (`PixelFold`, the place of the VAE), `PromptPooledUNet` predicts the edited photo from the
noisy edit, the photo and the prompt's MiniLM tokens, and a DDIM scheduler with zero terminal SNR needs few steps.
How it was trained and measured: docs/teacher.md.

Example:
    >>> pipe = load_bundled_pipeline()
    >>> pipe(prompt="turn it into a snowy winter day", image=photo, **BUNDLED_DEFAULTS.call_options()).images[0]
"""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.image_processor import VaeImageProcessor
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel, UNet2DConditionOutput
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_instruct_pix2pix import (
    StableDiffusionInstructPix2PixPipeline,
)
from diffusers.schedulers.scheduling_ddim import DDIMScheduler

from e2gan_cluster.errors import TeacherError
from e2gan_cluster.text.encoder import PromptEncoder, normalise_tokens, pool_tokens

BUNDLED_DIR = Path(__file__).resolve().parent.parent / "assets" / "teacher"
FOLD = 4
SIZE_MULTIPLE = 16
TEXT_DIM = 384


@dataclass(frozen=True)
class BundledDefaults:
    """Settings the bundled teacher was trained and measured with.

    Attributes:
        steps: Denoising steps.
        guidance_scale: 1 = the plain prediction (one network call a step); above 1 pushes away from the photo.
        image_guidance_scale: Of the InstructPix2Pix pipeline; only counts with guidance_scale > 1.
        resolution: Side in pixels of the training crops; other multiples of 16 run too.
    """

    steps: int = 2
    guidance_scale: float = 1.0
    image_guidance_scale: float = 1.0
    resolution: int = 128

    def call_options(self) -> dict[str, Any]:
        """Keyword arguments for the pipeline's call."""
        return {
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance_scale,
            "image_guidance_scale": self.image_guidance_scale,
        }


BUNDLED_DEFAULTS = BundledDefaults()


class PixelFold(ModelMixin, ConfigMixin):
    """Stands where a pipeline expects a VAE: 4 x 4 pixels become 48 channels, without loss.

    Args:
        latent_channels: 3 times fold squared.
        scaling_factor: 1; the pipeline divides by it.
        block_out_channels: Only its length counts: the pipeline reads 2 ** (length - 1) = 4 as the fold.
    """

    config_name = "config.json"

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 3 * FOLD * FOLD,
        scaling_factor: float = 1.0,
        block_out_channels: tuple[int, ...] = (48, 48, 48),
    ) -> None:
        super().__init__()
        self.register_buffer("anchor", torch.zeros(1), persistent=True)

    def encode(self, x_BCHW: torch.Tensor) -> SimpleNamespace:
        """Folds images [B, 3, H, W] to [B, 48, H/4, W/4], wrapped as a VAE's posterior."""
        z_BCHW = fold_pixels(x_BCHW)
        return SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: z_BCHW, sample=lambda _=None: z_BCHW))

    def decode(self, z_BCHW: torch.Tensor, return_dict: bool = True, **_: Any) -> Any:
        """Unfolds [B, 48, h, w] to images [B, 3, 4h, 4w]."""
        x_BCHW = unfold_pixels(z_BCHW)
        return SimpleNamespace(sample=x_BCHW) if return_dict else (x_BCHW,)


def fold_pixels(x_BCHW: torch.Tensor) -> torch.Tensor:
    """Images to folded pixels: [B, 3, H, W] to [B, 48, H/4, W/4]."""
    return torch.nn.functional.pixel_unshuffle(x_BCHW, FOLD)


def unfold_pixels(z_BCHW: torch.Tensor) -> torch.Tensor:
    """The inverse of `fold_pixels`."""
    return torch.nn.functional.pixel_shuffle(z_BCHW, FOLD)


class PromptPooledUNet(UNet2DConditionModel):
    """UNet2DConditionModel in which the pooled prompt also steers every block, and the photo has a direct path.

    Two changes against the parent, both inside `forward`, so that stock pipelines run it:
    the mean of the prompt's tokens joins the time embedding (at high noise the prompt decides nearly everything), and
    the output is `delta + (1 + gate) * photo` at full resolution, against blur.
    """

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        encoder_hidden_states: torch.Tensor,
        return_dict: bool = True,
        **kwargs: Any,
    ) -> UNet2DConditionOutput | tuple[torch.Tensor]:
        """Predicts the clean folded edit.

        Args:
            sample: Noisy edit and photo, [B, 96, h, w].
            timestep: Scheduler timestep, 0 to 999.
            encoder_hidden_states: Prompt tokens, [B, T, 384]; padding rows are 0.
            return_dict: As in the parent.
            **kwargs: Passed on to the parent.

        Returns:
            The prediction [B, 48, h, w], in the parent's wrapping.
        """
        pooled_BD = pool_tokens(encoder_hidden_states) * encoder_hidden_states.shape[-1] ** 0.5
        kwargs.pop("class_labels", None)
        out_BCHW = super().forward(
            sample, timestep, encoder_hidden_states, class_labels=pooled_BD, return_dict=False, **kwargs
        )[0]
        delta_BCHW, gate_BCHW = out_BCHW.chunk(2, dim=1)
        photo_BCHW = sample[:, sample.shape[1] // 2 :]
        x0_BCHW = delta_BCHW + (1 + gate_BCHW) * photo_BCHW
        return UNet2DConditionOutput(sample=x0_BCHW) if return_dict else (x0_BCHW,)


class TokenEncoder(torch.nn.Module):
    """MiniLM as a pipeline's `text_encoder`: token states scaled as `PromptEncoder` scales them.

    Args:
        encoder: Holds the loaded model.
    """

    def __init__(self, encoder: PromptEncoder) -> None:
        super().__init__()
        self.model = encoder.model
        self.config = SimpleNamespace(use_attention_mask=True, hidden_size=encoder.dim)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return next(self.model.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Of the weights."""
        return next(self.model.parameters()).device

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor]:
        """Token ids and mask [B, T] to token states [B, T, 384]."""
        states_BTD = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return (normalise_tokens(states_BTD, attention_mask).to(self.dtype),)


def build_unet(
    channels: tuple[int, ...] = (64, 128, 192), text_dim: int = TEXT_DIM, norm_groups: int = 16
) -> PromptPooledUNet:
    """A fresh network; the output layer starts at 0, so it starts as the identity edit.

    Args:
        channels: Width of each level; attention sits in the middle block only, at 1/16 of the photo's side.
        text_dim: Width of the prompt tokens.
        norm_groups: Groups of the group norms.
    """
    levels = len(channels)
    unet = PromptPooledUNet(
        in_channels=2 * 3 * FOLD * FOLD,
        out_channels=2 * 3 * FOLD * FOLD,
        block_out_channels=channels,
        layers_per_block=1,
        down_block_types=("DownBlock2D",) * levels,
        mid_block_type="UNetMidBlock2DCrossAttn",
        up_block_types=("UpBlock2D",) * levels,
        cross_attention_dim=text_dim,
        attention_head_dim=max(1, channels[-1] // 32),
        norm_num_groups=norm_groups,
        resnet_time_scale_shift="scale_shift",
        class_embed_type="projection",
        projection_class_embeddings_input_dim=text_dim,
    )
    for parameter in unet.conv_out.parameters():
        torch.nn.init.zeros_(parameter)
    return unet


def build_scheduler() -> DDIMScheduler:
    """DDIM that predicts the clean image, from pure noise (zero terminal SNR, Lin et al. 2023, arXiv 2305.08891).

    With the cosine schedule the second of two steps meets as much signal as noise.
    """
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="sample",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=True,
        clip_sample_range=1.0,
    )


def assemble_pipeline(
    unet: UNet2DConditionModel, encoder: PromptEncoder | None = None
) -> StableDiffusionInstructPix2PixPipeline:
    """Puts a bundled-type network into the stock pipeline.

    Args:
        unet: From `build_unet` or loaded.
        encoder: The prompt encoder; None loads MiniLM.

    Returns:
        The pipeline, in evaluation mode, without progress bar.
    """
    encoder = encoder or PromptEncoder("minilm")
    pipe = StableDiffusionInstructPix2PixPipeline(
        vae=PixelFold(),  # pyright: ignore[reportArgumentType]
        text_encoder=TokenEncoder(encoder),  # pyright: ignore[reportArgumentType]
        tokenizer=encoder.tokenizer,
        unet=unet.eval(),
        scheduler=build_scheduler(),  # pyright: ignore[reportArgumentType]
        safety_checker=None,  # pyright: ignore[reportArgumentType]
        feature_extractor=None,  # pyright: ignore[reportArgumentType]
        requires_safety_checker=False,
    )
    pipe.image_processor = VaeImageProcessor(vae_scale_factor=SIZE_MULTIPLE)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def load_bundled_pipeline(
    device: str = "cpu", dtype: torch.dtype = torch.float32
) -> StableDiffusionInstructPix2PixPipeline:
    """Loads the teacher that ships with the package.

    Args:
        device: Torch device.
        dtype: float32, or a half precision that the device computes with.

    Returns:
        A stock pipeline; call it with `prompt=` or `prompt_embeds=` and `BUNDLED_DEFAULTS.call_options()`.

    Raises:
        TeacherError: The weights are missing from the installation.
    """
    if not (BUNDLED_DIR / "config.json").is_file():
        raise TeacherError(
            f"The bundled teacher's weights are missing: {BUNDLED_DIR}",
            fix="Install the package again, or train them: python jobs/train_teacher.py --help",
        )
    unet = PromptPooledUNet.from_pretrained(BUNDLED_DIR, torch_dtype=dtype, use_safetensors=True)
    return assemble_pipeline(unet).to(device=device, dtype=dtype)
