"""Crucial-layer analysis: probes, the derived set, and its re-use."""

from pathlib import Path

import pytest

from e2gan_cluster.errors import ConfigError, IntegrityError
from e2gan_cluster.progress import SilentReporter
from e2gan_cluster.search import training
from e2gan_cluster.search.jobs import serve_here
from e2gan_cluster.search.layer_table import LayerTable, PartRow, choose_parts, load_layers, start_ranks
from e2gan_cluster.search.layers import ensure_layers
from e2gan_cluster.storage import keys
from e2gan_cluster.track.mlflow_tracker import NullTracker
from tests import search_world


def ensure(world: search_world.World) -> LayerTable:
    return ensure_layers(
        world.config, world.store, world.base_id, world.concepts, SilentReporter(), NullTracker(), serve_here
    )


def test_parts_are_chosen_by_gain_per_weight_until_they_hold_the_share() -> None:
    rows = [
        PartRow("a", ("a.1",), 1000, 0.3, 0.02),
        PartRow("b", ("b.1",), 1000, 0.1, 0.32),
        PartRow("c", ("c.1",), 9000),
    ]
    assert choose_parts(rows, 0.9) == (("b",), {"b": 1})
    assert choose_parts(rows, 1.0) == (("a", "b"), {"a": 1, "b": 4})
    nothing = [PartRow("a", ("a.1",), 10), PartRow("b", ("b.1",), 10)]
    assert choose_parts(nothing, 0.9) == (("a", "b"), {"a": 1, "b": 1})


@pytest.mark.parametrize("mode", ["alone", "without"])
def test_killed_analysis_goes_on_with_its_finished_probes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    world = search_world.make_world(
        tmp_path, ("invert",), crucial_parts=None, probe_images=16, probe_concepts=1, probe_mode=mode
    )
    table = ensure(world)
    assert table.base_metric is not None
    assert table.all_metric is not None
    assert table.all_metric < table.base_metric
    assert table.parts
    ranks = start_ranks(world.config.search, table)
    assert {layer.split(".")[0] for layer in ranks} == set(table.parts)
    assert world.store.get(keys.layers_file(world.base_id, "layers.png")).startswith(b"\x89PNG")
    assert load_layers(world.store, world.base_id) == table
    world.store.delete(keys.layers_file(world.base_id, "layers.json"))
    monkeypatch.setattr(training, "AdapterTraining", None)
    assert ensure(world) == table


def test_given_parts_need_no_probes_and_unknown_ones_are_named(tmp_path: Path) -> None:
    world = search_world.make_world(tmp_path, ("invert",), crucial_parts=["ds"], start_rank=3)
    table = ensure(world)
    assert (table.mode, start_ranks(world.config.search, table)) == ("given", {"ds.conv.1": 3})
    wrong = world.config.search.model_copy(update={"crucial_parts": ["middle"]})
    with pytest.raises(ConfigError, match=r"middle.*downsample"):
        start_ranks(wrong, table)


def test_damaged_table_is_refused() -> None:
    with pytest.raises(IntegrityError, match="layer table"):
        LayerTable.parse(b"{}")
