"""Makes what the page's test needs: a tiny base with two effects, a photo, and torch's own edits of it.

Example:
    .venv/bin/python examples/web/make_fixture.py build/web-test && cd examples/web && npm test
"""

import argparse
import copy
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from e2gan_cluster.export.adapter_export import export_adapter
from e2gan_cluster.export.base_export import export_base
from e2gan_cluster.export.tiles import edit_any_size
from e2gan_cluster.nn.generator import Generator
from e2gan_cluster.nn.lora import adaptable_layers, add_lora, save_adapter
from e2gan_cluster.storage.folder import adapter_folder, base_folder
from e2gan_cluster.storage.manifest import MANIFEST, Manifest

BASE_ID = "00112233aabb"
PARTS = ("downsample", "ds", "transformer", "us", "upsample")
EFFECTS = ("dawn", "ink")


class Base:
    """An untrained base whose zero layers got small random weights."""

    base_id = BASE_ID

    def __init__(self, width: int) -> None:
        torch.manual_seed(0)
        self.generator = Generator(width=width, text_dim=32).eval()
        for parameter in self.generator.parameters():
            if not parameter.abs().max():
                torch.nn.init.normal_(parameter, std=0.02)


def main() -> None:
    """Writes the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--photo", type=Path, help="a photo; default: a drawn one")
    options = parser.parse_args()
    base = Base(options.width)
    layers = adaptable_layers(base.generator, PARTS)
    exported = export_base(base, layers, base_folder(options.out))
    (base_folder(options.out) / MANIFEST).write_bytes(Manifest.build(exported.files, exported.meta()).to_json())
    photo_HWC = _photo(options.photo)
    Image.fromarray(photo_HWC).save(options.out / "photo.png")
    for seed, name in enumerate(EFFECTS, start=1):
        model = add_lora(copy.deepcopy(base.generator), dict.fromkeys(layers, seed), seed=seed)
        for parameter_name, parameter in model.named_parameters():
            if "lora_B" in parameter_name:
                parameter.data.normal_(std=0.03, generator=torch.Generator().manual_seed(seed))
        tokens_TD = np.random.default_rng(seed).standard_normal((6, 32)).astype(np.float32)
        folder = adapter_folder(options.out, name)
        files = save_adapter(model, BASE_ID)
        result = export_adapter(
            base, exported, files, tokens_TD, ["required-inputs", "onnx-adapter"], folder, photo_HWC[None, :96, :96]
        )
        meta = {"base_id": BASE_ID, "concept": name}
        (folder / MANIFEST).write_bytes(Manifest.build(result.files, meta).to_json())
        model.eval()
        edited_HWC = edit_any_size(lambda x, m=model, t=tokens_TD: _torch(m, x, t), photo_HWC, side=None)
        Image.fromarray(edited_HWC).save(options.out / f"expected-{name}.png")


def _torch(model: torch.nn.Module, x_1CHW: np.ndarray, tokens_TD: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return model(torch.from_numpy(x_1CHW), torch.from_numpy(tokens_TD[None])).numpy()


def _photo(path: Path | None) -> np.ndarray:
    if path:
        with Image.open(path) as image:
            image.thumbnail((250, 250))
            return np.asarray(image.convert("RGB"))
    y, x = np.mgrid[0:150, 0:203].astype(np.float32)
    waves = [np.sin(x / 17 + c) * np.cos(y / (11 + 4 * c)) for c in range(3)]
    return np.stack([np.round(127.5 + 110 * wave).astype(np.uint8) for wave in waves], axis=-1)


if __name__ == "__main__":
    main()
