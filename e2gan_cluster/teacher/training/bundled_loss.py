"""The bundled teacher's loss: which noise levels are drawn when, and how the prediction is compared.

The edit is nearly fixed by photo and prompt, so what decides is how well the prompt is learned at high noise. Training
starts there and widens to the middle levels that the later steps of a sampler visit.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from e2gan_cluster.teacher.bundled import PromptPooledUNet, fold_pixels, unfold_pixels
from e2gan_cluster.teacher.training.triples import TripleBatch
from e2gan_cluster.text.encoder import PromptEncoder

PURE_NOISE_T = 999


@dataclass(frozen=True)
class LossConfig:
    """Weights of the terms over the run's progress (0 to 1).

    Attributes:
        gradient_weight: Of the L1 distance between image gradients, full from `gradient_from` + 0.1, half from
            `late_from`: it asks for strokes in the exact place, which blurs them where the place can't be known.
        gradient_from: Progress at which the gradient term starts.
        perceptual_weight: Of the perceptual distance, on predictions from any noise level; double from `late_from`.
        perceptual_from: Progress at which the perceptual term starts.
        late_from: Progress at which texture counts more than place.
        widen_until: Progress at which the noise levels have their final spread.
        own_draft_share: Share of the rows below pure noise that start from the network's own draft.
        own_draft_from: Progress at which they begin.
    """

    gradient_weight: float = 0.6
    gradient_from: float = 0.15
    perceptual_weight: float = 0.6
    perceptual_from: float = 0.2
    late_from: float = 0.5
    widen_until: float = 0.4
    own_draft_share: float = 0.5
    own_draft_from: float = 0.2


def draw_timesteps(batch_size: int, progress: float, widen_until: float = 0.4) -> torch.Tensor:
    """Timesteps 0 to 999 for a batch: mostly pure noise at first, later also the levels that samplers visit.

    Args:
        batch_size: How many.
        progress: Of the run, 0 to 1.
        widen_until: Progress at which the spread is final: 45 % pure noise, the rest over 200 to 998.
    """
    widened = min(1.0, progress / widen_until)
    pure = torch.rand(batch_size) < 0.65 - 0.2 * widened
    low = 600 - 400 * widened
    spread = low + (998 - low) * torch.rand(batch_size)
    return torch.where(pure, torch.full((batch_size,), float(PURE_NOISE_T)), spread).long()


def gradient_distance(a_BCHW: torch.Tensor, b_BCHW: torch.Tensor) -> torch.Tensor:
    """Mean L1 distance between the images' horizontal and vertical differences, at full and half size."""
    difference = a_BCHW - b_BCHW
    total = difference.new_zeros(())
    for _ in range(2):
        total = total + (difference[..., 1:] - difference[..., :-1]).abs().mean()
        total = total + (difference[..., 1:, :] - difference[..., :-1, :]).abs().mean()
        difference = F.avg_pool2d(difference, 2)
    return total


class BundledLoss:
    """Callable (images seen, progress) -> loss of the next batch.

    Args:
        unet: Trained in place.
        alphas_cumprod: Of the scheduler; the last is 0.
        feed: From the images seen to the next batch of triples.
        encoder: Prompt encoder; it keeps what it has encoded.
        config: Weights of the terms.
        perceptual: From two image batches in [-1, 1] to a distance [B]; None leaves the term out.
        device: Where to compute.
        bf16: Compute the network in bf16 (weights stay float32): 1.8 times faster on a CPU with AVX-512 BF16.
    """

    def __init__(
        self,
        unet: PromptPooledUNet,
        alphas_cumprod: torch.Tensor,
        feed: Callable[[int], TripleBatch],
        encoder: PromptEncoder,
        config: LossConfig,
        perceptual: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
        device: str = "cpu",
        bf16: bool = True,
    ) -> None:
        self.bf16 = bf16
        self.unet, self.feed, self.config = unet, feed, config
        self.alphas, self.perceptual, self.device = alphas_cumprod.to(device), perceptual, device
        self.encoder = encoder

    def __call__(self, images_seen: int, progress: float) -> torch.Tensor:
        """Draws a batch and returns its loss."""
        batch = self.feed(images_seen)
        photo_BCHW = fold_pixels(self._tensor(batch.photos_BHWC))
        edited_BCHW = self._tensor(batch.edits_BHWC)
        tokens_BTD = self.encoder.encode(batch.prompts).tokens_BTD.to(self.device)
        x0_BCHW = fold_pixels(edited_BCHW)
        t_B = draw_timesteps(len(x0_BCHW), progress, self.config.widen_until)
        # Chosen on the CPU: asking the device would wait for all that it still has to do.
        drafted = self._drafted_rows(t_B, progress)
        t_B = t_B.to(self.device)
        alpha_B111 = self.alphas[t_B][:, None, None, None]
        noise_BCHW = torch.randn(x0_BCHW.shape, device=self.device)
        clean_BCHW = self._own_drafts(x0_BCHW, noise_BCHW, photo_BCHW, tokens_BTD, drafted)
        noisy_BCHW = alpha_B111.sqrt() * clean_BCHW + (1 - alpha_B111).sqrt() * noise_BCHW
        with torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.bf16):
            predicted = self.unet(torch.cat([noisy_BCHW, photo_BCHW], 1), t_B, tokens_BTD, return_dict=False)[0]
        return self.distance(unfold_pixels(predicted.float()), edited_BCHW, progress)

    def _drafted_rows(self, t_B: torch.Tensor, progress: float) -> torch.Tensor:
        """Half of the rows below pure noise, once the run is far enough."""
        share = self.config.own_draft_share if progress >= self.config.own_draft_from else 0.0
        return torch.nonzero((t_B < PURE_NOISE_T) & (torch.rand(len(t_B)) < share))[:, 0]

    @torch.no_grad()
    def _own_drafts(
        self,
        x0_BCHW: torch.Tensor,
        noise_BCHW: torch.Tensor,
        photo_BCHW: torch.Tensor,
        tokens_BTD: torch.Tensor,
        rows: torch.Tensor,
    ) -> torch.Tensor:
        """Replaces some rows by the network's own first step.

        A sampler's second step meets the first one's draft, never the true edit: without this the network learns to
        trust colours that shine through the noise.
        """
        if len(rows) == 0:
            return x0_BCHW
        rows = rows.to(self.device)
        pure_t = torch.full((len(rows),), PURE_NOISE_T, device=self.device)
        inputs = torch.cat([noise_BCHW[rows], photo_BCHW[rows]], 1)
        with torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.bf16):
            draft = self.unet(inputs, pure_t, tokens_BTD[rows], return_dict=False)[0]
        clean_BCHW = x0_BCHW.clone()
        clean_BCHW[rows] = draft.float().clamp(-1, 1)
        return clean_BCHW

    def distance(self, predicted_BCHW: torch.Tensor, target_BCHW: torch.Tensor, progress: float) -> torch.Tensor:
        """L1, then also gradients, then also the perceptual distance."""
        config = self.config
        late = 2.0 if progress >= config.late_from else 1.0
        loss = F.l1_loss(predicted_BCHW, target_BCHW)
        gradient_ramp = min(1.0, max(0.0, (progress - config.gradient_from) / 0.1))
        if gradient_ramp > 0:
            weight = config.gradient_weight * gradient_ramp / late
            loss = loss + weight * gradient_distance(predicted_BCHW, target_BCHW)
        if self.perceptual is not None and progress >= config.perceptual_from:
            # On half of the batch: a third of the cost of the network otherwise, for the same expected gradient.
            half = (len(predicted_BCHW) + 1) // 2
            with torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.bf16):
                perceptual_B = self.perceptual(predicted_BCHW[:half], target_BCHW[:half])
            loss = loss + config.perceptual_weight * late * perceptual_B.float().mean()
        return loss

    def _tensor(self, images_BHWC: torch.Tensor) -> torch.Tensor:
        return images_BHWC.to(self.device, non_blocking=True).permute(0, 3, 1, 2).float() / 127.5 - 1
