"""`e2gan export` and `e2gan edit` on a registry, as a user types them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save
from typer.testing import CliRunner

from e2gan_cluster.cli import app
from e2gan_cluster.config import NetsConfig
from e2gan_cluster.export.adapter_export import ExportResult
from e2gan_cluster.export.base_export import BaseExport
from e2gan_cluster.export.tiles import edit_any_size
from e2gan_cluster.storage import open_store
from e2gan_cluster.storage.bundle import publish_bundle
from e2gan_cluster.storage.registry import publish_adapter
from e2gan_cluster.train.base_store import publish_base
from e2gan_cluster.train.nets import build_discriminator
from tests.export.tiny import BASE_ID, Adapter, Base, make_adapter, smooth_photos


def publish(store_url: Path, concept: str, adapter: Adapter, base_id: str, exports: dict[str, bytes]) -> None:
    prompt = save({"tokens": adapter.tokens_TD, "pooled": adapter.tokens_TD.mean(0)})
    facts = {"config_fingerprint": "0", "code_version": "0", "teacher_fingerprint": "0", "metrics": {}}
    files = {**adapter.files, "prompt.safetensors": prompt, **exports}
    publish_adapter(open_store(store_url), concept, files, {"base_id": base_id, **facts})


@pytest.fixture
def registry(base_export: BaseExport, exports: list[ExportResult], adapters: list[Adapter], tmp_path: Path) -> Path:
    """A registry with one effect and its device files."""
    root = tmp_path / "registry"
    publish_bundle(open_store(root), f"mobile/{BASE_ID}/", base_export.files, base_export.meta())
    made = {name: path.read_bytes() for name, path in exports[0].files.items()}
    publish(root, "oil", adapters[0], BASE_ID, made)
    return root


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray(smooth_photos(1, 50, 70)[0]).save(path)
    return path


@pytest.mark.parametrize("fmt", ["onnx-adapter", "onnx-adapter-fp16", "merged-int8", "ort"])
def test_edit_takes_an_effect_straight_from_the_registry(registry: Path, photo: Path, tmp_path: Path, fmt: str):
    out = tmp_path / "made" / "out.png"
    arguments = ["--registry", str(registry), "--concept", "oil", "--image", str(photo), "--out", str(out)]
    done = CliRunner().invoke(app, ["edit", *arguments, "--format", fmt])
    assert done.exit_code == 0, done.output
    with Image.open(out) as image:
        assert image.size == (70, 50)


def test_pixels_from_the_registry_are_torchs(registry: Path, photo: Path, adapters: list[Adapter], tmp_path: Path):
    out = tmp_path / "out.png"
    arguments = ["--registry", str(registry), "--concept", "oil", "--image", str(photo), "--out", str(out)]
    assert CliRunner().invoke(app, ["edit", *arguments]).exit_code == 0
    expected = edit_any_size(adapters[0].torch_edit, smooth_photos(1, 50, 70)[0], side=None)
    assert np.abs(np.asarray(Image.open(out)).astype(int) - expected).max() <= 1


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"--concept": "oli"}, "oil"),
        ({"--format": "tflite"}, "onnx-adapter"),
        ({"--image": "missing.jpg"}, "cannot be read"),
        ({"--out": "out.xyz"}, ".png"),
        ({"--registry": None}, "--from DIR and --registry URL"),
    ],
)
def test_wrong_use_is_told_in_a_line(
    registry: Path, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict, told: str
):
    monkeypatch.chdir(tmp_path)
    given = {"--registry": str(registry), "--concept": "oil", "--image": str(photo), "--out": "o.png", **change}
    arguments = [part for option, value in given.items() if value is not None for part in (option, value)]
    done = CliRunner().invoke(app, ["edit", *arguments])
    assert done.exit_code == 2
    assert told in done.output
    assert "Traceback" not in done.output


def test_file_that_is_no_photo_is_refused(registry: Path, tmp_path: Path):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no photo")
    arguments = ["--registry", str(registry), "--concept", "oil", "--image", str(bad), "--out", str(tmp_path / "o.png")]
    done = CliRunner().invoke(app, ["edit", *arguments])
    assert done.exit_code == 2
    assert "bytes are no image" in done.output


def test_export_makes_another_format_of_a_published_adapter_that_edit_takes(base: Base, photo: Path, tmp_path: Path):
    nets = NetsConfig(width=8, disc_width=4)
    root = tmp_path / "run"
    base_id = publish_base(
        open_store(root), base.generator, build_discriminator(nets, 32), nets, 32, {"concepts": []}, {}
    )  # fmt: skip
    adapter = make_adapter(base, 1, base_id)
    publish(root, "oil", adapter, base_id, {})
    config = tmp_path / "run.yaml"
    config.write_text(f"storage: {root}\npairs: {{resolution: 64}}\nphotos: {{limit: 12}}\n")
    out = tmp_path / "build"
    done = CliRunner().invoke(
        app, ["export", "-c", str(config), "-o", str(out), "-f", "merged", "--log-format", "plain"]
    )
    assert done.exit_code == 0, done.output
    assert "oil  merged.onnx" in done.output
    assert sorted(path.name for path in (out / "adapters/oil").iterdir()) == ["manifest.json", "merged.onnx"]
    picture = tmp_path / "out.png"
    done = CliRunner().invoke(app, ["edit", "--from", str(out), "-i", str(photo), "-o", str(picture)])
    assert done.exit_code == 0, done.output
    expected = edit_any_size(adapter.torch_edit, smooth_photos(1, 50, 70)[0], side=None)
    assert np.abs(np.asarray(Image.open(picture)).astype(int) - expected).max() <= 1
