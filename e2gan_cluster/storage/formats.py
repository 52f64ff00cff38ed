"""Which files of an adapter version and of its base a device needs, by export format."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from e2gan_cluster.errors import InputError
from e2gan_cluster.storage.adapter_check import CONFIG, PROMPT, WEIGHTS
from e2gan_cluster.storage.manifest import Manifest

PullFormat = Literal[
    "onnx-adapter", "onnx-adapter-fp16", "required-inputs", "merged", "merged-fp16", "merged-int8", "ort", "coreml",
    "peft",
]  # fmt: skip
FORMATS: tuple[PullFormat, ...] = get_args(PullFormat)


@dataclass(frozen=True)
class _Choice:
    adapter: tuple[str, ...]
    base: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()


# The first choice whose files are all published is taken; extra files come along where they exist.
_CHOICES: dict[PullFormat, tuple[_Choice, ...]] = {
    "onnx-adapter": (_Choice(("adapter.onnx_adapter",), ("base.onnx",)),),
    "onnx-adapter-fp16": (_Choice(("adapter-fp16.onnx_adapter",), ("base-fp16.onnx",)),),
    "required-inputs": (_Choice(("lora_inputs.safetensors",), ("base-inputs.onnx",)),),
    "merged": (_Choice(("merged.onnx",)),),
    "merged-fp16": (_Choice(("merged-fp16.onnx",)),),
    "merged-int8": (_Choice(("merged-int8.onnx",)),),
    "ort": (_Choice(("adapter.onnx_adapter",), ("base.ort",)), _Choice(("merged.ort",))),
    "coreml": (_Choice(("merged.mlpackage.zip",)),),
    "peft": (_Choice((WEIGHTS, CONFIG), extra=(PROMPT, "README.md", "samples.png")),),
}


@dataclass(frozen=True)
class Selection:
    """Names of the files to pull.

    Attributes:
        adapter: Of the adapter version.
        base: Of the base's files for devices.
    """

    adapter: frozenset[str]
    base: frozenset[str]


def check_formats(formats: Iterable[str]) -> tuple[PullFormat, ...]:
    """The formats, sorted and known.

    Raises:
        InputError: An unknown one, or none.
    """
    wanted = set(formats)
    unknown = sorted(wanted - set(FORMATS))
    if unknown or not wanted:
        raise InputError(f"--format {unknown[0] if unknown else ''} is not known", f"choose among {', '.join(FORMATS)}")
    return tuple(name for name in FORMATS if name in wanted)


def needs_base(formats: Sequence[PullFormat]) -> bool:
    """Whether some format shares one base file between effects."""
    return any(choice.base for name in formats for choice in _CHOICES[name])


def select(formats: Sequence[PullFormat], adapter: Manifest, base: Manifest | None, what: str) -> Selection:
    """Choose files.

    Args:
        formats: What is wanted.
        adapter: Manifest of the adapter version.
        base: Manifest of the base's files for devices, if there is one.
        what: The adapter's name, for messages.

    Raises:
        InputError: The adapter or its base was published without the wanted format.
    """
    in_adapter = {entry.path for entry in adapter.files}
    in_base = {entry.path for entry in base.files} if base else set[str]()
    names: set[str] = set()
    base_names: set[str] = set()
    for wanted in formats:
        choices = _CHOICES[wanted]
        found = next((c for c in choices if in_adapter.issuperset(c.adapter) and in_base.issuperset(c.base)), None)
        if found is None:
            lacking = sorted({*choices[0].adapter} - in_adapter) + [
                f"{n} (base)" for n in choices[0].base if n not in in_base
            ]
            raise InputError(
                f"{what} was published without {', '.join(lacking)}, which format {wanted} needs",
                "publish it with that format (publish.formats), or choose another --format",
            )
        names.update(found.adapter, in_adapter.intersection(found.extra))
        base_names.update(found.base)
    return Selection(frozenset(names), frozenset(base_names))
