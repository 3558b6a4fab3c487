"""Accounts for an ONNX graph: operators whose results are used, and the constants and weights that operators use."""

from __future__ import annotations

from math import prod

from ..bundle.folder import Bundle
from ..engines.onnx.graph import MESSAGES, REPEATED, External, external_data
from ..protobuf import TEXT, Field, varint
from .ledger import Ledger
from .messages import LONGEST, Message, read_message

_NOTES = frozenset({"doc_string", "metadata_props", "denotation", "training_info", "ref_attr_name"})
_INSIDE = frozenset({"functions", "g", "graphs", "sparse_tensor", "sparse_tensors", "sparse_initializer"})
_WITH_TENSORS = frozenset({"Constant", "ConstantOfShape"})
"""Operators that have a tensor among their attributes."""
_WIDTHS = {"float_data": 4, "double_data": 8, "int32_data": 0, "int64_data": 0, "uint64_data": 0}
"""Bytes of a number in the fields that hold them unpacked; 0 for varints."""
_DATA = ("raw_data", *_WIDTHS, "string_data", "external_data")
_BYTES = {1: 4, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8, 12: 4, 13: 8, 16: 2}
"""Bytes of a number, by the types of onnx.proto."""


def graph(bundle: Bundle, ledger: Ledger) -> None:
    """Account for a graph of the target onnx."""
    try:
        _account(ledger, bytes(ledger.data))
    except ValueError as error:
        ledger.refuse(0, ledger.size, f"no ONNX graph: {error}")


def _account(ledger: Ledger, data: bytes) -> None:
    model = read_message(ledger, MESSAGES, "Model", _repeats, _judge)
    places = {tensor.tensor: tensor for tensor in external_data(data) if tensor.location}
    for main in model.all("graph"):
        used = _used(ledger, data, main)
        for tensor in main.all("initializer"):
            name = tensor.text(data, "name")
            if name not in used:
                ledger.refuse(tensor.start, tensor.end, f"constant {name}, which no operator uses")
            else:
                _check_tensor(ledger, data, tensor, places.get(name))
        made = used | {v.text(data, "name") for end in ("input", "output") for v in main.all(end)}
        for value in main.all("value_info"):
            if (name := value.text(data, "name")) not in made:
                ledger.refuse(value.start, value.end, f"the shape of {name}, which is not in the graph")


def _repeats(kind: str, name: str) -> bool:
    return name in REPEATED


def _judge(kind: str, name: str, found: Field) -> str:
    if name in _NOTES:
        return f"{name} of {kind}, which engines do not read"
    if name in _INSIDE:
        return f"{name} of {kind}: graphs inside of graphs are not looked into"
    if kind == "Attribute" and name in ("s", "strings") and found.end - found.value > LONGEST:
        return f"a text of an attribute, longer than {LONGEST} bytes"
    return ""


def _used(ledger: Ledger, data: bytes, main: Message) -> set[str]:
    """Return the names that the graph's outputs depend on; operators that make none of them are refused."""
    nodes = [
        (node, [data[f.value : f.end].decode(errors="replace") for f in node.values.get("output", ())])
        for node in main.all("node")
    ]
    used = {value.text(data, "name") for value in main.all("output")}
    for node, outputs in reversed(nodes):  # the format wants them in the order of their use
        kind = node.text(data, "op_type")
        if not used & {name for name in outputs if name}:
            ledger.refuse(node.start, node.end, f"operator {kind}, whose results nothing uses")
            continue
        used |= {
            *outputs,
            *(data[f.value : f.end].decode(errors="replace") for f in node.values.get("input", ())),
        }
        for attribute in node.all("attribute"):
            for tensor in (*attribute.all("t"), *attribute.all("tensors")):
                if kind in _WITH_TENSORS:
                    _check_tensor(ledger, data, tensor, None)
                else:
                    ledger.refuse(tensor.start, tensor.end, f"a tensor among the attributes of {kind}")
    return used - {""}


def _check_tensor(ledger: Ledger, data: bytes, tensor: Message, place: External | None) -> None:
    """Refuse a tensor unless its numbers are in one field, and as many as its shape says."""
    kinds = [name for name in _DATA if name in tensor.values or name in tensor.inner]
    if len(kinds) > 1:
        ledger.refuse(tensor.start, tensor.end, f"a tensor with numbers in {' and '.join(kinds)}")
        return
    for name in kinds:
        if name == "string_data":
            ledger.refuse(tensor.start, tensor.end, "a tensor of texts")
        elif name in _WIDTHS:
            count, wanted = _count(data, tensor.values[name], _WIDTHS[name]), prod(_dims(data, tensor))
            if count != wanted:
                ledger.refuse(tensor.start, tensor.end, f"a tensor of {wanted} numbers, written as {count}")
    size = _BYTES.get(_number(data, tensor, "data_type"), 0) * prod(_dims(data, tensor))
    raw = tensor.values.get("raw_data")
    if raw and raw[-1].end - raw[-1].value != size:
        ledger.refuse(raw[-1].value, raw[-1].end, f"a tensor of {size} bytes, written in others")
    elif place is not None and place.length != size:
        ledger.refuse(
            tensor.start, tensor.end, f"weights {place.tensor} of {size} bytes, read as {place.length}"
        )


def _count(data: bytes, found: list[Field], width: int) -> int:
    """Return how many numbers a repeated field has, packed or one by one."""
    count = 0
    for each in found:
        if each.wire != TEXT:
            count += 1
        elif width:
            count += -(-(each.end - each.value) // width)
        else:
            count += sum(byte < 128 for byte in data[each.value : each.end])
    return count


def _number(data: bytes, message: Message, name: str) -> int:
    found = message.values.get(name)
    return varint(data, found[-1].value)[0] if found else 0


def _dims(data: bytes, tensor: Message) -> list[int]:
    sizes = []
    for found in tensor.values.get("dims", ()):
        at = found.value
        while at < found.end:
            size, at = varint(data, at)
            sizes.append(size)
    return sizes
