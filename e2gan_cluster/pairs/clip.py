"""Image-text similarities of InstructPix2Pix 3.1.2, where the user has a CLIP model.

The paper compares captions before and after the edit; here there is one instruction, so the text direction runs from
the caption "a photo" to the prompt.

Example:
    >>> ClipScorer("openai/clip-vit-large-patch14").scores(photos_NHWC, edits_NHWC, "make it snow")["clip_image"]
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from transformers import CLIPModel, CLIPTokenizer

from e2gan_cluster.errors import ConfigError

SOURCE_CAPTION = "a photo"
# Radford et al. 2021 (arXiv 2103.00020), the official preprocessing.
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)
_BATCH = 32


class ClipScorer:
    """A CLIP model for scoring pairs.

    Args:
        model: Folder or hub id.
        device: Where it runs.

    Raises:
        ConfigError: It can't be loaded.
    """

    def __init__(self, model: str, device: str = "cpu") -> None:
        local = Path(model).is_dir()
        try:
            clip = CLIPModel.from_pretrained(model, use_safetensors=True, local_files_only=local)
            self._tokenizer = CLIPTokenizer.from_pretrained(model, local_files_only=local)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"pairs.filters.clip_model {model!r} can't be loaded: {error}",
                "give a folder or hub id of a CLIP model with safetensors weights, or leave it empty",
            ) from error
        self._device = torch.device(device)
        self._clip = clip.to(self._device).eval()  # pyright: ignore[reportArgumentType]
        vision: Any = clip.config.vision_config
        self._side = int(vision.image_size)

    @torch.inference_mode()
    def scores(self, photos_NHWC: np.ndarray, edits_NHWC: np.ndarray, prompt: str) -> dict[str, np.ndarray]:
        """Cosines of each pair.

        Args:
            photos_NHWC: uint8.
            edits_NHWC: uint8.
            prompt: The edit prompt.

        Returns:
            `clip_image`, `clip_text` and `clip_direction`, each float [N].
        """
        photo_ND, edit_ND = self._images(photos_NHWC), self._images(edits_NHWC)
        source_1D, target_1D = self._texts([SOURCE_CAPTION, prompt]).split(1)
        found = {
            "clip_image": F.cosine_similarity(photo_ND, edit_ND),
            "clip_text": F.cosine_similarity(edit_ND, target_1D),
            "clip_direction": F.cosine_similarity(edit_ND - photo_ND, target_1D - source_1D),
        }
        return {name: value.cpu().numpy() for name, value in found.items()}

    def _images(self, images_NHWC: np.ndarray) -> torch.Tensor:
        mean = torch.tensor(_MEAN, device=self._device)[:, None, None]
        std = torch.tensor(_STD, device=self._device)[:, None, None]
        parts = []
        for start in range(0, len(images_NHWC), _BATCH):
            batch = torch.from_numpy(images_NHWC[start : start + _BATCH]).to(self._device)
            x_BCHW = batch.permute(0, 3, 1, 2).float() / 255
            size = (self._side, self._side)
            x_BCHW = F.interpolate(x_BCHW, size=size, mode="bicubic", antialias=True).clamp(0, 1)
            vision = self._clip.vision_model(pixel_values=(x_BCHW - mean) / std)
            parts.append(F.normalize(self._clip.visual_projection(vision.pooler_output), dim=-1))
        return torch.cat(parts)

    def _texts(self, texts: list[str]) -> torch.Tensor:
        tokens = self._tokenizer(texts, padding=True, truncation=True, return_tensors="pt").to(self._device)
        text = self._clip.text_model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
        return F.normalize(self._clip.text_projection(text.pooler_output), dim=-1)
