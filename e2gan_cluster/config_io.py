"""Loads, prints, compares and documents the run config.

Example:
    config = load_config(Path("configs/demo.yaml"), ["pairs.resolution=128", "seed=7"])
    print(to_yaml(config), fingerprint(config))
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from e2gan_cluster.config import RunConfig
from e2gan_cluster.errors import ConfigError
from e2gan_cluster.names import did_you_mean
from e2gan_cluster.yaml_io import Document, Loc, dump_yaml, parse_yaml, read_yaml

_SHOWN_ERRORS = 10
_DOCS_HINT = "`e2gan config docs` lists every option"


def load_config(path: Path | None, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a run config: defaults, then the file, then the overrides.

    Args:
        path: YAML file, or None for defaults only.
        overrides: ``key.path=value``, the value in YAML; later ones win.

    Raises:
        ConfigError: with ``file:line: key: what is wrong`` for each wrong option, and the nearest known key.
    """
    document = read_yaml(path) if path is not None else Document("defaults", {})
    value = {} if document.value is None else document.value
    if not isinstance(value, dict):
        raise ConfigError(f"{document.where(())}: a config is a mapping of options, e.g. `storage: runs/demo`")
    data = merge(RunConfig().model_dump(), value)
    origins: dict[Loc, str] = {}
    for override in overrides:
        _override(data, override, origins)
    try:
        return RunConfig.model_validate(data)
    except ValidationError as bad:
        lines = [_explain(error, document, origins) for error in bad.errors()]
        if len(lines) > _SHOWN_ERRORS:
            lines = [*lines[:_SHOWN_ERRORS], f"... and {len(lines) - _SHOWN_ERRORS} more"]
        raise ConfigError("\n".join(lines), _DOCS_HINT) from None


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with the values of ``over``; mappings are merged, everything else is replaced."""
    out = dict(base)
    for key, value in over.items():
        old = out.get(key)
        out[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return out


def to_yaml(config: RunConfig) -> str:
    """The resolved config, every default written out; `load_config` reads it back equal."""
    return dump_yaml(config.model_dump(mode="json"))


def fingerprint(model: BaseModel | Mapping[str, Any]) -> str:
    """Sha256 (hex) of the canonical JSON: sorted keys, no spaces, no NaN."""
    plain = model.model_dump(mode="json") if isinstance(model, BaseModel) else model
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def explain_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs between two configs (or any nested dicts), one line per field.

    Returns:
        Lines such as ``pairs.resolution: 64 -> 128``, sorted by key; empty if they are equal.
    """
    flat_old, flat_new = _flatten(old), _flatten(new)
    lines = []
    for key in sorted(flat_old.keys() | flat_new.keys()):
        if key not in flat_new:
            lines.append(f"{key}: {_show(flat_old[key])} -> (not there)")
        elif key not in flat_old:
            lines.append(f"{key}: (not there) -> {_show(flat_new[key])}")
        elif flat_old[key] != flat_new[key]:
            lines.append(f"{key}: {_show(flat_old[key])} -> {_show(flat_new[key])}")
    return lines


def config_table() -> str:
    """Markdown page of all options: name, type, default, meaning with unit and source."""
    out = [
        "# Configuration",
        "",
        "One YAML file per run; `--set key.path=value` overrides single options. `e2gan config show --config FILE`",
        "prints the resolved config. This page is written by `e2gan config docs`.",
        "",
        "Secrets never belong here: credentials and endpoints come from the environment (`AWS_*`,",
        "`MLFLOW_TRACKING_*`).",
    ]
    for section, model in _sections(RunConfig(), ""):
        title = f"`{section}`" if section else "Top level"
        out += ["", f"## {title}", "", (type(model).__doc__ or "").strip().splitlines()[0], ""]
        out += ["| option | type | default | meaning, unit, source |", "|---|---|---|---|"]
        for name, info in type(model).model_fields.items():
            value = getattr(model, name)
            if not isinstance(value, BaseModel):
                key = f"{section}.{name}" if section else name
                cells = [f"`{key}`", _type_name(info), f"`{_show(value)}`", info.description or ""]
                out.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(out) + "\n"


def _sections(model: BaseModel, prefix: str) -> Iterator[tuple[str, BaseModel]]:
    yield prefix, model
    for name in type(model).model_fields:
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            yield from _sections(value, f"{prefix}.{name}" if prefix else name)


def _type_name(info: FieldInfo) -> str:
    return _annotation_name(info.annotation) + _bounds(info.metadata)


def _bounds(metadata: Iterable[Any]) -> str:
    """`` > 0, <= 1``."""
    bounds = []
    for rule in metadata:
        for name, sign in (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<=")):
            limit = getattr(rule, name, None)
            if limit is not None:
                bounds.append(f"{sign} {limit:g}")
    return f" {', '.join(bounds)}" if bounds else ""


def _annotation_name(annotation: Any) -> str:
    if annotation is type(None):
        return "empty"
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is None:
        return {"str": "text", "int": "integer", "float": "number", "bool": "true/false"}.get(
            getattr(annotation, "__name__", ""), str(annotation)
        )
    if origin is list:
        return f"list of {_annotation_name(args[0])}"
    if getattr(annotation, "__metadata__", None):
        return _annotation_name(args[0]) + _bounds(rule for info in args[1:] for rule in getattr(info, "metadata", ()))
    if "Literal" in str(origin):
        return " | ".join(f"`{a}`" for a in args)
    return " or ".join(_annotation_name(a) for a in args)


def _override(data: dict[str, Any], override: str, origins: dict[Loc, str]) -> None:
    key, sign, text = override.partition("=")
    key = key.strip()
    source = f"--set {key}"
    if not sign or not key or not all(key.split(".")):
        raise ConfigError(f"--set {override}: not of the form key.path=value", "e.g. --set pairs.resolution=128")
    value = parse_yaml(text, source).value
    path = key.split(".")
    target = data
    for end, part in enumerate(path[:-1], 1):
        below = target.get(part)
        if below is None and part not in target:
            known = _known_names(tuple(path[: end - 1]))
            raise ConfigError(f"{source}: no section `{'.'.join(path[:end])}`{did_you_mean(part, known)}", _DOCS_HINT)
        if not isinstance(below, dict):
            raise ConfigError(f"{source}: `{'.'.join(path[:end])}` is an option, not a section", _DOCS_HINT)
        target = below
    old = target.get(path[-1])
    target[path[-1]] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    origins[tuple(path)] = source


def _explain(error: ErrorDetails, document: Document, origins: Mapping[Loc, str]) -> str:
    loc = _option_loc(error["loc"])
    key = ".".join(str(part) for part in loc)
    kind, message = error["type"], error["msg"]
    if kind == "extra_forbidden":
        name = str(loc[-1])
        hint = did_you_mean(name, _known_names(loc[:-1])) or _elsewhere(name)
        return f"{_where(loc, document, origins)}: {ascii(key)[1:-1]}: unknown option{hint}"
    if kind == "value_error":
        message = message.removeprefix("Value error, ")
        named = [tuple(word.split(".")) for word in re.findall(r"[a-z_0-9]+(?:\.[a-z_0-9]+)*", message)]
        candidates = [n for w in named for n in (w, (*loc, *w)) if n in origins or n in document.lines]
        return f"{_where(candidates[0] if candidates else loc, document, origins)}: {message}"
    if kind == "missing":
        return f"{_where(loc, document, origins)}: {key}: has no default and must be given"
    given = error.get("input")
    message = message.replace("Input should be", "should be").removeprefix("Value error, ")
    shown = "" if isinstance(given, dict) else f", not {_show(given)}"
    return f"{_where(loc, document, origins)}: {key}: {message}{shown}"


def _option_loc(loc: tuple[str | int, ...]) -> Loc:
    """The path without the names pydantic adds for the arms of a union."""
    return tuple(
        part for part in loc if isinstance(part, int) or not re.search(r"[\[\]',]|\A(?:int|str|float|bool)\Z", part)
    )


def _where(loc: Loc, document: Document, origins: Mapping[Loc, str]) -> str:
    for end in range(len(loc), 0, -1):
        if loc[:end] in origins:
            return origins[loc[:end]]
        if loc[:end] in document.lines:
            return document.where(loc[:end])
    return document.where(())


def _known_names(section: Loc) -> list[str]:
    model: BaseModel = RunConfig()
    for part in section:
        below = getattr(model, str(part), None)
        if not isinstance(below, BaseModel):
            return []
        model = below
    return list(type(model).model_fields)


def _elsewhere(name: str) -> str:
    known = [f"{s}.{n}" if s else n for s, m in _sections(RunConfig(), "") for n in type(m).model_fields]
    same = [key for key in known if key.rpartition(".")[2] == name]
    if same:
        return f"; did you mean {' or '.join(f'`{key}`' for key in same[:3])}?"
    return did_you_mean(name, known)


def _flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, item in value.items():
        path = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(item, Mapping) and item:
            out |= _flatten(item, path)
        else:
            out[path] = item
    return out


def _show(value: Any) -> str:
    if value is None:
        return "empty"
    text = json.dumps(value, ensure_ascii=True, default=str) if not isinstance(value, str) else ascii(value)[1:-1]
    text = text or "(empty text)"
    return text if len(text) <= 120 else f"{text[:117]}..."
