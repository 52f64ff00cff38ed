"""A config on its storage: concepts, fingerprints, what changed."""

from pathlib import Path

import pytest

from e2gan_cluster.batch import note_config, open_batch, peek_batch, resolve_storage, run_fingerprint, tracking_uri
from e2gan_cluster.config import RunConfig
from e2gan_cluster.config_io import load_config
from e2gan_cluster.errors import InputError

CATALOGUE = """
- {name: sepia, prompt: make it sepia}
- {name: snow, prompt: make it snow}
- {name: neon, prompt: neon lights}
- {name: oil, prompt: an oil painting}
"""


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    catalogue = tmp_path / "concepts.yaml"
    catalogue.write_text(CATALOGUE)
    return load_config(
        None, [f"storage={tmp_path / 'run'}", f"concepts.catalogue={catalogue}", "concepts.base=[sepia, oil]"]
    )


def with_concepts(config: RunConfig, **changes: object) -> RunConfig:
    return config.model_copy(update={"concepts": config.concepts.model_copy(update=changes)})


def test_rest_of_the_catalogue_is_new(config: RunConfig) -> None:
    batch = open_batch(config)
    assert [c.name for c in batch.base] == ["sepia", "oil"]
    assert [c.name for c in batch.new] == ["snow", "neon"]


def test_max_new_keeps_catalogue_order(config: RunConfig) -> None:
    assert [c.name for c in open_batch(with_concepts(config, max_new=1)).new] == ["snow"]


def test_a_misspelt_concept_is_answered_with_the_nearest_name(config: RunConfig) -> None:
    with pytest.raises(InputError, match="snow"):
        open_batch(with_concepts(config, new=["snowy"]))


def test_fingerprint_ignores_where_a_run_happens(config: RunConfig) -> None:
    moved = config.model_copy(update={"storage": "s3://elsewhere/x", "tracking": "http://mlflow:5000"})
    assert run_fingerprint(moved) == run_fingerprint(config)
    assert run_fingerprint(config.model_copy(update={"seed": 1})) != run_fingerprint(config)


def test_chosen_base_concepts_are_recorded_and_used_again(config: RunConfig) -> None:
    open_choice = with_concepts(config, base=None, base_count=2)
    assert peek_batch(open_choice).base == []
    chosen = open_batch(open_choice)
    assert len(chosen.base) == 2
    assert peek_batch(open_choice).base == chosen.base
    assert {c.name for c in chosen.base} | {c.name for c in chosen.new} == {"sepia", "snow", "neon", "oil"}


def test_a_changed_option_is_explained_field_by_field(config: RunConfig) -> None:
    assert note_config(open_batch(config)) == []
    assert note_config(open_batch(config)) == []
    (line,) = note_config(open_batch(config.model_copy(update={"seed": 7})))
    assert "seed" in line
    assert "7" in line


def test_relative_storage_in_a_ray_job_outlives_the_job(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    relative = config.model_copy(update={"storage": "runs/demo"})
    monkeypatch.chdir(tmp_path)
    assert resolve_storage(relative).storage == str(tmp_path / "runs/demo")
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    monkeypatch.setenv("E2GAN_HOME", str(tmp_path / "home"))
    assert resolve_storage(relative).storage == str(tmp_path / "home/runs/demo")
    assert resolve_storage(config).storage == config.storage


def test_tracking_defaults_to_a_file_in_the_run_folder(config: RunConfig) -> None:
    assert tracking_uri(config) == f"sqlite:///{config.storage}/mlflow.db"
    assert tracking_uri(config.model_copy(update={"tracking": "http://m:1"})) == "http://m:1"
