"""`e2gan adapt` and `e2gan layers` as a user calls them."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from e2gan_cluster.cli import app
from e2gan_cluster.config_io import to_yaml
from e2gan_cluster.train import base_driver
from tests import search_world


@pytest.fixture
def run_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A batch of one base concept and three new ones, the last without pairs; its base is trained."""
    names = ("dark", "invert", "warm")
    world = search_world.make_world(tmp_path, names, rank_multipliers=[1], data_sizes=[6], train={"images": 8})
    catalogue = tmp_path / "concepts.yaml"
    entries = [{"name": name, "prompt": search_world.EDITS[name][0]} for name in (*names, "cold")]
    catalogue.write_text(json.dumps(entries))
    concepts = world.config.concepts.model_copy(update={"catalogue": str(catalogue), "base": ["dark"]})
    config = world.config.model_copy(update={"concepts": concepts, "tracking": "none"})
    monkeypatch.setattr(base_driver, "base_done", lambda *_: world.base_id)
    path = tmp_path / "run.yaml"
    path.write_text(to_yaml(config))
    return path


def test_adapt_lists_results_and_ends_with_3_where_some_failed(run_file: Path) -> None:
    plan = CliRunner().invoke(app, ["layers", "-c", str(run_file), "--local", "--log-format", "plain"])
    assert plan.exit_code == 0, plan.output
    assert "upsample" in plan.output
    plan = CliRunner().invoke(app, ["adapt", "-c", str(run_file), "--dry-run"])
    assert "2 of 3 concepts to search" in plan.output
    assert "no finished pairs" in plan.output
    ended = CliRunner().invoke(app, ["adapt", "-c", str(run_file), "--local"])
    assert ended.exit_code == 3, ended.output
    assert "invert" in ended.output
    assert "no finished pairs" in ended.output
    some = CliRunner().invoke(app, ["adapt", "-c", str(run_file), "--local", "--concept", "warm"])
    assert some.exit_code == 0, some.output
    nothing = CliRunner().invoke(app, ["adapt", "-c", str(run_file), "--local", "--concept", "cold"])
    assert nothing.exit_code == 1


def test_adapt_of_a_concept_outside_the_batch_is_refused(run_file: Path) -> None:
    ended = CliRunner().invoke(app, ["adapt", "-c", str(run_file), "--concept", "dark"])
    assert ended.exit_code == 2
    assert "dark is not a new concept of this batch" in ended.output
