"""Reads an ONNX file by its protobuf fields, before an engine opens it: where its weights are, and its operators.

``MESSAGES`` is onnx.proto (release 1.23) without what no graph here has: a field that is not in it is unknown.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ...protobuf import TEXT, fields, varint

MESSAGES: dict[str, dict[int, tuple[str, str]]] = {
    "Model": {
        1: ("ir_version", "number"),
        2: ("producer_name", "text"),
        3: ("producer_version", "text"),
        4: ("domain", "text"),
        5: ("model_version", "number"),
        6: ("doc_string", "text"),
        7: ("graph", "Graph"),
        8: ("opset_import", "OperatorSet"),
        14: ("metadata_props", "Entry"),
        20: ("training_info", "TrainingInfo"),
        25: ("functions", "Function"),
    },
    "OperatorSet": {1: ("domain", "text"), 2: ("version", "number")},
    "Entry": {1: ("key", "text"), 2: ("value", "text")},
    "TrainingInfo": {
        1: ("initialization", "Graph"),
        2: ("algorithm", "Graph"),
        3: ("initialization_binding", "Entry"),
        4: ("update_binding", "Entry"),
    },
    "Function": {
        1: ("name", "text"),
        4: ("input", "text"),
        5: ("output", "text"),
        6: ("attribute", "text"),
        7: ("node", "Node"),
        8: ("doc_string", "text"),
        9: ("opset_import", "OperatorSet"),
        10: ("domain", "text"),
        11: ("attribute_proto", "Attribute"),
        12: ("value_info", "ValueInfo"),
        13: ("overload", "text"),
        14: ("metadata_props", "Entry"),
    },
    "Graph": {
        1: ("node", "Node"),
        2: ("name", "text"),
        5: ("initializer", "Tensor"),
        10: ("doc_string", "text"),
        11: ("input", "ValueInfo"),
        12: ("output", "ValueInfo"),
        13: ("value_info", "ValueInfo"),
        15: ("sparse_initializer", "SparseTensor"),
        16: ("metadata_props", "Entry"),
    },
    "Node": {
        1: ("input", "text"),
        2: ("output", "text"),
        3: ("name", "text"),
        4: ("op_type", "text"),
        5: ("attribute", "Attribute"),
        6: ("doc_string", "text"),
        7: ("domain", "text"),
        8: ("overload", "text"),
        9: ("metadata_props", "Entry"),
    },
    "Attribute": {
        1: ("name", "text"),
        2: ("f", "number"),
        3: ("i", "number"),
        4: ("s", "bytes"),
        5: ("t", "Tensor"),
        6: ("g", "Graph"),
        7: ("floats", "number"),
        8: ("ints", "number"),
        9: ("strings", "bytes"),
        10: ("tensors", "Tensor"),
        11: ("graphs", "Graph"),
        13: ("doc_string", "text"),
        20: ("type", "number"),
        21: ("ref_attr_name", "text"),
        22: ("sparse_tensor", "SparseTensor"),
        23: ("sparse_tensors", "SparseTensor"),
    },
    "Tensor": {
        1: ("dims", "number"),
        2: ("data_type", "number"),
        4: ("float_data", "number"),
        5: ("int32_data", "number"),
        6: ("string_data", "bytes"),
        7: ("int64_data", "number"),
        8: ("name", "text"),
        9: ("raw_data", "bytes"),
        10: ("double_data", "number"),
        11: ("uint64_data", "number"),
        12: ("doc_string", "text"),
        13: ("external_data", "Entry"),
        14: ("data_location", "number"),
        16: ("metadata_props", "Entry"),
    },
    "SparseTensor": {1: ("values", "Tensor"), 2: ("indices", "Tensor"), 3: ("dims", "number")},
    "ValueInfo": {
        1: ("name", "text"),
        2: ("type", "Type"),
        3: ("doc_string", "text"),
        4: ("metadata_props", "Entry"),
    },
    "Type": {1: ("tensor_type", "TensorType"), 6: ("denotation", "text")},
    "TensorType": {1: ("elem_type", "number"), 2: ("shape", "Shape")},
    "Shape": {1: ("dim", "Dimension")},
    "Dimension": {1: ("dim_value", "number"), 2: ("dim_param", "text"), 3: ("denotation", "text")},
}
"""By message and field number: the field's name, and what it holds (another message, or number, text, bytes)."""
REPEATED = frozenset(
    {
        "node", "initializer", "sparse_initializer", "input", "output", "value_info", "metadata_props",
        "opset_import", "training_info", "functions", "attribute", "attribute_proto", "initialization_binding",
        "update_binding", "floats", "ints", "strings", "tensors", "graphs", "sparse_tensors", "dims",
        "float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data", "external_data",
        "dim",
    }
)  # fmt: skip
"""Names of the fields that may come more than once."""
_DEEPEST = 32
"""The deepest nesting of messages: ten graphs inside of each other."""


def _leads_to(wanted: str) -> frozenset[str]:
    """Return the messages that contain a ``wanted`` one, at whatever depth, and itself."""
    found = {wanted}
    while more := {m for m, held in MESSAGES.items() if any(k in found for _, k in held.values())} - found:
        found |= more
    return frozenset(found)


_KEY = b"location"
"""The key of the entry that names another file: onnxruntime reads none for a tensor without it."""
_WITH_TENSORS = _leads_to("Tensor")


@dataclass(frozen=True)
class External:
    """A tensor whose bytes are in another file: ``length`` bytes from ``offset`` (None: to its end)."""

    tensor: str
    location: str
    offset: int
    length: int | None


def external_data(model: bytes) -> Iterator[External]:
    """Yield every tensor of an ONNX model whose bytes are in another file, of whatever graph, function or attribute.

    ValueError when ``model`` is no protobuf, or a field that leads to tensors is not as onnx.proto has it.
    """
    stack = [("Model", 0, len(model), 0)]
    while stack:
        kind, start, end, depth = stack.pop()
        if depth > _DEEPEST:
            raise ValueError(f"messages nested more than {_DEEPEST} deep")
        if kind == "Tensor":
            yield from _external(model, start, end)
            continue
        for found in fields(model, start, end):
            held = MESSAGES[kind].get(found.number, ("", ""))[1]
            if held in _WITH_TENSORS:
                if found.wire != TEXT:
                    raise ValueError(f"a {held} of wire type {found.wire} at byte {found.start}")
                if held == "Node" and model.find(_KEY, found.value, found.end) < 0:
                    continue  # most have numbers at most: a graph of a large model has thousands
                stack.append((held, found.value, found.end, depth + 1))


def operators(model: bytes) -> Iterator[tuple[str, str]]:
    """Yield (domain, operator) of each node of the main graph, and ("function", name) for each function of the model.

    Graphs inside of operators are not looked into: an operator that has any is known by its name. ValueError as
    above.
    """
    for kind, start, end in _inside(model, "Model", 0, len(model)):
        if kind == "Function":
            yield "function", _texts(model, start, end).get(1, "")
        elif kind == "Graph":
            for inner, first, last in _inside(model, kind, start, end):
                if inner == "Node":
                    texts = _texts(model, first, last)
                    yield texts.get(7, ""), texts.get(4, "")


def _inside(model: bytes, kind: str, start: int, end: int) -> Iterator[tuple[str, int, int]]:
    """Yield (kind, start, end) of each message directly inside one of ``kind``."""
    for found in fields(model, start, end):
        held = MESSAGES[kind].get(found.number, ("", ""))[1]
        if held in MESSAGES:
            if found.wire != TEXT:
                raise ValueError(f"a {held} of wire type {found.wire} at byte {found.start}")
            yield held, found.value, found.end


def _texts(model: bytes, start: int, end: int) -> dict[int, str]:
    """Return the texts of a message by the field's number; of a repeated one the last."""
    return {
        f.number: model[f.value : f.end].decode(errors="replace")
        for f in fields(model, start, end)
        if f.wire == TEXT
    }


def _external(model: bytes, start: int, end: int) -> Iterator[External]:
    name, entries = "", dict[str, str]()
    for found in fields(model, start, end):
        if found.number == 8:
            name = model[found.value : found.end].decode(errors="replace")
        if found.number == 14 and varint(model, found.value)[0]:
            entries.setdefault("location", "")
        if found.number == 13:
            parts = {f.number: model[f.value : f.end].decode() for f in fields(model, found.value, found.end)}
            entries[parts.get(1, "")] = parts.get(2, "")
    if entries:
        length = entries.get("length")
        yield External(
            name,
            entries.get("location", ""),
            int(entries.get("offset", 0)),
            None if length is None else int(length),
        )
