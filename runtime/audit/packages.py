"""Accounts for a Core ML package: its list of files, its program, and the arrays that the program has in weight.bin."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

import msgspec

from ..bundle.folder import Bundle
from ..bundle.heads import read_heads
from ..engines.coreml.description import specification
from ..engines.coreml.exits import exit_metadata
from ..engines.coreml.package import Package
from ..protobuf import Field, varint
from .ledger import Ledger
from .messages import Message, Messages, read_message

_ENTRY = {1: ("key", "text")}
MESSAGES: Messages = {
    "Model": {
        1: ("specificationVersion", "number"),
        2: ("description", "ModelDescription"),
        502: ("mlProgram", "Program"),
    },
    "ModelDescription": {
        1: ("input", "FeatureDescription"),
        10: ("output", "FeatureDescription"),
        13: ("state", "FeatureDescription"),
        20: ("functions", "FunctionDescription"),
        21: ("defaultFunctionName", "text"),
        100: ("metadata", "Metadata"),
    },
    "FunctionDescription": {
        1: ("name", "text"),
        2: ("input", "FeatureDescription"),
        3: ("output", "FeatureDescription"),
        6: ("state", "FeatureDescription"),
    },
    "FeatureDescription": {1: ("name", "text"), 2: ("shortDescription", "text"), 3: ("type", "FeatureType")},
    "FeatureType": {
        5: ("multiArrayType", "ArrayFeatureType"),
        8: ("stateType", "StateFeatureType"),
        1000: ("isOptional", "number"),
    },
    "ArrayFeatureType": {1: ("shape", "number"), 2: ("dataType", "number")},
    "StateFeatureType": {1: ("arrayType", "ArrayFeatureType")},
    "Metadata": {
        1: ("shortDescription", "text"),
        2: ("versionString", "text"),
        3: ("author", "text"),
        4: ("license", "text"),
        100: ("userDefined", "UserDefinedEntry"),
    },
    "UserDefinedEntry": {1: ("key", "text"), 2: ("value", "bytes")},
    "Program": {
        1: ("version", "number"),
        2: ("functions", "FunctionsEntry"),
        4: ("attributes", "ValueEntry"),
    },
    "FunctionsEntry": {**_ENTRY, 2: ("value", "Function")},
    "Function": {
        1: ("inputs", "NamedValueType"),
        2: ("opset", "text"),
        3: ("block_specializations", "BlockEntry"),
        4: ("attributes", "ValueEntry"),
    },
    "BlockEntry": {**_ENTRY, 2: ("value", "Block")},
    "ValueEntry": {**_ENTRY, 2: ("value", "Value")},
    "NamedValueType": {1: ("name", "text"), 2: ("type", "ValueType")},
    "ValueType": {
        1: ("tensorType", "TensorType"),
        2: ("listType", "ListType"),
        3: ("tupleType", "TupleType"),
        4: ("dictionaryType", "DictionaryType"),
        5: ("stateType", "StateType"),
    },
    "TensorType": {
        1: ("dataType", "number"),
        2: ("rank", "number"),
        3: ("dimensions", "Dimension"),
        4: ("attributes", "ValueEntry"),
    },
    "ListType": {1: ("type", "ValueType"), 2: ("length", "Dimension")},
    "TupleType": {1: ("types", "ValueType")},
    "DictionaryType": {1: ("keyType", "ValueType"), 2: ("valueType", "ValueType")},
    "StateType": {1: ("wrappedType", "ValueType")},
    "Dimension": {1: ("constant", "ConstantDimension"), 2: ("unknown", "UnknownDimension")},
    "ConstantDimension": {1: ("size", "number")},
    "UnknownDimension": {1: ("variadic", "number")},
    "Value": {
        2: ("type", "ValueType"),
        3: ("immediateValue", "ImmediateValue"),
        5: ("blobFileValue", "BlobFileValue"),
    },
    "ImmediateValue": {
        1: ("tensor", "TensorValue"),
        2: ("tuple", "TupleValue"),
        3: ("list", "ListValue"),
        4: ("dictionary", "DictionaryValue"),
    },
    "TensorValue": {
        1: ("floats", "RepeatedNumbers"),
        2: ("ints", "RepeatedNumbers"),
        3: ("bools", "RepeatedNumbers"),
        4: ("strings", "RepeatedStrings"),
        5: ("longInts", "RepeatedNumbers"),
        6: ("doubles", "RepeatedNumbers"),
        7: ("bytes", "RepeatedBytes"),
    },
    "RepeatedNumbers": {1: ("values", "number")},
    "RepeatedStrings": {1: ("values", "text")},
    "RepeatedBytes": {1: ("values", "bytes")},
    "TupleValue": {1: ("values", "Value")},
    "ListValue": {1: ("values", "Value")},
    "DictionaryValue": {1: ("values", "KeyValuePair")},
    "KeyValuePair": {1: ("key", "Value"), 2: ("value", "Value")},
    "BlobFileValue": {1: ("fileName", "text"), 2: ("offset", "number")},
    "Block": {
        1: ("inputs", "NamedValueType"),
        2: ("outputs", "text"),
        3: ("operations", "Operation"),
        4: ("attributes", "ValueEntry"),
    },
    "Operation": {
        1: ("type", "text"),
        2: ("inputs", "InputsEntry"),
        3: ("outputs", "NamedValueType"),
        5: ("attributes", "ValueEntry"),
    },
    "InputsEntry": {**_ENTRY, 2: ("value", "Argument")},
    "Argument": {1: ("arguments", "Binding")},
    "Binding": {1: ("name", "text"), 2: ("value", "Value")},
}
"""Model.proto and MIL.proto of coremltools 9, as far as edgeloop's packages use them."""
REPEATED = frozenset(
    {
        "input", "output", "state", "functions", "shape", "userDefined", "attributes", "inputs",
        "block_specializations", "dimensions", "types", "values", "outputs", "operations", "arguments",
    }
)  # fmt: skip
_ITEMS = ("model.mlmodel", "weights")
"""The two entries of a package's list, by the ends of their paths."""
WEIGHTS = "@model_path/weights/weight.bin"
_SHORT = frozenset({"edgeloop.version", "edgeloop.quantization", "com.github.apple.coremltools.version"})
"""Metadata that the manifest does not have in the same words: a version, a scheme."""
_SENTINEL, _ALIGNED = 0xDEADBEEF, 64
_BITS = {1: 16, 2: 32, 3: 8, 4: 8, 8: 4, 11: 4, 14: 32}
"""Bits of an array's number, by its type: see runtime/engines/coreml/blobs.py."""


def repeats(kind: str, name: str) -> bool:
    """Return whether a message may have several of this field."""
    return name in REPEATED and kind != "RepeatedBytes"


def model(bundle: Bundle, ledger: Ledger) -> None:
    """Account for model.mlmodel: the program, and what a Swift host reads of the model."""
    data = bytes(ledger.data)
    try:
        root, read = _read(data)
    except ValueError as error:
        ledger.refuse(0, ledger.size, f"no Core ML model: {error}")
        return
    ledger.adopt(read)
    described = _described(bundle)
    for description in root.all("description"):
        for metadata in description.all("metadata"):
            for entry in metadata.all("userDefined"):
                _check_entry(ledger, data, entry, described)
            keys = Counter(entry.text(data, "key") for entry in metadata.all("userDefined"))
            for entry in metadata.all("userDefined"):
                if keys[key := entry.text(data, "key")] > 1:
                    ledger.refuse(
                        entry.start, entry.end, f"metadata {key[:40]}, which is there more than once"
                    )
    for value in _blob_values(root):
        if (name := value.text(data, "fileName")) != WEIGHTS:
            ledger.refuse(value.start, value.end, f"an array in {name!r}, wanted {WEIGHTS}")


@lru_cache(maxsize=1)
def _read(data: bytes) -> tuple[Message, Ledger]:
    """Return the program and the account of its bytes; cached, since two files need it."""
    ledger = Ledger("", data)
    return read_message(ledger, MESSAGES, "Model", repeats, lambda kind, name, found: ""), ledger


def _described(bundle: Bundle) -> dict[str, Any]:
    """Return what a Swift host reads in a package, by its keys, as manifest and heads have it."""
    manifest = bundle.manifest
    tokenizer = manifest.text.tokenizer
    parts = {
        "edgeloop.spec": specification(bundle.program),
        "edgeloop.package": manifest.targets["coreml"].details_as(Package),
        "edgeloop.tokenizer": {"sha256": manifest.files[tokenizer].sha256} if tokenizer else None,
    }
    texts = {key: msgspec.json.encode(value) for key, value in parts.items()}
    exits = exit_metadata(read_heads(bundle), manifest.exits)
    return {key: msgspec.json.decode(text) for key, text in (texts | exits).items()}


def _check_entry(ledger: Ledger, data: bytes, entry: Message, described: Mapping[str, Any]) -> None:
    """Refuse an entry unless it is short, or JSON that says exactly what is ``described``."""
    key, found = entry.text(data, "key"), entry.values.get("value", [])
    value = data[found[-1].value : found[-1].end] if found else b""
    if key in described:
        try:
            said = msgspec.json.decode(value)
            plain = msgspec.json.encode(said)
        except (ValueError, RecursionError):
            said, plain = None, b""
        if plain != value:
            ledger.refuse(entry.start, entry.end, f"metadata {key} that is not JSON as edgeloop writes it")
        elif said != described[key]:
            ledger.refuse(entry.start, entry.end, f"metadata {key} that is not what the manifest says")
    elif key not in _SHORT or len(value) > _ALIGNED:
        ledger.refuse(entry.start, entry.end, f"metadata {key[:40]} of {len(value)} bytes")


def _blob_values(message: Message) -> Iterator[Message]:
    stack = [message]
    while stack:
        found = stack.pop()
        if found.kind == "BlobFileValue":
            yield found
        stack += [inner for each in found.inner.values() for inner in each]


def weights(bundle: Bundle, ledger: Ledger) -> None:
    """Account for weight.bin: a header, and the arrays that the program names, each behind a header of its own."""
    target = bundle.manifest.targets["coreml"]
    data = bundle.path(target.graphs["model"]).read_bytes()
    try:
        root, _ = _read(data)
        wanted = {_offset(data, value.values.get("offset", [])) for value in _blob_values(root)}
    except ValueError as error:
        ledger.refuse(0, ledger.size, f"arrays of a program that cannot be read: {error}")
        return
    ledger.take(0, 8, "header")
    ledger.padding(8, _ALIGNED)
    if _word(ledger, 0, 4) != len(wanted):
        ledger.refuse(0, 4, f"a count of {_word(ledger, 0, 4)} arrays, the program names {len(wanted)}")
    for at in sorted(wanted):
        size, start = _word(ledger, at + 8, 8), _word(ledger, at + 16, 8)
        kind = _word(ledger, at + 4, 4)
        if _word(ledger, at, 4) != _SENTINEL or kind not in _BITS or start + size > ledger.size:
            ledger.refuse(at, at + _ALIGNED, "no array, where the program names one")
            continue
        ledger.take(at, at + 32, "header")
        ledger.padding(at + 32, at + _ALIGNED)
        ledger.take(start, start + size, "tensors")
    for start, end in ledger.gaps():
        if end - start < _ALIGNED:
            ledger.padding(start, end)


def listing(bundle: Bundle, ledger: Ledger) -> None:
    """Account for the package's own Manifest.json: two files, by their ids."""
    data = bytes(ledger.data)
    try:
        found: dict[str, Any] = json.loads(data)
        items = found["itemInfoEntries"]
        folder = ledger.file.rpartition("/")[0]
        closed = set(found) == {"fileFormatVersion", "itemInfoEntries", "rootModelIdentifier"} and all(
            set(item) == {"author", "description", "name", "path"} and len(str(item)) < 4 * _ALIGNED
            for item in items.values()
        )
        paths = sorted(f"{folder}/Data/{item['path']}" for item in items.values())
        inside = len(items) == len(_ITEMS) and all(
            path.endswith(f"/{name}") and any(file.startswith(path) for file in bundle.manifest.files)
            for path, name in zip(paths, _ITEMS, strict=True)
        )
        plain = json.dumps(found, indent=4)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        ledger.refuse(0, len(data), "no list of a package")
        return
    if not closed or not inside or data.strip() != plain.encode() or len(data) > len(plain) + 1:
        ledger.refuse(0, len(data), "a package's list with more in it than its files")
    ledger.take(0, len(data), "list of files")


def _offset(data: bytes, found: list[Field]) -> int:
    return varint(data, found[-1].value)[0] if found else 0


def _word(ledger: Ledger, at: int, size: int) -> int:
    return int.from_bytes(ledger.data[at : at + size], "little")
