"""Small photos, configs and stores for the tests of pair generation."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from e2gan_cluster.concepts import Concept
from e2gan_cluster.config import RunConfig

INVERT = Concept("invert", "invert the colours")
OTHER = Concept("other", "another edit")


def write_photos(folder: Path, count: int, first: int = 0) -> Path:
    """Noisy gradients, all different; reproducible."""
    folder.mkdir(parents=True, exist_ok=True)
    for n in range(first, first + count):
        rng = np.random.default_rng(n)
        ramp = np.linspace(0, 150, 48)[None, :, None] + np.linspace(0, 60, 36)[:, None, None]
        image = (ramp + rng.uniform(0, 40, (36, 48, 3))).clip(0, 255).astype(np.uint8)
        Image.fromarray(image).save(folder / f"{n:05d}.png")
    return folder


def config_for(photos: Path, store: Path | str, **pairs: Any) -> RunConfig:
    """Fake editor, 32 px, a few rows per shard; ``pairs`` overrides fields of `pairs`."""
    photo_fields = {key: pairs.pop(key) for key in ("limit", "crops_per_photo", "heldout_fraction") if key in pairs}
    teacher = pairs.pop("teacher", {"backend": "custom", "model": "tests.fake_editor:make", "batch_size": 3})
    settings = {"resolution": 32, "pairs_per_concept": 400, "rows_per_shard": 6, "max_workers": 1, **pairs}
    return RunConfig.model_validate(
        {
            "storage": str(store),
            "photos": {"source": str(photos), **photo_fields},
            "teacher": teacher,
            "pairs": settings,
        }
    )
