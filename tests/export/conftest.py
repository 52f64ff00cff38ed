"""One tiny base, two adapters and their exports; made once per process."""

from pathlib import Path

import pytest

from e2gan_cluster.export.adapter_export import ExportResult, export_adapter
from e2gan_cluster.export.base_export import BaseExport, export_base
from e2gan_cluster.nn.lora import adaptable_layers
from tests.export.tiny import (
    BASE_ID,
    FORMATS,
    PARTS,
    Adapter,
    Base,
    make_adapter,
    make_base,
    smooth_photos,
    write_published,
)


@pytest.fixture(scope="session")
def base() -> Base:
    return make_base()


@pytest.fixture(scope="session")
def adapters(base: Base) -> list[Adapter]:
    return [make_adapter(base, seed) for seed in (1, 2)]


@pytest.fixture(scope="session")
def layers(base: Base) -> list[str]:
    return adaptable_layers(base.generator, PARTS)


@pytest.fixture(scope="session")
def base_export(base: Base, layers: list[str], tmp_path_factory: pytest.TempPathFactory) -> BaseExport:
    return export_base(base, layers, tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def exports(
    base: Base, base_export: BaseExport, adapters: list[Adapter], tmp_path_factory: pytest.TempPathFactory
) -> list[ExportResult]:
    """All formats of the first adapter, the default ones of the second."""
    photos_NHWC = smooth_photos(2, 64, 48)
    results = []
    for n, adapter in enumerate(adapters):
        folder = tmp_path_factory.mktemp(f"adapter{n}")
        formats = FORMATS if n == 0 else FORMATS[:3]
        results.append(
            export_adapter(base, base_export, adapter.files, adapter.tokens_TD, formats, folder, photos_NHWC)
        )
    return results


@pytest.fixture(scope="session")
def pulled(base_export: BaseExport, exports: list[ExportResult], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like the one that pull writes."""
    root = tmp_path_factory.mktemp("pulled")
    write_published(root / "base", base_export.files, base_export.meta())
    for concept, export in zip(("oil", "snow"), exports, strict=True):
        write_published(root / "adapters" / concept, export.files, {"base_id": BASE_ID, "concept": concept})
    return root
