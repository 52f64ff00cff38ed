"""CLIP embeddings of images and texts from a model the user gives (folder or hub id).

The weights are not part of this package; pair filters (InstructPix2Pix 3.1.2) and the ``clip_*`` metrics use
them.

Example:
    >>> clip = ClipScorer("openai/clip-vit-base-patch32")
    >>> clip.images(images_NHWC) @ clip.texts(["an oil painting"]).T
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from e2gan_cluster.errors import UserError


class ClipScorer:
    """A CLIP model with unit-length embeddings.

    Args:
        model: Folder or hub id.
        device: Where it runs.

    Raises:
        UserError: The model cannot be loaded.
    """

    def __init__(self, model: str, device: str | torch.device = "cpu") -> None:
        from transformers import AutoTokenizer, CLIPModel

        self.device = torch.device(device)
        try:
            network: Any = CLIPModel.from_pretrained(model)
            self._tokenizer: Any = AutoTokenizer.from_pretrained(model)
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(
                f"The CLIP model {model} cannot be loaded: {reason}", fix="give a folder, or go on-line"
            ) from error
        self._network = network.to(self.device).eval().requires_grad_(False)

    @torch.inference_mode()
    def images(self, images_NHWC: np.ndarray, batch_size: int = 32) -> np.ndarray:
        """Embeddings of uint8 RGB images, float32 [N, D], unit length."""
        side = self._network.config.vision_config.image_size
        mean = torch.tensor([0.48145466, 0.4578275, 0.40821073], device=self.device)[:, None, None]
        std = torch.tensor([0.26862954, 0.26130258, 0.27577711], device=self.device)[:, None, None]
        rows = []
        for start in range(0, len(images_NHWC), batch_size):
            x_BHWC = torch.from_numpy(np.ascontiguousarray(images_NHWC[start : start + batch_size])).to(self.device)
            x_BCHW = x_BHWC.permute(0, 3, 1, 2).float() / 255.0
            x_BCHW = F.interpolate(x_BCHW, size=(side, side), mode="bicubic", align_corners=False, antialias=True)
            states = self._network.vision_model(pixel_values=(x_BCHW.clamp(0, 1) - mean) / std)
            rows.append(F.normalize(self._network.visual_projection(states.pooler_output), dim=-1).cpu().numpy())
        return np.concatenate(rows)

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """Embeddings of texts, float32 [N, D], unit length."""
        tokens = self._tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt").to(self.device)
        states = self._network.text_model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
        return F.normalize(self._network.text_projection(states.pooler_output), dim=-1).cpu().numpy()
