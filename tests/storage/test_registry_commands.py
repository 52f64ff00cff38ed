"""`e2gan publish | adapters | pull | verify` as a user types them."""

import json

import numpy as np
import pytest
from safetensors.numpy import save

from e2gan_cluster.cli import main
from e2gan_cluster.storage import open_store
from e2gan_cluster.storage.bundle import publish_bundle
from e2gan_cluster.storage.local import LocalStore
from tests.storage.registry_parts import BASE_ID, LAYERS, adapter_files, publish, publish_mobile_base


@pytest.fixture
def e2gan(capsys):
    """Run a command line; gives exit code, output and messages."""

    def run(*args):
        with pytest.raises(SystemExit) as left:
            main([str(arg) for arg in args])
        output = capsys.readouterr()
        return left.value.code or 0, output.out, output.err

    return run


@pytest.fixture
def registry(tmp_path):
    """A registry with a base, its device files, and one effect."""
    store = LocalStore(tmp_path / "registry")
    shapes = {f"{layer}.weight": np.zeros((outputs, *inputs), "f4") for layer, (inputs, outputs) in LAYERS.items()}
    publish_bundle(store, f"base/{BASE_ID}/", {"generator.safetensors": save(shapes)}, {})
    publish_mobile_base(store)
    publish(store, "ink")
    return store.root


def test_from_a_peft_folder_to_a_verified_build(e2gan, registry, tmp_path):
    folder = tmp_path / "peft"
    folder.mkdir()
    for name, data in adapter_files(seed=5).items():
        (folder / name).write_bytes(data)
    code, out, _ = e2gan("publish", folder, "--concept", "oil", "--registry", registry, "--prompt", "oil")
    assert code == 0
    version = out.split()[1]
    code, out, _ = e2gan("adapters", "list", "-r", registry)
    assert code == 0
    assert version in out
    code, out, _ = e2gan("pull", "oil", "--concept", "ink", "-r", registry, "-o", tmp_path / "app")
    assert code == 0
    assert f"oil {version}" in out
    code, out, _ = e2gan("verify", tmp_path / "app")
    assert code == 0
    assert f"oil {version}" in out
    (tmp_path / "app" / "base" / "base.onnx").write_bytes(b"x")
    code, _, err = e2gan("verify", tmp_path / "app")
    assert code == 1
    assert "base.onnx was changed" in err
    assert "fix:" in err


def test_versions_are_shown_compared_promoted_and_rolled_back(e2gan, registry):
    first = json.loads(e2gan("adapters", "list", "-r", registry, "--json")[1])[0]["channels"]["latest"]
    second = publish(open_store(registry), "ink", seed=3)
    assert f"latest -> {first}" in e2gan("adapters", "rollback", "ink", "-r", registry)[1]
    assert f"prod -> {second}" in e2gan("adapters", "promote", "ink", second, "--to", "prod", "-r", registry)[1]
    assert "adapter_model.safetensors" in e2gan("adapters", "diff", "ink", "latest", "prod", "-r", registry)[1]
    assert "no difference" in e2gan("adapters", "diff", "ink", "prod", second, "-r", registry)[1]
    assert "ranks" in e2gan("adapters", "show", "ink", "prod", "-r", registry)[1]
    assert json.loads(e2gan("adapters", "show", "ink", "-r", registry, "--json")[1])["meta"]["concept"] == "ink"
    code, _, err = e2gan("adapters", "gc", "--dry-run", "-r", registry)
    assert (code, "0 objects" in err) == (0, True)


def test_lists_and_locks_repeat_a_pull(e2gan, registry, tmp_path):
    publish(open_store(registry), "oil", seed=4)
    (tmp_path / "effects.txt").write_text("# effects of the app\nink\n\noil  # new\n")
    assert (
        e2gan("pull", "--list", tmp_path / "effects.txt", "-r", registry, "-o", tmp_path / "a", "-f", "merged")[0] == 0
    )
    assert e2gan("pull", "--lock", tmp_path / "a" / "e2gan.lock", "-r", registry, "-o", tmp_path / "b")[0] == 0
    assert (tmp_path / "a" / "e2gan.lock").read_bytes() == (tmp_path / "b" / "e2gan.lock").read_bytes()


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (("pull", "ikn"), 2, "did you mean `ink`"),
        (("pull", "ink", "--format", "tflite"), 2, "choose among"),
        (("pull", "ink", "--lock", "no.lock"), 2, "does not exist"),
        (("pull", "--list", "no.txt"), 2, "no.txt"),
        (("pull", "ink", "--base", "f" * 12), 1, "f" * 12),
    ],
)
def test_mistakes_are_answered_in_words(e2gan, registry, tmp_path, args, code, message):
    found, _, err = e2gan(*args, "-r", registry, "-o", tmp_path / "app")
    assert (found, message in err) == (code, True), err
    assert "Traceback" not in err
    assert not (tmp_path / "app").exists()
