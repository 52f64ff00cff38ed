"""Bundles of every past format version keep loading and keep their pixels."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from e2gan_cluster.errors import BaseMismatchError
from e2gan_cluster.export.factors import read_factors
from e2gan_cluster.export.names import FORMAT_VERSION
from e2gan_cluster.export.runtime import Editor
from tests.export.tiny import rewrite

GOLDEN = Path(__file__).parent / "golden"
VERSIONS = sorted(path.name for path in GOLDEN.glob("v*"))


def test_every_format_version_has_a_golden_bundle():
    assert [f"v{n}" for n in range(1, FORMAT_VERSION + 1)] == VERSIONS


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("fmt", ["onnx-adapter", "required-inputs", "merged", "ort"])
def test_old_bundles_give_the_pixels_they_gave(version: str, fmt):
    expected = np.load(GOLDEN / version / "expected.npz")
    edited = Editor.open(GOLDEN / version, fmt, threads=1).edit(expected["photo"], "oil")
    assert np.abs(edited.astype(int) - expected["oil"]).max() <= 1


@pytest.mark.parametrize("version", VERSIONS)
def test_effects_of_old_bundles_switch_on_one_base(version: str):
    expected = np.load(GOLDEN / version / "expected.npz")
    editor = Editor.open(GOLDEN / version, "onnx-adapter", threads=1)
    for concept in ("oil", "snow", "oil"):
        edited = editor.edit(expected["photo"], concept)
        assert np.abs(edited.astype(int) - expected[concept]).max() <= 1


@pytest.mark.parametrize("version", VERSIONS)
def test_old_peft_files_can_be_exported_again(version: str):
    folder = GOLDEN / version / "adapters" / "oil"
    files = {name: (folder / name).read_bytes() for name in ("adapter_model.safetensors", "adapter_config.json")}
    assert read_factors(files)


@pytest.mark.parametrize("version", VERSIONS)
def test_old_bundles_still_refuse_another_base(version: str, tmp_path: Path):
    root = shutil.copytree(GOLDEN / version, tmp_path / version)
    rewrite(root, "oil", {}, base_id="ffffffffffff")
    with pytest.raises(BaseMismatchError, match="base ffffffffffff"):
        Editor.open(root, "onnx-adapter").load("oil")
