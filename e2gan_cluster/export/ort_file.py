"""ONNX Runtime's own model format, the same bytes for the same graph.

The runtime writes its table of kernel arguments in the order of a hash table with a random seed, so no two conversions
agree (onnxruntime 1.31). The table is the last thing written and lies between the root and the model; it is written
again here in sorted order. Slots are those of the runtime's schema, ``onnxruntime/core/flatbuffers/schema/ort.fbs``.

Example:
    >>> save_ort(Path("base.onnx"), Path("base.ort"))
"""

from pathlib import Path

import flatbuffers
from flatbuffers import number_types
from flatbuffers.table import Table

from e2gan_cluster.export.graph import ExportError, first_line

IDENTIFIER = b"ORTM"
_VERSION, _MODEL, _RESOLVER = 0, 1, 3
_ALIGNMENT = 64  # bytes; no tensor in the file asks for more

_Argument = tuple[int, int]
_Types = list[tuple[bytes, list[_Argument]]]
_Kernels = list[tuple[bytes, _Types]]


def save_ort(onnx_path: Path, ort_path: Path) -> Path:
    """Converts to ONNX Runtime's own format, optimised for any CPU (no layout of this machine's).

    Raises:
        ExportError: ONNX Runtime refuses the graph.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.add_session_config_entry("session.save_model_format", "ORT")
    options.optimized_model_filepath = str(ort_path)
    try:
        ort.InferenceSession(str(onnx_path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ExportError(f"{onnx_path.name} cannot be converted to ORT format: {first_line(error)}") from error
    ort_path.write_bytes(in_one_order(ort_path.read_bytes()))
    return ort_path


def in_one_order(data: bytes) -> bytes:
    """The same model with its table of kernel arguments in sorted order.

    Args:
        data: A file in ORT format.

    Returns:
        A file in ORT format. One of a layout that is not known here comes back as it is.
    """
    root = Table(data, _read_offset(data, 0))
    model, resolver = _child(root, _MODEL), _child(root, _RESOLVER)
    if data[4:8] != IDENTIFIER or model is None or resolver is None:
        return data
    begin = root.Pos + _length(root)
    end = min(place for place in (model.Pos, _vtable(model)) if place > root.Pos)
    fields = {slot: root.Pos + root.Offset(4 + 2 * slot) for slot in (_VERSION, _MODEL, _RESOLVER)}
    if not (_vtable(root) < begin <= resolver.Pos < end <= root.Indirect(fields[_VERSION])):
        return data
    table, offset = _build(_read(resolver))
    table = bytes(-begin % _ALIGNMENT) + table
    filled = table + bytes((end - begin - len(table)) % _ALIGNMENT)  # the model keeps its alignment
    moved = bytearray(data[:begin] + filled + data[end:])
    for slot in (_VERSION, _MODEL):
        _write_offset(moved, fields[slot], _read_offset(data, fields[slot]) + len(filled) - (end - begin))
    _write_offset(moved, fields[_RESOLVER], begin + len(table) - offset - fields[_RESOLVER])
    return bytes(moved)


def _child(table: Table, slot: int) -> Table | None:
    offset = table.Offset(4 + 2 * slot)
    return Table(table.Bytes, table.Indirect(table.Pos + offset)) if offset else None


def _vtable(table: Table) -> int:
    return table.Pos - table.Get(number_types.Int32Flags, table.Pos)


def _length(table: Table) -> int:
    """Bytes of a table's own fields."""
    return table.Get(number_types.Uint16Flags, _vtable(table) + 2)


def _children(table: Table, slot: int) -> list[Table]:
    offset = table.Offset(4 + 2 * slot)
    if not offset:
        return []
    first = table.Vector(offset)
    return [Table(table.Bytes, table.Indirect(first + 4 * n)) for n in range(table.VectorLen(offset))]


def _text(table: Table, slot: int) -> bytes:
    return table.String(table.Pos + table.Offset(4 + 2 * slot))


def _read(resolver: Table) -> _Kernels:
    """Kernels by name; per kernel, its types by name; per type, the arguments that have it."""

    def argument(table: Table) -> _Argument:
        return table.GetSlot(4, 0, number_types.Int8Flags), table.GetSlot(6, 0, number_types.Uint32Flags)

    def kind(table: Table) -> tuple[bytes, list[_Argument]]:
        return _text(table, 0), [argument(child) for child in _children(table, 1)]

    return [(_text(kernel, 0), [kind(child) for child in _children(kernel, 1)]) for kernel in _children(resolver, 0)]


def _build(kernels: _Kernels) -> tuple[bytes, int]:
    """The table's bytes, and how far before their end it begins."""
    builder = flatbuffers.Builder(4096)

    def argument(value: _Argument) -> int:
        builder.StartObject(2)
        builder.PrependInt8Slot(0, value[0], 0)
        builder.PrependUint32Slot(1, value[1], 0)
        return builder.EndObject()

    def kind(value: tuple[bytes, list[_Argument]]) -> int:
        return _named(builder, value[0], [argument(item) for item in value[1]])

    def kernel(value: tuple[bytes, _Types]) -> int:
        return _named(builder, value[0], [kind(item) for item in sorted(value[1])])

    entries = _vector(builder, [kernel(item) for item in sorted(kernels)])
    builder.StartObject(1)
    builder.PrependUOffsetTRelativeSlot(0, entries, 0)
    offset = builder.EndObject()
    builder.Prep(_ALIGNMENT, 0)
    return bytes(builder.Bytes[builder.Head() :]), offset


def _named(builder: flatbuffers.Builder, name: bytes, children: list[int]) -> int:
    vector, text = _vector(builder, children), builder.CreateString(name)
    builder.StartObject(2)
    builder.PrependUOffsetTRelativeSlot(0, text, 0)
    builder.PrependUOffsetTRelativeSlot(1, vector, 0)
    return builder.EndObject()


def _vector(builder: flatbuffers.Builder, children: list[int]) -> int:
    builder.StartVector(4, len(children), 4)
    for child in reversed(children):
        builder.PrependUOffsetTRelative(child)
    return builder.EndVector()


def _read_offset(data: bytes, position: int) -> int:
    return int.from_bytes(data[position : position + 4], "little")


def _write_offset(data: bytearray, position: int, value: int) -> None:
    data[position : position + 4] = value.to_bytes(4, "little")
