"""Imports point one way, and each large package is known to one room only. Read from the source, nothing is run."""

import ast
import functools
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPO = Path(__file__).parent.parent
PACKAGE = "e2gan_cluster"

# Lower to higher: a module may import what stands in an earlier row, or its own package. The most exact name counts.
LAYERS: list[list[str]] = [
    [
        "errors",
        "names",
        "redact",
        "yaml_io",
        "config",
        "config_io",
        "concepts",
        "progress",
        "busy",
        "ahead",
        "__init__",
    ],
    ["storage"],
    ["nn", "text"],
    ["evaluate"],
    ["teacher"],
    ["ray_runtime", "track.spool", "track.mlflow_backend", "track.mlflow_tracker", "track.__init__"],
    ["pairs"],
    ["train"],
    ["search", "compress"],
    ["export"],
    # What is known of a whole run.
    ["batch", "status", "cost", "plan_table", "overview", "publish", "track", "submit", "doctor", "stages"],
    ["commands", "cli"],
    ["jobs"],
]
RANKS = {name: rank for rank, names in enumerate(LAYERS) for name in names}
WHOLE_RUN = RANKS["batch"]

# Third-party package -> the only places that import it.
ROOMS = {
    "boto3": {"storage"},
    "botocore": {"storage"},
    "mlflow": {"track"},
    "onnx": {"export"},
    "onnxruntime": {"export"},
    "onnxscript": {"export"},
    "coremltools": {"export"},
    "flatbuffers": {"export"},
    "diffusers": {"teacher"},
    "transformers": {"text", "teacher", "evaluate", "pairs"},
    "peft": {"nn.lora", "search"},
    "torchmetrics": {"evaluate"},
    "ray": {"pairs", "train", "search", "compress", "ray_runtime", "submit", "publish", "stages", "commands"},
    "typer": {"cli", "commands"},
    "yaml": {"yaml_io", "teacher.training"},
}
# Imported when the module is imported, by a package installed without the extra `cluster`.
LIGHT = [
    "config",
    "config_io",
    "concepts",
    "errors",
    "progress",
    "storage",
    "cli",
    "commands",
    "doctor",
    "export.runtime",
]
HEAVY = {"torch", "ray", "mlflow", "diffusers", "transformers", "peft", "sklearn", "pyarrow", "onnx", "torchmetrics"}


def sources() -> list[Path]:
    return sorted([*(REPO / PACKAGE).rglob("*.py"), *(REPO / "jobs").glob("*.py")])


def module_of(path: Path) -> str:
    """Name without the package's: ``storage.s3``, ``cli``, ``jobs.run_batch``."""
    parts = path.relative_to(REPO).with_suffix("").parts
    return ".".join(parts[1:] if parts[0] == PACKAGE else parts)


@functools.cache
def imports(path: Path, *, at_import_only: bool = False) -> list[tuple[int, str]]:
    """Line and full name of everything a file imports; for ``from a import b`` both ``a`` and ``a.b``."""
    return list(_imports(path, at_import_only))


def _imports(path: Path, at_import_only: bool) -> Iterator[tuple[int, str]]:
    for node in walk(ast.parse(path.read_text(encoding="utf-8")), at_import_only):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            assert node.module
            yield node.lineno, node.module
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def walk(node: ast.AST, at_import_only: bool) -> Iterator[ast.AST]:
    """All nodes; on request without function bodies and `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(node):
        if at_import_only and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if at_import_only and isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            continue
        yield child
        yield from walk(child, at_import_only)


def named(module: str, names: set[str] | dict[str, int]) -> str | None:
    """The most exact of ``names`` that is the module or holds it."""
    parts = module.split(".")
    for end in range(len(parts), 0, -1):
        if ".".join(parts[:end]) in names:
            return ".".join(parts[:end])
    return None


def inside(name: str) -> str | None:
    """The part after the package's name; None for other packages."""
    return name.removeprefix(f"{PACKAGE}.") if name.startswith(f"{PACKAGE}.") else None


@pytest.mark.parametrize("path", sources(), ids=module_of)
def test_a_module_imports_only_what_lies_below_it(path):
    module = module_of(path)
    home = named(module, RANKS)
    assert home, f"{module} has no place in LAYERS"
    wrong = []
    for line, name in imports(path):
        target = inside(name)
        place = named(target, RANKS) if target else None
        if place is None or place == home or place.split(".")[0] == home.split(".")[0]:
            continue
        both_whole_run = RANKS[place] == RANKS[home] in {0, WHOLE_RUN}
        if RANKS[place] >= RANKS[home] and not both_whole_run:
            wrong.append(f"{path.relative_to(REPO)}:{line}: {home} imports {name}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("package", sorted(ROOMS))
def test_a_large_package_is_imported_in_its_room_only(package):
    wrong = [
        f"{path.relative_to(REPO)}:{line}: imports {name}"
        for path in sources()
        for line, name in imports(path)
        if name.split(".")[0] == package and named(module_of(path), ROOMS[package]) is None
    ]
    assert not wrong, "\n".join(wrong)


def test_the_networks_know_torch_and_nothing_of_the_rest():
    wrong = []
    for path in sorted((REPO / PACKAGE / "nn").glob("*.py")):
        for line, name in imports(path):
            target, first = inside(name), name.split(".")[0]
            if target is not None:
                ok = named(target, {"nn", "errors"}) is not None
            else:
                ok = first in {"torch", PACKAGE} or first in sys.stdlib_module_names
                ok = ok or (path.name == "lora.py" and first in {"peft", "safetensors"})
            if not ok:
                wrong.append(f"{path.relative_to(REPO)}:{line}: imports {name}")
    assert not wrong, "\n".join(wrong)


def test_the_light_core_imports_no_heavy_package_at_import():
    wrong = [
        f"{path.relative_to(REPO)}:{line}: imports {name}"
        for path in sources()
        if named(module_of(path), set(LIGHT)) is not None
        for line, name in imports(path, at_import_only=True)
        if name.split(".")[0] in HEAVY
    ]
    assert not wrong, "\n".join(wrong)


def test_job_files_are_thin():
    long = {p.name: n for p in (REPO / "jobs").glob("*.py") if (n := len(p.read_text().splitlines())) > 40}
    assert not long
