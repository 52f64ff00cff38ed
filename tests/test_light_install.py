"""The plain package in a clean environment: small, without the training side, and able to pull and verify."""

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from e2gan_cluster.storage import open_store
from tests.storage.registry_parts import BASE_ID, publish, publish_mobile_base

ROOT = Path(__file__).parents[1]
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "e2gan_cluster")
HEAVY = ("torch", "ray", "mlflow", "diffusers", "transformers", "pyarrow")
MAX_MB = 250


@pytest.fixture(scope="module")
def light(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with nothing but ``pip install .``."""
    source = tmp_path_factory.mktemp("source")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy(ROOT / name, source / name)
    venv = tmp_path_factory.mktemp("light") / "venv"
    _run(sys.executable, "-m", "venv", str(venv))
    install = ["install", "-q", "--no-compile", "-c", str(ROOT / "constraints.txt"), str(source)]
    _run(str(venv / "bin" / "python"), "-m", "pip", *install)
    return venv


def _run(*command: str, cwd: Path | None = None) -> str:
    hidden = ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONHOME")
    env = {name: value for name, value in os.environ.items() if name not in hidden}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env, cwd=cwd)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry folder with two adapters and their base."""
    folder = tmp_path_factory.mktemp("registry")
    store = open_store(folder)
    publish(store, "oil", seed=1)
    publish(store, "ink", seed=2)
    publish_mobile_base(store)
    return folder


@pytest.fixture
def address(registry: Path) -> Iterator[str]:
    """The registry on a plain web server."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(registry)))
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_the_plain_package_is_small_and_has_no_training_side(light: Path) -> None:
    size = sum(path.lstat().st_size for path in light.rglob("*") if path.is_file() and not path.is_symlink())
    assert size < MAX_MB * 1e6
    found = f"import importlib.util as u; print([n for n in {HEAVY!r} if u.find_spec(n)])"
    assert _run(str(light / "bin" / "python"), "-c", found).strip() == "[]"


def test_the_plain_package_pulls_and_verifies(light: Path, registry: Path, address: str, tmp_path: Path) -> None:
    e2gan = str(light / "bin" / "e2gan")
    for source in (str(registry), address):
        out = tmp_path / source.rpartition("/")[2]
        _run(e2gan, "pull", "oil", "ink", "--registry", source, "--out", str(out), "--format", "onnx-adapter")
        listed = _run(e2gan, "verify", str(out))
        assert {line.split()[0] for line in listed.splitlines()} == {"ink", "oil"}
        assert (out / "base" / "base.onnx").exists()
        assert BASE_ID in (out / "e2gan.lock").read_text()
    assert "pull" in _run(e2gan, "--help", cwd=tmp_path)
