"""What a package tells a Swift host of exits, and how that is changed in a package that was written before.

``model.mlmodel`` is a protobuf: Model.description (2), its metadata (100), a map of texts in that (100). Those few
fields are replaced in the bytes; everything else stays as it is, and neither coremltools nor a Mac is wanted.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator, Mapping

import msgspec
import numpy as np
import numpy.typing as npt

from ...runtime.errors import BundleError
from ...runtime.manifest import Exit

EXITS = "edgeloop.exits"
_PATH = (2, 100)
_ENTRIES = 100
_FIXED = {1: 8, 5: 4}
"""Bytes of a value, by the wire types that have a fixed number of them."""


def exit_metadata(heads: Mapping[str, npt.NDArray[np.float32]], exits: Mapping[str, Exit]) -> dict[str, str]:
    """The calibrated rules, and the heads that rules read: float32 numbers, little-endian, in base64."""
    arrays = {
        name: {
            "shape": list(array.shape),
            "data": b64encode(np.ascontiguousarray(array, "<f4").tobytes()).decode(),
        }
        for name, array in heads.items()
    }
    rules = {name: {"thresholds": rule.thresholds, "missing": rule.missing} for name, rule in exits.items()}
    return {EXITS: msgspec.json.encode({"rules": rules, "heads": arrays}).decode()}


def with_metadata(model: bytes, values: Mapping[str, str]) -> bytes:
    """The bytes of a model.mlmodel with ``values`` in its metadata, in the place of others under those names.

    BundleError when they are no model that edgeloop wrote.
    """
    return _patched(model, _PATH, values)


def _patched(message: bytes, path: tuple[int, ...], values: Mapping[str, str]) -> bytes:
    if not path:
        kept = [
            raw
            for number, raw, payload in _fields(message)
            if number != _ENTRIES or _text(payload, 1) not in values
        ]
        entries = [
            _field(_ENTRIES, _field(1, key.encode()) + _field(2, value.encode()))
            for key, value in values.items()
        ]
        return b"".join(kept + entries)
    fields = list(_fields(message))
    if sum(number == path[0] for number, _, _ in fields) != 1:
        raise _damaged()
    return b"".join(
        _field(number, _patched(payload, path[1:], values)) if number == path[0] else raw
        for number, raw, payload in fields
    )


def _fields(message: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """(number, the field's bytes, the bytes of its value) of each field."""
    at = 0
    while at < len(message):
        tag, start = _varint(message, at)
        wire = tag & 7
        if wire == 0:
            _, end = _varint(message, start)
        elif wire == 2:
            length, start = _varint(message, start)
            end = start + length
        elif wire in _FIXED:
            end = start + _FIXED[wire]
        else:
            raise _damaged()
        if end > len(message):
            raise _damaged()
        yield tag >> 3, message[at:end], message[start:end]
        at = end


def _text(message: bytes, number: int) -> str:
    """The text in the field ``number``; empty where it is not there."""
    return next((payload.decode() for n, _, payload in _fields(message) if n == number), "")


def _field(number: int, payload: bytes) -> bytes:
    return _number(number << 3 | 2) + _number(len(payload)) + payload


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """(the number at ``at``, where it ends)."""
    value = 0
    for shift in range(0, 64, 7):
        if at >= len(message):
            break
        byte = message[at]
        value |= (byte & 127) << shift
        at += 1
        if byte < 128:
            return value, at
    raise _damaged()


def _number(value: int) -> bytes:
    parts = []
    while value >= 128:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])


def _damaged() -> BundleError:
    return BundleError("the Core ML package's model.mlmodel cannot be read; export the checkpoint again")
