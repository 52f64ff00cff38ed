"""Exported files compute what torch and stock PEFT compute, or are not published."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from safetensors.numpy import load_file

from e2gan_cluster.errors import BaseMismatchError, InputError, UserError
from e2gan_cluster.export import names, parity
from e2gan_cluster.export.adapter_export import ExportResult, export_adapter
from e2gan_cluster.export.base_export import BaseExport, check_base_export, export_base
from e2gan_cluster.export.base_files import ensure_base_export, fetch_base_export
from e2gan_cluster.export.graph import ExportError, check_model
from e2gan_cluster.export.halves import MIN_NUMBERS, to_half
from e2gan_cluster.export.ort_file import in_one_order, save_ort
from e2gan_cluster.storage import open_store
from tests.export.tiny import BASE_ID, FORMATS, Adapter, Base, make_adapter, signed, smooth_photos

PHOTOS = smooth_photos(2, 64, 48)


def session(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def test_graph_without_adapter_equals_the_bare_base(base: Base, base_export: BaseExport):
    found = check_base_export(base, base_export, PHOTOS)
    assert set(found) == {"base.onnx", "base-inputs.onnx", "base-fp16.onnx", "base.ort"}
    assert found["base-fp16.onnx"].psnr_db > 50
    assert max(p.max_error for name, p in found.items() if name != "base-fp16.onnx") < 1e-4


@pytest.mark.parametrize("size", [(32, 32), (96, 48), (64, 160)])
def test_plain_onnxruntime_with_an_adapter_equals_stock_peft_at_any_size(
    base_export: BaseExport, exports: list[ExportResult], adapters: list[Adapter], size: tuple[int, int]
):
    graph = session(base_export.files["base.onnx"])
    image = signed(smooth_photos(1, *size)[0])
    for export, adapter in zip(exports, adapters, strict=True):
        lora = ort.LoraAdapter()
        lora.Load(str(export.files["adapter.onnx_adapter"]))
        options = ort.RunOptions()
        options.add_active_adapter(lora)
        (edited,) = graph.run(None, {"image": image}, options)
        assert np.abs(np.asarray(edited) - adapter.torch_edit(image)).max() < 1e-4


def test_required_inputs_cover_every_input_and_equal_stock_peft(
    base_export: BaseExport, exports: list[ExportResult], adapters: list[Adapter]
):
    graph = session(base_export.files["base-inputs.onnx"])
    tensors = load_file(exports[1].files["lora_inputs.safetensors"])
    image = signed(PHOTOS[0])
    assert {value.name for value in graph.get_inputs()} == {"image", *tensors}
    (edited,) = graph.run(None, {"image": image, **tensors})
    assert np.abs(np.asarray(edited) - adapters[1].torch_edit(image)).max() < 1e-4


def test_merged_files_take_only_the_image_and_stay_close_to_torch(exports: list[ExportResult], adapters: list[Adapter]):
    image = signed(PHOTOS[0])
    expected = adapters[0].torch_edit(image)
    allowed = {"merged.onnx": 1e-4, "merged.ort": 1e-4, "merged-fp16.onnx": 0.05, "merged-int8.onnx": 0.5}
    for name, error in allowed.items():
        graph = session(exports[0].files[name])
        assert [(v.name, v.type) for v in graph.get_inputs()] == [("image", "tensor(float)")]
        assert [(v.name, v.type) for v in graph.get_outputs()] == [("edited", "tensor(float)")]
        assert np.abs(np.asarray(graph.run(None, {"image": image})[0]) - expected).max() < error, name


def test_smaller_precisions_are_smaller_files(exports: list[ExportResult]):
    sizes = exports[0].sizes
    assert sizes["merged-int8.onnx"] < sizes["merged-fp16.onnx"] < sizes["merged.onnx"]


def test_halved_files_are_about_half_as_large_and_their_weights_are_float16(
    base_export: BaseExport, exports: list[ExportResult]
):
    sizes = {name: path.stat().st_size for name, path in base_export.files.items()} | exports[0].sizes
    assert sizes["adapter-fp16.onnx_adapter"] < 0.65 * sizes["adapter.onnx_adapter"]
    assert sizes["base-fp16.onnx"] < 0.65 * sizes["base.onnx"]
    graph = onnx.load(base_export.files["base-fp16.onnx"]).graph
    effect = [value.type.tensor_type.elem_type for value in graph.input if value.name != "image"]
    assert set(effect) == {onnx.TensorProto.FLOAT16}
    assert max(np.prod(w.dims) for w in graph.initializer if w.data_type == onnx.TensorProto.FLOAT) < MIN_NUMBERS


def test_an_adapter_that_loses_quality_in_float16_is_left_out(
    base: Base, base_export: BaseExport, adapters: list[Adapter], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(parity.MIN_PSNR_DB, "onnx-adapter-fp16", 99.0)
    adapter = adapters[0]
    result = export_adapter(
        base, base_export, adapter.files, adapter.tokens_TD, ["onnx-adapter", "onnx-adapter-fp16"], tmp_path, PHOTOS
    )
    assert set(result.files) == {"adapter.onnx_adapter"}
    assert "is below 99 dB" in result.skipped["adapter-fp16.onnx_adapter"]
    older = replace(base_export, files={k: v for k, v in base_export.files.items() if "fp16" not in k})
    with pytest.raises(InputError, match=r"published without base-fp16\.onnx"):
        export_adapter(base, older, adapter.files, adapter.tokens_TD, ["onnx-adapter-fp16"], tmp_path, PHOTOS)


def test_numbers_that_float16_cannot_hold_are_refused_by_name():
    assert to_half(np.array([6e4], np.float32), "w").dtype == np.float16
    with pytest.raises(ExportError, match="w has numbers above 65504"):
        to_half(np.array([7e4], np.float32), "w")


def test_every_graph_states_opset_base_and_format(base_export: BaseExport, exports: list[ExportResult]):
    for path in (*base_export.files.values(), *exports[0].files.values()):
        if path.suffix == ".onnx":
            model = onnx.load(path)
            check_model(model, 18)
            meta = {entry.key: entry.value for entry in model.metadata_props}
            assert (meta["e2gan.base_id"], meta["e2gan.format"]) == (BASE_ID, "1")
            assert str(Path.cwd()) not in str(model)


def test_mobile_usability_is_checked_and_recorded(base_export: BaseExport):
    verdicts = base_export.meta()["mobile_usability"]
    assert verdicts["cpu"] == "YES"
    assert {"NNAPI", "CoreML MLProgram"} <= set(verdicts)


def test_wrong_opset_is_an_error(base_export: BaseExport):
    with pytest.raises(ExportError, match="opset 18, not 17"):
        check_model(onnx.load(base_export.files["base.onnx"]), 17)


def test_parity_and_recomputed_metrics_are_recorded(
    base: Base, base_export: BaseExport, adapters: list[Adapter], tmp_path: Path
):
    adapter = adapters[0]
    result = export_adapter(
        base, base_export, adapter.files, adapter.tokens_TD, ["onnx-adapter"], tmp_path, PHOTOS,
        references_NHWC=PHOTOS[:, ::-1].copy(), metrics=["l1", "psnr"],
    )  # fmt: skip
    found = json.loads(json.dumps(result.meta()))["parity"]["adapter.onnx_adapter"]
    assert found["photos"] == 2
    assert found["max_error"] < 1e-4
    assert found["metrics"]["l1"] == pytest.approx(found["torch_metrics"]["l1"], abs=1e-4)


def test_export_that_differs_from_torch_raises(
    base: Base, base_export: BaseExport, adapters: list[Adapter], tmp_path: Path
):
    adapter = adapters[0]
    with pytest.raises(ExportError, match=r"adapter\.onnx_adapter differs from torch by"):
        export_adapter(
            base, base_export, adapter.files, adapter.tokens_TD, ["onnx-adapter"], tmp_path, PHOTOS, max_error=0.0
        )


def test_export_that_scores_worse_raises():
    found = parity.Parity(4, 1e-6, 1e-7, 99.0, torch_metrics={"lpips": 0.20}, metrics={"lpips": 0.21})
    with pytest.raises(ExportError, match=r"lpips 0\.2100 instead of 0\.2000"):
        parity.require_exact("merged.onnx", found, 2e-3)


def test_int8_whose_quality_does_not_hold_is_left_out_with_its_reason(
    base: Base, base_export: BaseExport, adapters: list[Adapter], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(parity.MIN_PSNR_DB, "merged-int8", 99.0)
    adapter = adapters[0]
    result = export_adapter(
        base, base_export, adapter.files, adapter.tokens_TD, ["merged", "merged-int8"], tmp_path, PHOTOS
    )
    assert set(result.files) == {"merged.onnx"}
    assert "is below 99 dB" in result.skipped["merged-int8.onnx"]
    assert "merged-int8.onnx" in result.parity


def test_adapter_of_another_base_is_refused(base: Base, base_export: BaseExport, tmp_path: Path):
    other = make_adapter(base, 1, base_id="ffffffffffff")
    with pytest.raises(BaseMismatchError, match="base ffffffffffff"):
        export_adapter(base, base_export, other.files, other.tokens_TD, ["merged"], tmp_path, PHOTOS)


def test_adapter_on_a_layer_without_inputs_is_refused(
    base: Base, base_export: BaseExport, adapters: list[Adapter], tmp_path: Path
):
    layers = {name: shape for name, shape in base_export.layers.items() if not name.startswith("us.")}
    fewer = BaseExport(BASE_ID, layers, None, base_export.files)
    with pytest.raises(BaseMismatchError, match=r"without inputs for us\.conv"):
        export_adapter(base, fewer, adapters[0].files, adapters[0].tokens_TD, ["merged"], tmp_path, PHOTOS)


def test_base_files_are_published_once_and_fetched_afterwards(
    base: Base, base_export: BaseExport, layers: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    store = open_store(tmp_path / "store")
    monkeypatch.setattr("e2gan_cluster.export.base_files.export_base", lambda *_: base_export)
    assert fetch_base_export(store, BASE_ID, tmp_path / "none") is None
    # Left by a publish that was killed.
    leftover = save_ort(base_export.files["base.onnx"], tmp_path / "base.ort").read_bytes()
    store.put_new(f"mobile/{BASE_ID}/base.ort", leftover)
    ensure_base_export(store, base, layers, tmp_path / "one")
    monkeypatch.setattr("e2gan_cluster.export.base_files.export_base", None)
    again = ensure_base_export(store, base, layers[:3], tmp_path / "two")
    assert again.layers == base_export.layers
    assert {n: p.read_bytes() for n, p in again.files.items()} == {
        n: p.read_bytes() for n, p in base_export.files.items()
    }
    with pytest.raises(InputError, match="res1"):
        ensure_base_export(store, base, ["res1.conv.1"], tmp_path / "three")


EXPORT_AGAIN = """
import sys
from pathlib import Path
from tests.export import tiny
from e2gan_cluster.export.adapter_export import export_adapter
from e2gan_cluster.export.base_export import export_base
folder, base = Path(sys.argv[1]), tiny.make_base()
base_export = export_base(base, tiny.adaptable_layers(base.generator, tiny.PARTS), folder)
adapter = tiny.make_adapter(base, 1)
photos = tiny.smooth_photos(2, 64, 48)
export_adapter(base, base_export, adapter.files, adapter.tokens_TD, tiny.FORMATS, folder, photos)
"""


def test_another_process_exports_the_same_bytes_in_every_format(
    base_export: BaseExport, exports: list[ExportResult], tmp_path: Path
):
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", EXPORT_AGAIN, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    files = {**base_export.files, **exports[0].files}
    assert len(files) == 4 + len(FORMATS)
    assert [name for name, path in files.items() if (tmp_path / name).read_bytes() != path.read_bytes()] == []


def test_ort_files_of_an_unknown_layout_are_left_as_they_are(base_export: BaseExport):
    data = base_export.files["base.ort"].read_bytes()
    assert in_one_order(data) == data
    other = bytearray(data)
    other[4:8] = b"ORTX"
    assert in_one_order(bytes(other)) == other


def test_fixed_size_graph_is_of_that_size_and_the_same_bytes_every_time(base: Base, tmp_path: Path):
    layers = ["us.conv.0.1"]
    made = [export_base(base, layers, tmp_path / name, resolution=64) for name in ("a", "b")]
    for name in ("base.onnx", "base-inputs.onnx", "base.ort"):
        assert made[0].files[name].read_bytes() == made[1].files[name].read_bytes()
    assert session(made[0].files["base.onnx"]).get_inputs()[0].shape == [1, 3, 64, 64]
    check_base_export(base, made[0], PHOTOS)


def test_size_that_is_no_multiple_of_16_is_refused(base: Base, tmp_path: Path):
    with pytest.raises(InputError, match="100 is not a multiple of 16"):
        export_base(base, None, tmp_path, resolution=100)


def test_generator_that_cannot_be_exported_is_a_clear_error(tmp_path: Path):
    class Dynamic(torch.nn.Module):
        text_dim = 8

        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 3, 1)

        def forward(self, x: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
            return self.conv(x) if x.sum().item() > 0 else x

    class DynamicBase:
        generator = Dynamic()
        base_id = BASE_ID

    with pytest.raises(ExportError, match="cannot be exported to ONNX opset 18"):
        export_base(DynamicBase(), ["conv"], tmp_path)


def test_core_ml_without_coremltools_says_what_to_install(
    base: Base, base_export: BaseExport, adapters: list[Adapter], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "coremltools", None)
    with pytest.raises(UserError, match=r"pip install .*coreml"):
        export_adapter(base, base_export, adapters[0].files, adapters[0].tokens_TD, ["coreml"], tmp_path, PHOTOS)


def test_every_configurable_format_has_a_file_name():
    from typing import get_args

    from e2gan_cluster.config import PublishConfig

    assert set(names.FORMAT_FILES) == set(get_args(names.Format))
    for fmt in names.FORMAT_FILES:
        PublishConfig(formats=[fmt])
