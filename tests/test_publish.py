"""Publishing trained adapters: only what scores in ONNX Runtime what the search measured in torch."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from e2gan_cluster.config import RunConfig
from e2gan_cluster.errors import UserError
from e2gan_cluster.export import names, precision
from e2gan_cluster.export.adapter_export import ExportResult
from e2gan_cluster.export.parity import Parity
from e2gan_cluster.progress import SilentReporter
from e2gan_cluster.publish import COREML, model_card, publish_base_files, publish_concept
from e2gan_cluster.search.adapt import adapt_concepts
from e2gan_cluster.search.jobs import serve_here
from e2gan_cluster.search.records import ConceptResult
from e2gan_cluster.storage import keys
from e2gan_cluster.storage.registry import list_adapters, read_manifest
from e2gan_cluster.track.mlflow_tracker import NullTracker
from tests import search_world
from tests.search_world import World

ALL = ["onnx-adapter", "onnx-adapter-fp16", "required-inputs", "merged", "ort", "merged-fp16", "merged-int8"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    world = search_world.make_world(tmp_path_factory.mktemp("world"), ("invert", "warm"), data_sizes=[12])
    publish_base_files(world.config, world.store, world.base_id)
    return world


@pytest.fixture(scope="module")
def results(world: World) -> dict[str, ConceptResult]:
    """Adapters trained for real, if briefly."""
    return adapt_concepts(
        world.config, world.store, world.base_id, world.concepts, SilentReporter(), NullTracker(), serve_here
    )


def with_formats(config: RunConfig, formats: list[str]) -> RunConfig:
    return config.model_copy(update={"publish": config.publish.model_copy(update={"formats": formats})})


def publish(world: World, result: ConceptResult, formats: list[str]) -> dict:
    """What the manifest of the published version says of its exports."""
    config = with_formats(world.config, formats)
    [concept] = [concept for concept in world.concepts if concept.name == result.concept]
    version = publish_concept(config, "f" * 64, concept, result)
    return read_manifest(world.store, concept.name, version).meta["export"]


def test_every_file_of_a_trained_adapter_scores_what_the_search_measured(
    world: World, results: dict[str, ConceptResult]
) -> None:
    result = results["warm"]
    assert set(result.parity_metrics) == {"l1", "lpips"}
    assert result.parity_metrics["l1"] < 0.9 * result.identity_metrics["l1"], "the adapter learned the edit"
    export = publish(world, result, ALL)
    assert export["skipped"] == {}
    assert len(export["parity"]) == len(ALL)
    for name, parity in export["parity"].items():
        tolerance = 0.02 if "int8" in name else 2e-3
        assert parity["metrics"] == pytest.approx(result.parity_metrics, rel=tolerance, abs=1e-3), name


@pytest.mark.parametrize("case", ["number", "weights"])
def test_an_export_that_scores_otherwise_than_the_search_is_not_published(
    world: World, results: dict[str, ConceptResult], case: str
) -> None:
    result, other = results["invert"], results["warm"]
    if case == "number":
        l1 = result.parity_metrics["l1"]
        wrong = replace(result, parity_metrics={"l1": 0.9 * l1})
    else:
        wrong = replace(result, adapter_key_prefix=other.adapter_key_prefix, files=other.files)
    with pytest.raises(UserError, match=r"onnx_adapter does not score what the search measured: .*l1 0\.\d+, in the"):
        publish(world, wrong, ["onnx-adapter"])
    assert "invert" not in {info.concept for info in list_adapters(world.store)}
    assert list(world.store.list(keys.adapters_prefix("invert"))) == []


def test_int8_of_a_trained_adapter_that_loses_quality_is_left_out_and_the_rest_is_published(
    world: World, results: dict[str, ConceptResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    to_int8 = precision.to_int8

    def with_noise(merged: Path, target: Path, photos: list[np.ndarray], keep_float: list[str]) -> Path:
        model = onnx.load(merged)
        for weight in model.graph.initializer:
            if len(weight.dims) == 4:
                value = numpy_helper.to_array(weight)
                noise = np.random.default_rng(0).normal(0, 0.5 * value.std(), value.shape)
                weight.CopyFrom(numpy_helper.from_array((value + noise).astype("f4"), weight.name))
        onnx.save(model, target.with_name("noisy.onnx"))
        return to_int8(target.with_name("noisy.onnx"), target, photos, keep_float)

    monkeypatch.setattr(precision, "to_int8", with_noise)
    export = publish(world, results["warm"], ["onnx-adapter", "merged-int8"])
    reason = export["skipped"]["merged-int8.onnx"]
    assert "PSNR to torch" in reason
    assert "scores worse against the teacher" in reason
    [info] = [info for info in list_adapters(world.store) if info.concept == "warm"]
    files = {entry.path for entry in read_manifest(world.store, "warm", info.channels["latest"]).files}
    assert "adapter.onnx_adapter" in files
    assert "merged-int8.onnx" not in files


def test_a_file_that_could_not_be_run_is_called_so_on_the_card_and_in_the_manifest(
    world: World, results: dict[str, ConceptResult], tmp_path: Path
) -> None:
    assert names.FORMAT_FILES["coreml"] == COREML
    words = "is not compared with torch"
    for sizes, said in (({"merged.onnx": 1}, False), ({"merged.onnx": 1, COREML: 1}, True)):
        assert (words in model_card(world.config, world.concepts[1], results["warm"], sizes)) == said
    parity = Parity(1, 0.0, 0.0, 100.0)
    made = ExportResult({"merged.onnx": tmp_path, COREML: tmp_path}, {"merged.onnx": parity}, {}, {})
    assert made.meta()["unchecked"] == [COREML]
