"""The whole chain, as a user runs it, on a real S3 server."""

import json
from pathlib import Path

import pytest

from e2gan_cluster.storage import keys, open_store
from e2gan_cluster.storage.registry import list_adapters
from tests import chain_setup
from tests.conftest import S3Server

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, s3_server: S3Server) -> tuple[Path, Path, int]:
    """(run file, log, exit code) of a run with one bad concept; credentials only in the environment."""
    folder = tmp_path_factory.mktemp("chain")
    run_file = chain_setup.write_run_file(folder, f"s3://{s3_server.bucket}/chain", bad=True)
    log = folder / "log.txt"
    code = chain_setup.run(
        "run", "--config", str(run_file), "--set", f"tracking=sqlite:///{folder}/mlflow.db", log=log, **s3_server.env()
    )
    return run_file, log, code


def arguments(finished: tuple[Path, Path, int]) -> tuple[str, ...]:
    return ("--config", str(finished[0]), "--set", f"tracking=sqlite:///{finished[0].parent}/mlflow.db")


def test_a_bad_concept_is_named_and_the_others_are_published(
    finished: tuple[Path, Path, int], s3_env: S3Server
) -> None:
    _, log, code = finished
    text = log.read_text()
    assert code == 3, text[-4000:]
    assert "broken: pairs:" in text
    store = open_store(f"s3://{s3_env.bucket}/chain")
    adapters = {info.concept: info for info in list_adapters(store)}
    assert set(adapters) == set(chain_setup.NEW)
    manifest = adapters["ghost"].manifest
    assert manifest is not None
    names = {entry.path for entry in manifest.files}
    assert names >= {
        "adapter_model.safetensors", "adapter_config.json", "prompt.safetensors", "README.md", "samples.png",
        "adapter.onnx_adapter", "merged.onnx",
    }  # fmt: skip
    assert manifest.meta["prompt"] == "make it ghost"


def test_a_report_and_an_overview_picture_are_there(finished: tuple[Path, Path, int], s3_env: S3Server) -> None:
    store = open_store(f"s3://{s3_env.bucket}/chain")
    assert store.get(keys.OVERVIEW).startswith(b"\x89PNG")
    page = store.get(keys.REPORT).decode()
    assert all(name in page for name in (*chain_setup.NEW, "broken"))


def test_second_run_starts_no_ray_and_changes_nothing(finished: tuple[Path, Path, int], s3_env: S3Server) -> None:
    store = open_store(f"s3://{s3_env.bucket}/chain")
    before = chain_setup.published(store)
    log = finished[1].with_name("again.txt")
    # A Ray that cannot be joined: the run would fail if it tried.
    code = chain_setup.run("run", *arguments(finished), log=log, RAY_ADDRESS="127.0.0.1:9", **s3_env.env())
    assert code == 3, log.read_text()[-4000:]
    assert chain_setup.published(store) == before


def test_status_from_another_machine_tells_each_concept(finished: tuple[Path, Path, int], s3_env: S3Server) -> None:
    log = finished[1].with_name("status.json")
    assert chain_setup.run("status", *arguments(finished), "--json", log=log, **s3_env.env()) == 0
    rows = {row["concept"]: row for row in json.loads(log.read_text())["rows"]}
    assert rows["ghost"]["state"] == "published"
    assert rows["ghost"]["trials"] >= 2
    assert rows["broken"]["state"] == "failed"
    assert "black" in rows["broken"]["reason"] or "flat" in rows["broken"]["reason"]


def test_secrets_appear_nowhere(finished: tuple[Path, Path, int], s3_env: S3Server) -> None:
    secret = s3_env.secret_key.encode()
    store = open_store(f"s3://{s3_env.bucket}/chain")
    leaks = [info.key for info in store.list() if secret in store.get(info.key)]
    leaks += [path.name for path in finished[0].parent.rglob("*") if path.is_file() and secret in path.read_bytes()]
    assert leaks == []


def test_mlflow_holds_the_batch_with_its_concepts_and_trials(finished: tuple[Path, Path, int]) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{finished[0].parent}/mlflow.db")
    experiments = [e.experiment_id for e in client.search_experiments() if e.name != "Default"]
    runs = client.search_runs(experiments)
    text = json.dumps([run.data.tags | run.data.params for run in runs])
    assert "ghost" in text
    assert any("l1" in name for run in runs for name in run.data.metrics)
