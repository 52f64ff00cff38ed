"""A tiny base, adapters trained by nobody, photos."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from torch import nn

from e2gan_cluster.nn.generator import Generator
from e2gan_cluster.nn.lora import adaptable_layers, add_lora, save_adapter
from e2gan_cluster.storage.manifest import Manifest

BASE_ID = "0123456789ab"
PARTS = ("downsample", "ds", "transformer", "us", "upsample")
FORMATS = ("onnx-adapter", "required-inputs", "merged", "onnx-adapter-fp16", "merged-fp16", "merged-int8", "ort")


@dataclass(frozen=True)
class Base:
    generator: Generator
    base_id: str = BASE_ID


@dataclass(frozen=True)
class Adapter:
    """An adapter, its files, its prompt, and PEFT's own model of it."""

    files: Mapping[str, bytes]
    tokens_TD: np.ndarray
    model: PeftModel

    def torch_edit(self, x_BCHW: np.ndarray) -> np.ndarray:
        text_BTD = torch.from_numpy(self.tokens_TD[None])
        with torch.inference_mode():
            return self.model(torch.from_numpy(x_BCHW), text_BTD).numpy()


def make_base(width: int = 8, text_dim: int = 32) -> Base:
    """Every layer matters: the ones that start at zero get small weights."""
    torch.manual_seed(0)
    generator = Generator(width=width, text_dim=text_dim).eval()
    for parameter in generator.parameters():
        if not parameter.abs().max():
            nn.init.normal_(parameter, std=0.03)
    return Base(generator)


def make_adapter(base: Base, seed: int, base_id: str = BASE_ID) -> Adapter:
    """LoRA of ranks 1 to 3 on most of the crucial layers."""
    generator = copy.deepcopy(base.generator)
    layers = adaptable_layers(generator, PARTS)[seed % 3 :]
    model = add_lora(generator, {name: 1 + i % 3 for i, name in enumerate(layers)}, seed=seed)
    rng = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.1, generator=rng)
    dim = base.generator.text_dim
    tokens_TD = np.zeros((24, dim), np.float32)
    tokens_TD[: 4 + seed] = np.random.default_rng(seed).standard_normal((4 + seed, dim))
    return Adapter(save_adapter(model, base_id), tokens_TD, model.eval())


def smooth_photos(count: int, height: int, width: int) -> np.ndarray:
    """Photos without noise: coarse random colours, enlarged."""
    coarse = np.random.default_rng(7).integers(0, 256, (count, 5, 6, 3), dtype=np.uint8)
    tiles = np.repeat(np.repeat(coarse, -(-height // 5), axis=1), -(-width // 6), axis=2)
    return np.ascontiguousarray(tiles[:, :height, :width])


def signed(photo_HWC: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(photo_HWC.transpose(2, 0, 1)[None]).astype(np.float32) / 127.5 - 1


def write_published(folder: Path, files: Mapping[str, bytes | Path], meta: Mapping[str, object]) -> None:
    """A folder with its manifest, as pull leaves it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.read_bytes())
    (folder / "manifest.json").write_bytes(Manifest.build(files, meta).to_json())


def rewrite(root: Path, concept: str, files: Mapping[str, bytes], base_id: str = BASE_ID) -> None:
    """Replaces files of a pulled effect, with a manifest that agrees."""
    folder = root / "adapters" / concept
    present = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "manifest.json"}
    write_published(folder, {**present, **files}, {"base_id": base_id, "concept": concept})
