"""YAML as data only, with the line of every key: no tags, no duplicate keys, no alias bombs, no `no` that means false.

Scalars follow the YAML 1.2 core schema (``true/false``, ``null``, decimal numbers), so ``2e-4`` is a number and dates
stay text. The YAML 1.1 booleans ``on/off/yes/no`` are refused unless quoted.

Example:
    document = parse_yaml("a: {b: 1}", "run.yaml")
    document.value, document.line(("a", "b"))  # {"a": {"b": 1}}, 1
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from e2gan_cluster.errors import ConfigError, InputError

Loc = tuple[str | int, ...]

MAX_BYTES = 8 * 2**20
MAX_ALIASES = 50
MAX_NODES = 500_000
MAX_DEPTH = 50

_NULL = re.compile(r"(?:~|null|Null|NULL|)\Z")
_TRUE = re.compile(r"(?:true|True|TRUE)\Z")
_FALSE = re.compile(r"(?:false|False|FALSE)\Z")
_INT = re.compile(r"[-+]?[0-9]+\Z")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?\Z")
_SURPRISE = re.compile(r"(?i:on|off|yes|no)\Z")
_STANDARD_TAGS = {f"tag:yaml.org,2002:{t}" for t in ("null", "bool", "int", "float", "str", "seq", "map", "timestamp")}


@dataclass
class Document:
    """A parsed YAML text.

    Attributes:
        name: File name for messages.
        value: Plain Python data.
        lines: 1-based line of each key or list item by its path.
    """

    name: str
    value: Any
    lines: dict[Loc, int] = field(default_factory=dict)

    def line(self, loc: Loc) -> int | None:
        """Line of the path, or of its nearest parent that is in the file."""
        for end in range(len(loc), -1, -1):
            if loc[:end] in self.lines:
                return self.lines[loc[:end]]
        return None

    def where(self, loc: Loc) -> str:
        """``file:line`` of the path."""
        line = self.line(loc)
        return self.name if line is None else f"{self.name}:{line}"


class _Refused(Exception):
    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line, self.message = line, message


class _Loader(yaml.SafeLoader):
    """Counts aliases and nesting while it composes."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.aliases = 0
        self.depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        line = self.peek_event().start_mark.line + 1
        if self.check_event(yaml.AliasEvent):
            self.aliases += 1
            if self.aliases > MAX_ALIASES:
                raise _Refused(line, f"more than {MAX_ALIASES} aliases (*name)")
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise _Refused(line, f"nested more than {MAX_DEPTH} levels deep")
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


class _Builder:
    """Turns YAML nodes into plain data."""

    def __init__(self) -> None:
        self.lines: dict[Loc, int] = {}
        self.count = 0
        self.open: set[int] = set()

    def build(self, node: yaml.Node, loc: Loc) -> Any:
        line = node.start_mark.line + 1
        self.lines.setdefault(loc, line)
        self.count += 1
        if self.count > MAX_NODES:
            raise _Refused(line, f"more than {MAX_NODES} values (aliases expanded)")
        if id(node) in self.open:
            raise _Refused(line, "an alias that contains itself")
        if node.tag not in _STANDARD_TAGS and node.tag != "tag:yaml.org,2002:merge":
            raise _Refused(line, f"tag {_short(node.tag)} is not allowed: only plain text, numbers, lists and mappings")
        if isinstance(node, yaml.ScalarNode):
            return node.value if node.style is not None else plain_scalar(node.value, line)
        self.open.add(id(node))
        try:
            if isinstance(node, yaml.SequenceNode):
                return [self.build(item, (*loc, i)) for i, item in enumerate(node.value)]
            assert isinstance(node, yaml.MappingNode)
            return self._mapping(node, loc)
        finally:
            self.open.discard(id(node))

    def _mapping(self, node: yaml.MappingNode, loc: Loc) -> dict[str, Any]:
        out: dict[str, Any] = {}
        first: dict[str, int] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            key = self.build(key_node, (*loc, "\0key"))
            if not isinstance(key, str):
                raise _Refused(line, f"key {_short(str(key))} must be text: write it in quotes")
            if key in out:
                raise _Refused(line, f"duplicate key `{_short(key)}`, first on line {first[key]}")
            first[key] = line
            self.lines[(*loc, key)] = line
            out[key] = self.build(value_node, (*loc, key))
        self.lines.pop((*loc, "\0key"), None)
        return out


def plain_scalar(text: str, line: int = 0) -> Any:
    """Value of an unquoted scalar by the YAML 1.2 core schema.

    Raises:
        _Refused: it is a boolean in YAML 1.1 and text in YAML 1.2.
    """
    if _SURPRISE.match(text):
        raise _Refused(
            line, f'`{text}` is true or false in some YAML readers: write "{text}" for the text, or true/false'
        )
    if _NULL.match(text):
        return None
    if _TRUE.match(text) or _FALSE.match(text):
        return bool(_TRUE.match(text))
    if _INT.match(text) and len(text) < 100:
        return int(text)
    if _FLOAT.match(text):
        return float(text)
    return text


def parse_yaml(text: str, name: str, error: type[InputError] = ConfigError) -> Document:
    """Parse one YAML document into plain data with line numbers.

    Args:
        text: The document.
        name: File name for messages.
        error: Class of the error to raise.

    Raises:
        InputError: (as ``error``) not YAML, or with tags, duplicate keys, too many aliases, or surprising booleans.
    """
    builder = _Builder()
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        value = None if node is None else builder.build(node, ())
    except _Refused as refused:
        raise error(f"{name}:{refused.line}: {refused.message}") from None
    except yaml.MarkedYAMLError as bad:
        mark = bad.problem_mark or bad.context_mark
        line = mark.line + 1 if mark else 1
        raise error(f"{name}:{line}: not valid YAML: {bad.problem or bad.context}") from None
    except yaml.YAMLError as bad:
        raise error(f"{name}: not valid YAML: {_short(str(bad))}") from None
    except RecursionError:
        raise error(f"{name}: nested too deeply") from None
    finally:
        if loader is not None:
            loader.dispose()
    return Document(name, value, builder.lines)


def read_yaml(path: Path, error: type[InputError] = ConfigError) -> Document:
    """Read and parse a YAML file.

    Raises:
        InputError: (as ``error``) the file cannot be read, is too large, is not UTF-8, or see `parse_yaml`.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise error(f"{path}: no such file", "give the path of a YAML file, e.g. configs/demo.yaml") from None
    except OSError as bad:
        raise error(f"{path}: cannot be read: {bad.strerror}") from None
    if len(data) > MAX_BYTES:
        raise error(f"{path}: larger than {MAX_BYTES >> 20} MiB", "split it, or check that it is the right file")
    try:
        return parse_yaml(data.decode("utf-8-sig"), str(path), error)
    except UnicodeDecodeError as bad:
        line = data[: bad.start].count(b"\n") + 1
        raise error(f"{path}:{line}: not UTF-8 text", "save the file as UTF-8") from None


def _short(text: str) -> str:
    shown = ascii(text)[1:-1]
    return shown if len(shown) <= 80 else f"{shown[:77]}..."


class _Dumper(yaml.SafeDumper):
    """Quotes every text that an unquoted reading would change."""


def _represent_str(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    try:
        # Unquoted, PyYAML would write some line breaks (U+0085) as they are and read them back as spaces.
        style = None if text.isprintable() and plain_scalar(text) == text else '"'
    except _Refused:
        style = '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_str)


def dump_yaml(value: Any) -> str:
    """Plain data as YAML that `parse_yaml` reads back equal."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
