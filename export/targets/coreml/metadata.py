"""Changes what a package tells a Swift host, in a package that was written before.

``model.mlmodel`` is a protobuf: Model.description (2), its metadata (100), a map of texts in that (100). Those few
fields are replaced in the bytes; everything else stays as it is, and neither coremltools nor a Mac is needed.
"""

from __future__ import annotations

from collections.abc import Mapping

from ....runtime.errors import BundleError
from ....runtime.protobuf import TEXT, field, fields

_PATH = (2, 100)
_ENTRIES = 100


def with_metadata(model: bytes, values: Mapping[str, str]) -> bytes:
    """Return the bytes of a model.mlmodel with ``values`` in its metadata, replacing others under those names.

    BundleError when it is no model that edgeloop wrote.
    """
    try:
        return _patched(model, _PATH, values)
    except ValueError as error:
        raise BundleError(
            "the Core ML package's model.mlmodel cannot be read; export the checkpoint again"
        ) from error


def _patched(message: bytes, path: tuple[int, ...], values: Mapping[str, str]) -> bytes:
    if not path:
        kept = [
            message[found.start : found.end]
            for found in fields(message)
            if found.number != _ENTRIES or _text(message[found.value : found.end], 1) not in values
        ]
        entries = [
            field(_ENTRIES, field(1, key.encode()) + field(2, value.encode()))
            for key, value in values.items()
        ]
        return b"".join(kept + entries)
    found = list(fields(message))
    if sum(each.number == path[0] and each.wire == TEXT for each in found) != 1:
        raise ValueError(f"not one field {path[0]}")
    return b"".join(
        field(each.number, _patched(message[each.value : each.end], path[1:], values))
        if each.number == path[0]
        else message[each.start : each.end]
        for each in found
    )


def _text(message: bytes, number: int) -> str:
    """Return the text in the field ``number``; empty where it is not there."""
    return next((message[f.value : f.end].decode() for f in fields(message) if f.number == number), "")
