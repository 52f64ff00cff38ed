"""Pre-flight checks: each says in one line what it found and, if it is no good, how to mend it.

Nothing is left behind, no secret is shown, and no check can hang: servers get seconds to answer.

Example:
    for check in run_checks(load_config(Path("configs/demo.yaml"))):
        print(check.state, check.name, check.detail, check.fix)
"""

import base64
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from e2gan_cluster.concepts import load_catalogue, select
from e2gan_cluster.config import RunConfig
from e2gan_cluster.errors import UserError
from e2gan_cluster.redact import redact

State = Literal["ok", "warning", "failed"]

_GIB = 2**30
_LEAST_DISK_GIB, _GOOD_DISK_GIB = 1, 5
_LEAST_GPU_GIB = 4
_SERVER_TIMEOUT_S = 10.0
_RAY_TIMEOUT_S = 90.0
_SAMPLED_PHOTOS = 16
_NEEDED_EXTRAS = ("cluster",)
_REQUIREMENT = re.compile(r"\A([A-Za-z0-9._-]+)(?:\[[^\]]*\])?\s*([^;]*)")
_RAY_PROGRAM = """
import json, sys, ray
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
nodes = [n for n in ray.nodes() if n["Alive"]]
print("E2GAN" + json.dumps({"nodes": len(nodes), "version": ray.__version__, **ray.cluster_resources()}))
"""
_TORCH_PROGRAM = "import torch; print('E2GAN' + str(torch.version.cuda), torch.cuda.is_available())"


@dataclass(frozen=True)
class Check:
    """One line of the report.

    Attributes:
        name: What was looked at.
        state: ``ok``, ``warning`` (works, but worth knowing), or ``failed``.
        detail: What was found.
        fix: What to do; empty if nothing.
    """

    name: str
    state: State
    detail: str
    fix: str = ""


def run_checks(config: RunConfig) -> Iterator[Check]:
    """All checks of a config, one after the other."""
    checks: dict[str, Callable[[RunConfig], Check]] = {
        "packages": check_packages,
        "concepts": check_concepts,
        "photos": check_photos,
        "teacher": check_teacher,
        "storage": check_storage,
        "mlflow": check_mlflow,
        "ray": check_ray,
        "gpu": check_gpu,
        "disk": check_disk,
    }
    for name, check in checks.items():
        try:
            found = check(config)
        except UserError as error:
            found = Check(name, "failed", error.message, error.fix)
        except (OSError, ValueError) as error:
            found = Check(name, "failed", str(error), "")
        yield Check(found.name, found.state, redact(found.detail), redact(found.fix))


def check_packages(config: RunConfig) -> Check:
    """Every package of the core and the cluster extra is there in a version that works."""
    wrong = []
    for name, wanted in _requirements():
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{name} is missing")
            continue
        if not _fits(found, wanted):
            wrong.append(f"{name} {found} is not {wanted}")
    python = ".".join(map(str, sys.version_info[:3]))
    if wrong:
        return Check("packages", "failed", "; ".join(wrong), 'pip install -c constraints.txt "e2gan-cluster[cluster]"')
    shown = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "ray", "diffusers", "mlflow"))
    return Check("packages", "ok", f"Python {python}, {shown}")


def check_concepts(config: RunConfig) -> Check:
    """The catalogue is readable and has the concepts that the config names."""
    wanted = config.concepts
    catalogue = load_catalogue(wanted.catalogue)
    named = [*(wanted.base or ()), *(wanted.new if isinstance(wanted.new, list) else ())]
    select(catalogue, named)
    base = len(wanted.base) if wanted.base else wanted.base_count
    if base >= len(catalogue) and wanted.new == "rest":
        detail = f"{len(catalogue)} concepts, {base} of them for the base: none is left to adapt to"
        return Check("concepts", "failed", detail, "lower concepts.base_count or take a larger concepts.catalogue")
    return Check("concepts", "ok", f"{len(catalogue)} in {wanted.catalogue}, {base} for the base")


def check_photos(config: RunConfig) -> Check:
    """The source has photos, and a sample of them can be decoded."""
    from e2gan_cluster.pairs.photos import STATUS_HELP, list_photos, load_photo

    photos = config.photos
    refs = list_photos(photos)
    sample = refs[:: max(1, len(refs) // _SAMPLED_PHOTOS)][:_SAMPLED_PHOTOS]
    bad = [(ref, status) for ref in sample if (status := load_photo(ref, photos.max_megapixels).status) != "ok"]
    detail = f"{len(refs)} in {photos.source}, {len(sample) - len(bad)} of {len(sample)} sampled can be read"
    if not bad:
        return Check("photos", "ok", detail)
    ref, status = bad[0]
    state: State = "failed" if len(bad) > photos.max_bad_fraction * len(sample) else "warning"
    return Check("photos", state, f"{detail}; {ref.origin}: {STATUS_HELP[status]}", "remove or replace such files")


def check_teacher(config: RunConfig) -> Check:
    """The teacher's weights are there, or can be downloaded."""
    model = config.teacher.model
    if config.teacher.backend == "custom":
        return Check("teacher", "ok", f"custom editor {model}")
    if model == "bundled":
        folder = Path(__file__).parent / "assets" / "teacher"
        weights = sum(p.stat().st_size for p in folder.glob("*.safetensors"))
        if not weights:
            return Check("teacher", "failed", f"no weights in {folder}", "install the package again")
        return Check("teacher", "ok", f"bundled, {weights / 1e6:.1f} MB")
    if Path(model).is_dir():
        if not (Path(model) / "model_index.json").is_file():
            fix = "give the folder that `save_pretrained` of a diffusers pipeline wrote"
            return Check("teacher", "failed", f"{model} has no model_index.json", fix)
        return Check("teacher", "ok", f"folder {model}")
    if model.startswith((".", "/", "~")) or model.count("/") != 1:
        return Check("teacher", "failed", f"no folder {model}", "set teacher.model to a folder, a hub id or `bundled`")
    if os.environ.get("HF_HUB_OFFLINE", "0").lower() in {"1", "true", "yes", "on"}:
        fix = "unset HF_HUB_OFFLINE, or make sure that the model is in the local cache"
        return Check("teacher", "warning", f"hub id {model}, but HF_HUB_OFFLINE is set", fix)
    return Check("teacher", "ok", f"hub id {model}, downloaded at first use")


def check_storage(config: RunConfig) -> Check:
    """The store can be written and read back, and honours conditional writes."""
    from e2gan_cluster.storage import open_store

    store = open_store(config.storage)
    store.probe()
    return Check("storage", "ok", f"{store.url}: written, read back, conditional writes honoured")


def check_mlflow(config: RunConfig) -> Check:
    """The tracking server answers, or the tracking file can be written."""
    from e2gan_cluster.batch import tracking_uri

    address = tracking_uri(config)
    if address == "none":
        return Check("mlflow", "ok", "switched off")
    scheme = urllib.parse.urlsplit(address).scheme
    if scheme in {"http", "https"}:
        return _check_mlflow_server(address)
    if scheme == "sqlite":
        return _check_sqlite(Path(address.removeprefix("sqlite:///")))
    if scheme in {"", "file"}:
        fix = "set tracking to sqlite:///PATH or to a server's http address"
        return Check("mlflow", "failed", f"{address}: MLflow no longer takes folders", fix)
    return Check("mlflow", "ok", f"{address}: not tried from here")


def check_ray(config: RunConfig) -> Check:
    """The cluster answers and is large enough for one worker of each stage."""
    try:
        metadata.version("ray")
    except metadata.PackageNotFoundError:
        fix = 'pip install -c constraints.txt "e2gan-cluster[cluster]"'
        return Check("ray", "failed", "Ray is not installed here", fix)
    address = config.ray.address or os.environ.get("RAY_ADDRESS")
    if address is None:
        cpus = config.ray.num_cpus or os.cpu_count() or 1
        return _room("started on this machine", {"CPU": float(cpus), "GPU": float(len(_gpus()))}, config)
    done = _python(_RAY_PROGRAM, address, timeout_s=_RAY_TIMEOUT_S)
    if done is None:
        fix = "start it with `ray start --head`, correct ray.address, or leave it empty to start Ray on this machine"
        return Check("ray", "failed", f"no cluster answers at {address}", fix)
    found = json.loads(done)
    return _room(f"{address}: Ray {found['version']}, {found['nodes']} nodes", found, config)


def check_gpu(config: RunConfig) -> Check:
    """GPUs asked for are there, with memory, and torch can use them."""
    wanted = max(config.pairs.worker_gpus, config.base.worker_gpus, config.search.worker_gpus) > 0
    wanted = wanted or config.teacher.device == "cuda"
    gpus = _gpus()
    if not gpus:
        if wanted and config.ray.address:
            return Check("gpu", "ok", "none on this machine; the cluster's own are used")
        if wanted:
            fix = "set worker_gpus to 0 and teacher.device to cpu, or run on a machine with a GPU"
            return Check("gpu", "failed", "the config asks for GPUs and nvidia-smi finds none", fix)
        return Check("gpu", "ok", "none; everything runs on the CPU")
    shown = ", ".join(f"{name}: {free_gib:.1f} of {total_gib:.1f} GiB free" for name, free_gib, total_gib in gpus)
    built = _python(_TORCH_PROGRAM, timeout_s=60)
    if built is None or not built.endswith("True"):
        cuda = (built or "?").split(" ")[0]
        fix = 'install a CUDA build: make setup TORCH="torch==2.13.0 --index-url <CUDA wheel index>"'
        return Check("gpu", "failed" if wanted else "warning", f"{shown}; torch (CUDA {cuda}) cannot use it", fix)
    if max(free for _, free, _ in gpus) < _LEAST_GPU_GIB:
        fix = "end other programs on it (`nvidia-smi` lists them), or lower the batch sizes"
        return Check("gpu", "warning", shown, fix)
    return Check("gpu", "ok", shown)


def check_disk(config: RunConfig) -> Check:
    """There is room where results, temporary files and Ray's spilled objects go."""
    places = {"temporary folder": Path(tempfile.gettempdir())}
    if "://" not in config.storage:
        places["storage"] = _existing(Path(config.storage))
    free = {name: shutil.disk_usage(path).free / _GIB for name, path in places.items()}
    detail = ", ".join(f"{name} {free[name]:.1f} GiB free ({path})" for name, path in places.items())
    least = min(free.values())
    if least < _GOOD_DISK_GIB:
        fix = "make room, or point storage and TMPDIR to a larger disk"
        return Check("disk", "failed" if least < _LEAST_DISK_GIB else "warning", detail, fix)
    return Check("disk", "ok", detail)


def _requirements() -> Iterator[tuple[str, str]]:
    for line in metadata.requires("e2gan-cluster") or ():
        extra = re.search(r"extra\s*==\s*['\"]([\w-]+)['\"]", line)
        if extra is None or extra.group(1) in _NEEDED_EXTRAS:
            match = _REQUIREMENT.match(line)
            if match:
                yield match.group(1), match.group(2).strip()


def _fits(found: str, wanted: str) -> bool:
    """Whether a version fulfils a plain specifier (``>=``, ``<``, ``==``), release numbers only."""
    have = _release(found)
    for part in filter(None, (p.strip() for p in wanted.split(","))):
        match = re.match(r"(>=|<=|==|<|>)\s*(.+)", part)
        if match is None:
            continue
        sign, limit = match.group(1), _release(match.group(2))
        # 1.31 and 1.31.0 are the same version.
        size = max(len(have), len(limit))
        a, b = have + (0,) * (size - len(have)), limit + (0,) * (size - len(limit))
        if not {">=": a >= b, "<=": a <= b, "==": a == b, "<": a < b, ">": a > b}[sign]:
            return False
    return True


def _release(version: str) -> tuple[int, ...]:
    match = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(n) for n in match.group().split(".")) if match else ()


def _check_mlflow_server(address: str) -> Check:
    request = urllib.request.Request(f"{address.rstrip('/')}/health", headers=_mlflow_headers())
    try:
        with urllib.request.urlopen(request, timeout=_SERVER_TIMEOUT_S) as answer:
            answer.read(1000)
    except urllib.error.HTTPError as error:
        fix = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
        if error.code not in {401, 403}:
            fix = "check that `tracking` is the address of an MLflow server"
        return Check("mlflow", "failed", f"{address} answers HTTP {error.code}", fix)
    except OSError as error:
        reason = getattr(error, "reason", error)
        fix = "start it (`mlflow server --backend-store-uri sqlite:///mlflow.db`), or leave `tracking` empty"
        return Check("mlflow", "failed", f"{address} does not answer: {reason}", fix)
    return Check("mlflow", "ok", f"{address} answers")


def _mlflow_headers() -> dict[str, str]:
    token, user = os.environ.get("MLFLOW_TRACKING_TOKEN"), os.environ.get("MLFLOW_TRACKING_USERNAME")
    if token:
        return {"Authorization": f"Bearer {token}"}
    if user:
        pair = f"{user}:{os.environ.get('MLFLOW_TRACKING_PASSWORD', '')}"
        return {"Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}
    return {}


def _check_sqlite(path: Path) -> Check:
    folder = _existing(path.parent)
    if not os.access(folder, os.W_OK):
        return Check("mlflow", "failed", f"{folder} cannot be written", "change `tracking` or the folder's permissions")
    if not path.exists():
        return Check("mlflow", "ok", f"{path}: will be created")
    try:
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=_SERVER_TIMEOUT_S)
        try:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        finally:
            connection.close()
    except sqlite3.Error as error:
        return Check("mlflow", "failed", f"{path}: {error}", "move the file away, or point `tracking` elsewhere")
    return Check("mlflow", "ok", f"{path}: can be read and written")


def _room(where: str, resources: dict[str, float], config: RunConfig) -> Check:
    cpus, gpus = float(resources.get("CPU", 0)), float(resources.get("GPU", 0))
    detail = f"{where}: {cpus:g} CPUs, {gpus:g} GPUs"
    for stage, section in (("pairs", config.pairs), ("base", config.base), ("search", config.search)):
        if section.worker_cpus > cpus or section.worker_gpus > gpus:
            detail += f"; a worker of {stage} needs {section.worker_cpus:g} CPUs, {section.worker_gpus:g} GPUs"
            return Check("ray", "failed", detail, f"lower {stage}.worker_cpus or {stage}.worker_gpus, or add machines")
    if config.base.num_workers * config.base.worker_cpus > cpus:
        detail += f"; base training wants {config.base.num_workers} workers at once"
        return Check("ray", "failed", detail, "lower base.num_workers or base.worker_cpus, or add machines")
    return Check("ray", "ok", detail)


def _gpus() -> list[tuple[str, float, float]]:
    """Name, free and total memory (GiB) of each GPU."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    query = [program, "--query-gpu=name,memory.free,memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    rows = [line.rsplit(",", 2) for line in done.stdout.splitlines() if done.returncode == 0]
    return [(row[0].strip(), float(row[1]) / 1024, float(row[2]) / 1024) for row in rows if len(row) == 3]


def _python(program: str, *arguments: str, timeout_s: float) -> str | None:
    """What a small program prints after the mark ``E2GAN``; None if it fails or hangs."""
    command = [sys.executable, "-c", program, *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        return None
    lines = [line for line in done.stdout.splitlines() if line.startswith("E2GAN")]
    return lines[-1].removeprefix("E2GAN") if lines and done.returncode == 0 else None


def _existing(path: Path) -> Path:
    """The path, or its nearest parent that exists."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path
