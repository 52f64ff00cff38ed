"""Packs a finished base as the one that ships with the package: half precision, 4 MB at width 24.

Example:
    python -m e2gan_cluster.train.bundle_base --storage runs/base --base-id 0123456789ab --out e2gan_cluster/assets/base
"""

import argparse
import hashlib
import json
from pathlib import Path

import torch
from safetensors.torch import save

from e2gan_cluster.storage import open_store
from e2gan_cluster.train.base_start import load_bundled_base
from e2gan_cluster.train.base_store import (
    BUNDLED_BASE_DIR,
    CONFIG,
    DISCRIMINATOR,
    GENERATOR,
    RANDOM,
    Base,
    bundled_base_facts,
    load_base,
    start_id,
)


def bundle_base(base: Base, folder: Path) -> str:
    """Writes the files that `load_bundled_base` reads.

    Args:
        base: A finished base.
        folder: Where to; files of an earlier base are replaced.

    Returns:
        Its id as a start: another than the base's own, since half precision is other bytes.
    """
    generator = _half(base.generator)
    images = int(base.meta["images"])
    if base.meta["start_from"] != RANDOM and base.meta["start_from"] == start_id("bundled"):
        images += int(bundled_base_facts()["images"])
    facts = {
        "nets": base.nets.model_dump(mode="json"),
        "text_dim": base.text_dim,
        "resolution": base.meta["resolution"],
        "images": images,
        "concepts": list(base.meta["concepts"]),
        "generator_sha256": hashlib.sha256(generator).hexdigest(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / GENERATOR).write_bytes(generator)
    (folder / DISCRIMINATOR).write_bytes(_half(base.discriminator))
    (folder / CONFIG).write_text(json.dumps(facts, indent=1) + "\n")
    return load_bundled_base(folder).base_id


def _half(module: torch.nn.Module) -> bytes:
    return save({name: t.detach().cpu().half().contiguous() for name, t in module.state_dict().items()})


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--storage", required=True, help="where the base was published: folder or s3://bucket/prefix")
    parser.add_argument("--base-id", required=True)
    parser.add_argument("--out", type=Path, default=BUNDLED_BASE_DIR, help="folder of the files")
    options = parser.parse_args()
    base_id = bundle_base(load_base(open_store(options.storage), options.base_id), options.out)
    print(f"base {options.base_id} is now the start {base_id} in {options.out}")  # noqa: T201


if __name__ == "__main__":
    main()
