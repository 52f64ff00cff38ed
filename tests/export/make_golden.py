"""Writes the golden bundle of the present format version; run once per version, never over an old one.

Example:
    python -m tests.export.make_golden tests/export/golden/v1
"""

import sys
import tempfile
from pathlib import Path

import numpy as np

from e2gan_cluster.export.adapter_export import export_adapter
from e2gan_cluster.export.base_export import export_base
from e2gan_cluster.export.names import Format
from e2gan_cluster.export.tiles import edit_any_size
from e2gan_cluster.nn.lora import adaptable_layers
from tests.export.tiny import BASE_ID, PARTS, make_adapter, make_base, smooth_photos, write_published

ALL: tuple[Format, ...] = ("onnx-adapter", "required-inputs", "merged")


def main(target: Path) -> None:
    if target.exists():
        raise SystemExit(f"{target} is there already: golden files do not change")
    base = make_base(width=2, text_dim=8)
    photo_HWC = smooth_photos(1, 40, 56)[0]
    expected = {"photo": photo_HWC}
    with tempfile.TemporaryDirectory() as scratch:
        exported = export_base(base, adaptable_layers(base.generator, PARTS), Path(scratch))
        write_published(target / "base", exported.files, exported.meta())
        for seed, concept in ((1, "oil"), (2, "snow")):
            adapter = make_adapter(base, seed)
            formats: list[Format] = (
                ["onnx-adapter", "required-inputs", "merged", "ort"] if seed == 1 else ["onnx-adapter"]
            )
            folder = Path(scratch) / concept
            made = export_adapter(base, exported, adapter.files, adapter.tokens_TD, formats, folder, photo_HWC[None])
            files = {**made.files, **adapter.files}
            meta = {"base_id": BASE_ID, "concept": concept, "export": made.meta()}
            write_published(target / "adapters" / concept, files, meta)
            expected[concept] = edit_any_size(adapter.torch_edit, photo_HWC, side=None)
    np.savez_compressed(target / "expected.npz", **expected)
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    sys.stdout.write(f"{target}: {size} bytes\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
