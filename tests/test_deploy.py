"""The cluster files load in Ray's own loaders."""

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]


def _load(path: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / path).read_text())


def test_cluster_yaml_passes_rays_schema_and_defaults() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(_load("cluster.yaml"))
    validate_config(config)

    head = config["available_node_types"]["head"]
    workers = config["available_node_types"]["gpu-spot"]
    assert head["max_workers"] == 0
    assert workers["min_workers"] == 0
    assert workers["max_workers"] == 8
    assert workers["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"


def test_cluster_yaml_names_only_files_that_exist() -> None:
    commands = " ".join(_load("cluster.yaml")["setup_commands"])
    assert "constraints.txt" in commands
    assert (ROOT / "constraints.txt").exists()
    assert os.access(ROOT / "jobs" / "run_batch.py", os.R_OK)


@pytest.mark.parametrize("path", ["deploy/kuberay/raycluster.yaml", "deploy/kuberay/rayjob.yaml"])
def test_rays_kuberay_autoscaler_reads_the_custom_resource(path: str) -> None:
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    resource = _load(path)
    if resource["kind"] == "RayJob":
        resource = {
            **resource["spec"],
            "metadata": resource["metadata"],
            "spec": resource["spec"]["rayClusterSpec"],
        }
    resource["metadata"].setdefault("namespace", "default")
    # The operator fills in the generated group name and copies limits; the loader reads them from there.
    config = _derive_autoscaling_config_from_ray_cr(resource)

    gpu = config["available_node_types"]["gpu"]
    assert gpu["resources"]["GPU"] == 1
    assert gpu["resources"]["CPU"] == 8
    assert gpu["max_workers"] == 8


def test_every_image_and_version_in_the_kuberay_files_is_ours() -> None:
    import ray

    for path in ("deploy/kuberay/raycluster.yaml", "deploy/kuberay/rayjob.yaml"):
        text = (ROOT / path).read_text()
        assert f'rayVersion: "{ray.__version__}"' in text
        assert text.count("image: e2gan-cluster:latest") == 2


def test_job_of_the_rayjob_file_is_a_real_script_and_config() -> None:
    words = _load("deploy/kuberay/rayjob.yaml")["spec"]["entrypoint"].split()
    assert (ROOT / words[1]).exists()
    assert (ROOT / words[3]).exists()
