"""The concept catalogue: the edits a run knows, by name.

A catalogue is a YAML list of concepts, or a composed one: every look in every setting.

Example:
    catalogue = load_catalogue("bundled")          # or "composed", or a path
    oil, = select(catalogue, ["oil-painting"])
"""

import itertools
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from e2gan_cluster.errors import InputError
from e2gan_cluster.names import check_name, did_you_mean, nearest
from e2gan_cluster.yaml_io import Document, Loc, read_yaml

MAX_PROMPT_CHARS = 500
SHIPPED = ("bundled", "composed")

_FIELDS = ("name", "prompt", "wordings", "tags", "negative_prompt", "teacher")
_COMPOSE_FIELDS = ("from", "looks", "settings", "prompt", "tags")
_TEACHER_LIMITS: dict[str, tuple[type, float, float]] = {
    "steps": (int, 1, 1000),
    "guidance_scale": (float, 0, 100),
    "image_guidance_scale": (float, 0, 100),
    "strength": (float, 1e-6, 1),
}
# Spreadsheets run a cell that starts with one of these.
_FORMULA_START = "=+-@"
# They reorder or hide what a person reads.
_BIDI = set("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff")


@dataclass(frozen=True)
class Concept:
    """One edit.

    Attributes:
        name: 1 to 63 of ``a-z 0-9 -``; also the folder name of its outputs.
        prompt: Instruction for the teacher, at most 500 characters.
        wordings: Other ways to say the same.
        tags: Groups it belongs to.
        negative_prompt: What the edit should avoid; None = the run's.
        teacher: Overrides of ``steps``, ``guidance_scale``, ``image_guidance_scale``, ``strength``.
    """

    name: str
    prompt: str
    wordings: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    negative_prompt: str | None = None
    teacher: Mapping[str, float | int] = field(default_factory=dict, hash=False)


def load_catalogue(name_or_path: str) -> list[Concept]:
    """Read a catalogue.

    Args:
        name_or_path: ``bundled``, ``composed``, or the path of a YAML file.

    Returns:
        Concepts in file order; of a composed catalogue each look with all settings in turn.

    Raises:
        InputError: with ``file:line`` of the first thing that is wrong: name, prompt, duplicate, unknown field.
    """
    return _load(name_or_path, depth=0)


def select(catalogue: Sequence[Concept], names: Iterable[str]) -> list[Concept]:
    """The named concepts, in the order of ``names``.

    Raises:
        InputError: a name is not in the catalogue; gives the nearest ones.
    """
    by_name = {concept.name: concept for concept in catalogue}
    names = list(names)
    missing = [name for name in names if name not in by_name]
    if missing:
        lines = [f"no concept named {name!a}{did_you_mean(name, by_name)}" for name in missing[:5]]
        raise InputError("\n".join(lines), "`e2gan concepts CATALOGUE` lists the names")
    return [by_name[name] for name in names]


def shipped_catalogue(name: str) -> Path:
    """Path of a catalogue that comes with the package."""
    return Path(str(resources.files("e2gan_cluster"))) / "assets" / "concepts" / f"{name}.yaml"


def check_prompt(text: object) -> str:
    """Return ``text`` if it is fit to be a prompt.

    Raises:
        ValueError: not text, empty, longer than 500 characters, with control characters, or a spreadsheet formula.
    """
    if not isinstance(text, str):
        raise ValueError("must be text: write it in quotes")
    if not text.strip():
        raise ValueError("is empty")
    if len(text) > MAX_PROMPT_CHARS:
        raise ValueError(f"has {len(text)} characters, at most {MAX_PROMPT_CHARS} are allowed")
    for char in text:
        if unicodedata.category(char) in {"Cc", "Cs", "Zl", "Zp"} or char in _BIDI:
            what = "a line break" if char in "\n\r\u2028\u2029" else f"the control character U+{ord(char):04X}"
            raise ValueError(f"contains {what}: write one line of plain text")
    if text.lstrip()[0] in _FORMULA_START:
        raise ValueError(
            f"starts with {text.lstrip()[0]!r}, which spreadsheets take for a formula: start with a letter"
        )
    return text


def _load(name_or_path: str, depth: int) -> list[Concept]:
    path = shipped_catalogue(name_or_path) if name_or_path in SHIPPED else Path(name_or_path)
    if name_or_path not in SHIPPED and not path.exists() and re.fullmatch(r"[\w-]+", name_or_path):
        hint = nearest(name_or_path, SHIPPED)
        raise InputError(
            f"{name_or_path}: no such catalogue" + (f"; did you mean `{hint[0]}`?" if hint else ""),
            "give `bundled`, `composed` or the path of a YAML file",
        )
    document = read_yaml(path, InputError)
    if isinstance(document.value, dict) and "compose" in document.value:
        for key in document.value:
            if key != "compose":
                raise _error(document, (key,), f"unknown field `{key}` beside `compose`")
        return _Reader(document).composed(depth)
    if not isinstance(document.value, list):
        raise _error(document, (), "a catalogue is a list of {name, prompt}, or a mapping with `compose`")
    return _Reader(document).concepts(document.value, ())


def _error(document: Document, loc: Loc, message: str) -> InputError:
    return InputError(f"{document.where(loc)}: {message}", "docs/concepts.md describes the catalogue format")


class _Reader:
    """Checks the entries of one document."""

    def __init__(self, document: Document) -> None:
        self.document = document

    def concepts(self, entries: Sequence[Any], loc: Loc) -> list[Concept]:
        found = [self.concept(entry, (*loc, i)) for i, entry in enumerate(entries)]
        if not found:
            raise _error(self.document, loc, "the list is empty")
        self.unique(found, loc)
        return found

    def unique(self, concepts: Sequence[Concept], loc: Loc) -> None:
        first: dict[str, int] = {}
        for i, concept in enumerate(concepts):
            if concept.name in first:
                before = self.document.line((*loc, first[concept.name]))
                raise _error(self.document, (*loc, i), f"duplicate concept `{concept.name}`, first on line {before}")
            first[concept.name] = i

    def concept(self, entry: Any, loc: Loc) -> Concept:
        if not isinstance(entry, dict):
            raise _error(self.document, loc, f"expected {{name, prompt}}, found {ascii(entry)[:60]}")
        self.known(entry, _FIELDS, loc)
        for needed in ("name", "prompt"):
            if needed not in entry:
                raise _error(self.document, loc, f"`{needed}` is missing")
        name = self.checked(self.name, entry["name"], (*loc, "name"))
        what = f"concept `{name}`"
        negative = entry.get("negative_prompt")
        return Concept(
            name=name,
            prompt=self.checked(check_prompt, entry["prompt"], (*loc, "prompt"), f"{what}: prompt "),
            wordings=tuple(self.texts(entry.get("wordings"), (*loc, "wordings"), f"{what}: wording ")),
            tags=tuple(self.tags(entry.get("tags"), (*loc, "tags"))),
            negative_prompt=None
            if negative is None
            else self.checked(check_prompt, negative, (*loc, "negative_prompt"), f"{what}: negative_prompt "),
            teacher=self.teacher(entry.get("teacher"), (*loc, "teacher"), what),
        )

    def name(self, value: object) -> str:
        if isinstance(value, str) and value != value.lower() and re.fullmatch(r"[A-Za-z0-9-]+", value):
            raise ValueError(
                f"name {value[:80]!r} has capitals: on some disks it is the same folder as `{value[:80].lower()}`"
            )
        if value is None or isinstance(value, bool | int | float):
            raise ValueError(f"name {value!r} is not text: write it in quotes")
        return check_name(value, "name")

    def checked(self, check: Any, value: object, loc: Loc, what: str = "") -> str:
        try:
            return check(value)
        except ValueError as bad:
            raise _error(self.document, loc, f"{what}{bad}") from None

    def texts(self, value: object, loc: Loc, what: str) -> list[str]:
        if value is None:
            return []
        if not isinstance(value, list):
            raise _error(self.document, loc, f"{what}must be a list")
        return [self.checked(check_prompt, item, (*loc, i), what) for i, item in enumerate(value)]

    def tags(self, value: object, loc: Loc) -> list[str]:
        if value is None:
            return []
        if not isinstance(value, list):
            raise _error(self.document, loc, "tags must be a list of names")
        return [self.checked(lambda v: check_name(v, "tag"), item, (*loc, i)) for i, item in enumerate(value)]

    def teacher(self, value: object, loc: Loc, what: str) -> Mapping[str, float | int]:
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise _error(self.document, loc, f"{what}: teacher must be a mapping such as {{steps: 8}}")
        self.known(value, tuple(_TEACHER_LIMITS), loc)
        for key, number in value.items():
            kind, low, high = _TEACHER_LIMITS[key]
            right = isinstance(number, int if kind is int else int | float) and not isinstance(number, bool)
            if not right or not low <= number <= high:
                need = "a whole number" if kind is int else "a number"
                raise _error(
                    self.document, (*loc, key), f"{what}: teacher.{key} must be {need} from {low:g} to {high:g}"
                )
        return dict(value)

    def known(self, entry: Mapping[str, Any], fields: Sequence[str], loc: Loc) -> None:
        for key in entry:
            if key not in fields:
                raise _error(self.document, (*loc, key), f"unknown field {ascii(key)[:60]}{did_you_mean(key, fields)}")

    def composed(self, depth: int) -> list[Concept]:
        """Every look in every setting."""
        loc: Loc = ("compose",)
        entry = self.document.value["compose"]
        if not isinstance(entry, dict):
            raise _error(self.document, loc, "compose must be a mapping with `looks` and `settings`")
        self.known(entry, _COMPOSE_FIELDS, loc)
        source: list[Concept] = []
        if "from" in entry:
            if depth or not isinstance(entry["from"], str):
                raise _error(self.document, (*loc, "from"), "`from` must name a plain catalogue")
            source = _load(self.relative(entry["from"]), depth + 1)
        looks = self.parts(entry, "looks", source)
        settings = self.parts(entry, "settings", source)
        template = entry.get("prompt", "{look}, {setting}")
        if not isinstance(template, str) or "{look}" not in template or "{setting}" not in template:
            raise _error(self.document, (*loc, "prompt"), "prompt must contain {look} and {setting}")
        tags = tuple(self.tags(entry.get("tags"), (*loc, "tags")))
        found = [self.pair(look, setting, template, tags) for look in looks for setting in settings]
        self.unique_composed(found)
        return found

    def relative(self, name: str) -> str:
        """A path in the file counts from the file's folder."""
        return name if name in SHIPPED else str(Path(self.document.name).parent / name)

    def parts(self, entry: Mapping[str, Any], key: str, source: Sequence[Concept]) -> list[Concept]:
        loc: Loc = ("compose", key)
        items = entry.get(key)
        if isinstance(items, dict) and set(items) == {"tag"}:
            tagged = [concept for concept in source if items["tag"] in concept.tags]
            if not tagged:
                raise _error(self.document, (*loc, "tag"), f"no concept of `from` has the tag {items['tag']!a}")
            return tagged
        if not isinstance(items, list) or not items:
            need = "a list of names (of `from`) or of {name, prompt}, or {tag: a tag of `from`}"
            raise _error(self.document, loc, f"`{key}` must be {need}")
        by_name = {concept.name: concept for concept in source}
        found = []
        for i, item in enumerate(items):
            if isinstance(item, str):
                if item not in by_name:
                    hint = did_you_mean(item, by_name) or ("" if source else ": there is no `from` catalogue")
                    raise _error(self.document, (*loc, i), f"no concept named {ascii(item)[:60]}{hint}")
                found.append(by_name[item])
            else:
                found.append(self.concept(item, (*loc, i)))
        self.unique(found, loc)
        return found

    def pair(self, look: Concept, setting: Concept, template: str, tags: tuple[str, ...]) -> Concept:
        loc: Loc = ("compose",)
        what = f"composed prompt of `{look.name}-{setting.name}` "

        def fill(first: str, second: str) -> str:
            return self.checked(check_prompt, template.replace("{look}", first).replace("{setting}", second), loc, what)

        prompt = fill(look.prompt, setting.prompt)
        phrases = setting.wordings or (setting.prompt,)
        return Concept(
            name=self.checked(lambda v: check_name(v, "composed name"), f"{look.name}-{setting.name}", loc),
            prompt=prompt,
            wordings=tuple(fill(a, b) for a, b in zip(look.wordings, itertools.cycle(phrases), strict=False)),
            tags=tuple(dict.fromkeys((*look.tags, *setting.tags, *tags))),
            negative_prompt=look.negative_prompt or setting.negative_prompt,
            teacher={**look.teacher, **setting.teacher},
        )

    def unique_composed(self, concepts: Sequence[Concept]) -> None:
        seen: set[str] = set()
        for concept in concepts:
            if concept.name in seen:
                raise _error(
                    self.document, ("compose",), f"two pairs make the name `{concept.name}`: rename a look or setting"
                )
            seen.add(concept.name)
