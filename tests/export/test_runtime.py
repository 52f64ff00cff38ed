"""Pulled effects run on photos without torch, on any size, and only on their own base."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save

from e2gan_cluster.errors import BaseMismatchError, InputError, IntegrityError
from e2gan_cluster.export.adapter_export import write_onnx_adapter
from e2gan_cluster.export.runtime import Editor
from e2gan_cluster.export.tiles import edit_any_size, tiles, to_uint8
from tests.export.tiny import BASE_ID, Adapter, rewrite, signed, smooth_photos


def torch_edit(adapter: Adapter, photo_HWC: np.ndarray) -> np.ndarray:
    return to_uint8(adapter.torch_edit(signed(photo_HWC))[0].transpose(1, 2, 0))


@pytest.mark.parametrize("fmt", [None, "onnx-adapter", "required-inputs", "merged"])
def test_switching_effects_gives_each_effects_own_pixels(pulled: Path, adapters: list[Adapter], fmt):
    editor = Editor.open(pulled, fmt, threads=1)
    assert editor.concepts == ["oil", "snow"]
    photo_HWC = smooth_photos(1, 64, 80)[0]
    for name in ("oil", "snow", "oil"):
        expected = torch_edit(adapters[editor.concepts.index(name)], photo_HWC)
        assert np.abs(editor.edit(photo_HWC, name).astype(int) - expected).max() <= 1


@pytest.mark.parametrize("fmt", ["ort", "onnx-adapter-fp16", "merged-fp16", "merged-int8"])
def test_other_formats_run_too(pulled: Path, adapters: list[Adapter], fmt):
    photo_HWC = smooth_photos(1, 64, 64)[0]
    edited = Editor.open(pulled, fmt, threads=1).edit(photo_HWC, "oil")
    assert np.abs(edited.astype(int) - torch_edit(adapters[0], photo_HWC)).mean() < 8


@pytest.mark.parametrize("size", [(1, 1), (5, 9), (37, 53), (16, 200)])
def test_any_size_comes_back_in_the_same_size(pulled: Path, size: tuple[int, int]):
    photo = Image.fromarray(smooth_photos(1, *size)[0])
    assert Editor.open(pulled, threads=1).edit(photo, "snow").shape == (*size, 3)


def test_large_photos_are_tiled_without_seams(pulled: Path):
    editor = Editor.open(pulled, threads=1)
    ramp = np.linspace(0, 255, 300).astype(np.uint8)
    photo_HWC = np.stack(
        [np.tile(ramp, (200, 1)), np.tile(ramp[:200, None], (1, 300)), np.full((200, 300), 90, np.uint8)], -1
    )
    edited = editor.edit(photo_HWC, "oil", max_pixels=128 * 128)
    whole = editor.edit(photo_HWC, "oil")
    assert edited.shape == photo_HWC.shape
    # A seam is a step that neither the whole edit nor the photo has.
    step = np.abs(np.diff(edited.astype(int), axis=1)).mean((0, 2)).max()
    assert step < np.abs(np.diff(whole.astype(int), axis=1)).mean((0, 2)).max() + 4


def test_tiles_of_an_unchanged_image_join_to_the_image():
    photo_HWC = smooth_photos(1, 210, 170)[0]
    edited = edit_any_size(lambda x: x, photo_HWC, side=None, max_pixels=64 * 64)
    assert np.abs(edited.astype(int) - photo_HWC).mean() < 3
    covered = np.zeros((210, 170), bool)
    for rows, columns in tiles(210, 170, 64):
        covered[rows, columns] = True
    assert covered.all()


def test_fixed_size_networks_edit_any_photo():
    def run(image: np.ndarray) -> np.ndarray:
        assert image.shape == (1, 3, 64, 64)
        return image

    for size in ((20, 64), (64, 64), (100, 70)):
        photo_HWC = smooth_photos(1, *size)[0]
        assert np.abs(edit_any_size(run, photo_HWC, side=64).astype(int) - photo_HWC).mean() < 3


@pytest.fixture
def copied(pulled: Path, tmp_path: Path) -> Path:
    return shutil.copytree(pulled, tmp_path / "pulled")


def tensors_of(root: Path) -> dict[str, np.ndarray]:
    return load_file(root / "adapters" / "oil" / "lora_inputs.safetensors")


def adapter_bytes(tensors: dict[str, np.ndarray], base_id: str, folder: Path) -> bytes:
    return write_onnx_adapter(tensors, base_id, folder / "made.onnx_adapter").read_bytes()


def test_adapter_of_another_base_is_refused_though_onnxruntime_would_run_it(copied: Path, tmp_path: Path):
    tensors = tensors_of(copied)
    rewrite(copied, "oil", {"adapter.onnx_adapter": adapter_bytes(tensors, "fedcba987654", tmp_path)})
    with pytest.raises(BaseMismatchError, match="another base"):
        Editor.open(copied, "onnx-adapter").load("oil")
    data = save(tensors, {"e2gan.format": "1", "e2gan.base_id": "fedcba987654"})
    rewrite(copied, "oil", {"lora_inputs.safetensors": data})
    with pytest.raises(BaseMismatchError, match="belongs to base fedcba987654"):
        Editor.open(copied, "required-inputs").load("oil")
    rewrite(copied, "oil", {}, base_id="fedcba987654")
    with pytest.raises(BaseMismatchError, match="oil belongs to base fedcba987654"):
        Editor.open(copied, "merged").load("oil")


def test_tensors_that_do_not_fit_the_graph_are_refused(copied: Path, tmp_path: Path):
    tensors = tensors_of(copied)
    wrong = np.zeros((1, 3), np.float32)
    for bad in ({"unknown.lora_A": wrong}, {"us.conv.0.1.lora_A": wrong}):
        rewrite(copied, "oil", {"adapter.onnx_adapter": adapter_bytes({**tensors, **bad}, BASE_ID, tmp_path)})
        with pytest.raises(BaseMismatchError, match="does not fit"):
            Editor.open(copied, "onnx-adapter").load("oil")


def test_effect_without_its_base_names_what_to_pull(copied: Path):
    shutil.rmtree(copied / "base")
    with pytest.raises(InputError, match="pull it again"):
        Editor.open(copied, "onnx-adapter").load("oil")
    assert Editor.open(copied).load("oil")  # the merged file needs no base


def test_later_bundle_formats_are_refused(copied: Path):
    data = save(tensors_of(copied), {"e2gan.format": "2", "e2gan.base_id": BASE_ID})
    rewrite(copied, "oil", {"lora_inputs.safetensors": data})
    with pytest.raises(IntegrityError, match="bundle format 2"):
        Editor.open(copied, "required-inputs").load("oil")


@pytest.mark.parametrize(
    ("name", "fmt"),
    [
        ("adapter.onnx_adapter", "onnx-adapter"),
        ("lora_inputs.safetensors", "required-inputs"),
        ("merged.onnx", "merged"),
    ],
)
def test_changed_cut_or_foreign_files_are_clear_errors(copied: Path, name: str, fmt):
    path = copied / "adapters" / "oil" / name
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[-5] ^= 1
    path.write_bytes(flipped)
    with pytest.raises(IntegrityError, match="was changed"):
        Editor.open(copied, fmt).load("oil")
    for damage in (whole[: len(whole) // 2], b"", b"not a model"):
        rewrite(copied, "oil", {name: damage})
        with pytest.raises(IntegrityError, match="pull it again"):
            Editor.open(copied, fmt).load("oil")


def test_unknown_effect_names_the_nearest(pulled: Path):
    with pytest.raises(InputError, match="did you mean `snow`"):
        Editor.open(pulled).edit(smooth_photos(1, 32, 32)[0], "snwo")
    with pytest.raises(InputError, match="which effect"):
        Editor.open(pulled).edit(smooth_photos(1, 32, 32)[0])


def test_folder_without_effects_says_to_pull(tmp_path: Path):
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(InputError, match="e2gan pull"):
            Editor.open(folder)


def test_editing_needs_neither_torch_nor_onnx(pulled: Path, tmp_path: Path):
    Image.fromarray(smooth_photos(1, 40, 50)[0]).save(tmp_path / "photo.png")
    code = (
        "import sys, json\n"
        "from e2gan_cluster.cli import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit as e:\n    assert not e.code, e.code\n"
        "print(json.dumps([m for m in ('torch', 'onnx', 'ray', 'diffusers', 'mlflow', 'peft') if m in sys.modules]))"
    )
    out = tmp_path / "out.png"
    args = [
        "edit",
        "--from",
        str(pulled),
        "--concept",
        "oil",
        "--image",
        str(tmp_path / "photo.png"),
        "--out",
        str(out),
    ]
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.strip().splitlines()[-1]) == []
    with Image.open(out) as image:
        assert image.size == (50, 40)
