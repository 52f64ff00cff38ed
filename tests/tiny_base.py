"""A base of two concepts at 32 px that trains in a second, and its pairs made by the fake editor."""

from pathlib import Path

from e2gan_cluster.concepts import Concept
from e2gan_cluster.config import RunConfig
from e2gan_cluster.pairs.generate import run_local
from e2gan_cluster.progress import SilentReporter
from e2gan_cluster.storage import open_store
from e2gan_cluster.storage.base import ObjectStore
from tests.pairs.pairs_setup import write_photos

CONCEPTS = [Concept("invert", "invert the colours"), Concept("other", "another edit of the photo")]
TRAIN = {
    "images": 96, "batch_size": 4, "lr": 1e-3, "checkpoint_images": 24, "eval_images": 48, "ema_images": 20,
    "loss": {"l1_weight": 10},
}  # fmt: skip
NETS = {"width": 4, "disc_width": 4, "text_tokens": 12}


def tiny_base_config(folder: Path, storage: str | None = None, **train: object) -> RunConfig:
    """Config whose photos lie in ``folder/photos`` and whose storage is ``folder/store``."""
    options = {key: train.pop(key) for key in ("num_workers", "max_failures", "keep_checkpoints") if key in train}
    return RunConfig.model_validate(
        {
            "storage": storage or str(folder / "store"),
            "photos": {"source": str(folder / "photos")},
            "concepts": {"catalogue": str(folder / "concepts.yaml"), "base": [c.name for c in CONCEPTS]},
            "teacher": {"backend": "custom", "model": "tests.fake_editor:make"},
            "pairs": {"resolution": 32, "pairs_per_concept": 400, "rows_per_shard": 16},
            "nets": NETS,
            "base": {"train": TRAIN | train, "worker_cpus": 1, **options},
        }
    )


def with_pairs(folder: Path, storage: str | None = None, **train: object) -> tuple[RunConfig, ObjectStore]:
    """Config and a store that holds its pairs."""
    write_photos(folder / "photos", 14)
    lines = [f"- name: {c.name}\n  prompt: {c.prompt}\n" for c in CONCEPTS]
    (folder / "concepts.yaml").write_text("".join(lines))
    config = tiny_base_config(folder, storage, **train)
    store = open_store(config.storage)
    results = run_local(config, store, CONCEPTS, SilentReporter())
    assert all(result.failure is None for result in results.values())
    return config, store
