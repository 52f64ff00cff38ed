"""What identifies a teacher's output, without loading the teacher (and without torch).

Example:
    >>> teacher_fingerprint(TeacherConfig(model="timbrooks/instruct-pix2pix", revision="31519b5"))
"""

import functools
import hashlib
import importlib.util
import json
import sys
from pathlib import Path

from e2gan_cluster.config import TeacherConfig
from e2gan_cluster.errors import TeacherError

# Raised by hand when a back-end's output for the same settings and weights changes.
OUTPUT_VERSION = 1
BUNDLED_FOLDER = Path(__file__).resolve().parent.parent / "assets" / "teacher"
_SUFFIXES = {".safetensors", ".json", ".txt", ".model"}
_WHOLE_BYTES = 64 << 20
_SAMPLES = 64
_SAMPLE_BYTES = 1 << 16


def teacher_fingerprint(cfg: TeacherConfig) -> str:
    """Identity of the teacher's output: settings and weights; 64 hex digits.

    Weights in a folder are identified by content, those on a hub by id and revision, a custom editor by its module's
    source. Device, batch size and compilation are left out: they change results by rounding only.

    Args:
        cfg: Teacher settings.

    Raises:
        TeacherError: The model's folder or module can't be found.
    """
    settings = cfg.model_dump(mode="json", exclude={"device", "batch_size", "compile", "model", "lora"})
    record = {
        "version": OUTPUT_VERSION,
        "settings": settings,
        "model": _identity(cfg.model) if cfg.backend != "custom" else module_digest(cfg.model),
        "lora": _identity(cfg.lora) if cfg.lora else None,
    }
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _identity(model: str) -> str:
    folder = BUNDLED_FOLDER if model == "bundled" else Path(model)
    if folder.is_dir():
        return folder_digest(folder)
    if folder.is_file():
        stat = folder.stat()
        return _file_digest(folder, stat.st_size, stat.st_mtime_ns)
    return f"hub:{model}"


def folder_digest(folder: Path) -> str:
    """Sha256 over the names and contents of the model files in a folder; large files are sampled.

    Args:
        folder: As `save_pretrained` writes it.

    Raises:
        TeacherError: It holds no model file.
    """
    files = [p for p in sorted(folder.rglob("*")) if p.suffix in _SUFFIXES and p.is_file()]
    if not files:
        raise TeacherError(f"no model files (.safetensors, .json) in {folder}", "check teacher.model")
    digest = hashlib.sha256()
    for path in files:
        stat = path.stat()
        content = _file_digest(path, stat.st_size, stat.st_mtime_ns)
        digest.update(f"{path.relative_to(folder).as_posix()}:{content}\n".encode())
    return digest.hexdigest()


@functools.lru_cache(maxsize=4096)
def _file_digest(path: Path, size: int, mtime_ns: int) -> str:
    """Sha256 of a file; above 64 MB of its size, both ends and 64 evenly spread pieces."""
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        if size <= _WHOLE_BYTES:
            digest.update(file.read())
        else:
            for i in range(_SAMPLES + 1):
                file.seek(i * (size - _SAMPLE_BYTES) // _SAMPLES)
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def use_working_folder() -> None:
    """Lets custom editors be imported from the working folder, as Ray's workers do; a console script does not."""
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))


def module_digest(model: str) -> str:
    """Identity of a custom editor ``package.module:factory``: its name and its module's source.

    Raises:
        TeacherError: The module can't be found.
    """
    module = model.partition(":")[0]
    use_working_folder()
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.origin:
        raise TeacherError(
            f"teacher.model {model!r}: no Python module {module!r}",
            "give package.module:factory, with the package installed or in the working folder",
        )
    path = Path(spec.origin)
    stat = path.stat()
    return f"{model}:{_file_digest(path, stat.st_size, stat.st_mtime_ns)}"
