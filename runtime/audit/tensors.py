"""A safetensors file: its header, the tensors that the model has, and nothing between, in or behind them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np

from ..bundle import Bundle
from ..heads import head_shapes, probe_shapes
from ..spec import Spec
from ..weights import matrix_shapes, small_shapes
from .ledger import Ledger

_BYTES = {"F32": 4, "F16": 2, "U8": 1}
"""Types that a bundle stores."""


def weights(bundle: Bundle, ledger: Ledger) -> None:
    """The weights of the model: ``spec`` says which tensors they are."""
    found = _tensors(ledger, _model_names(bundle.spec))
    group = bundle.manifest.quantization.group_size
    for name, (_, columns) in matrix_shapes(bundle.spec).items():
        if f"{name}.codes" in found and group and columns % group:
            _check_filling(ledger, f"{name}.codes", *found[f"{name}.codes"], group, columns % group)


def heads(bundle: Bundle, ledger: Ledger) -> None:
    """The heads that the host computes."""
    _tensors(ledger, {*head_shapes(bundle.spec), *probe_shapes(bundle.spec)})


def _model_names(spec: Spec) -> set[str]:
    matrices = {f"{name}.{part}" for name in matrix_shapes(spec) for part in ("weight", "codes", "scales")}
    return matrices | set(small_shapes(spec))


def _tensors(ledger: Ledger, wanted: set[str]) -> dict[str, tuple[int, int, list[int]]]:
    """Account for every tensor; where each one that is wanted begins and ends, and its shape."""
    data = ledger.data
    end = 8 + int.from_bytes(data[:8], "little")
    text = bytes(data[8:end])
    try:
        header: Mapping[str, Any] = json.JSONDecoder().raw_decode(text.decode())[0]
        plain = json.dumps(header, separators=(",", ":"), ensure_ascii=not any(b > 127 for b in text))
        places = {name: _place(entry) for name, entry in header.items() if name != "__metadata__"}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        ledger.refuse(0, ledger.size, "a header that cannot be read")
        return {}
    ledger.take(0, 8, "header")
    written = len(plain.encode())
    if text[:written] != plain.encode():
        ledger.refuse(8, end, "a header with more in it than its tensors: repeated names, or blanks")
    elif text[written:].strip(b" "):
        ledger.refuse(8 + written, end, "a header with something behind its end")
    ledger.take(8, 8 + written, "header")
    ledger.take(8 + written, end, "padding")
    if "__metadata__" in header:
        at = 8 + text.find(b'"__metadata__"')
        ledger.refuse(at, at + len(json.dumps(header["__metadata__"])), "metadata of the header")
    found = {}
    for name, (first, last, shape, kind) in places.items():
        start, stop = end + first, end + last
        if name not in wanted:
            ledger.refuse(start, stop, f"tensor {name}, which the model does not have")
        elif kind not in _BYTES or last - first != prod(shape) * _BYTES[kind]:
            ledger.refuse(start, stop, f"tensor {name}, whose {kind} {shape} is not {last - first} bytes")
        else:
            ledger.take(start, stop, "tensors")
            found[name] = (start, stop, shape)
    return found


def _place(entry: Mapping[str, Any]) -> tuple[int, int, list[int], str]:
    first, last = map(int, entry["data_offsets"])
    return first, last, [int(size) for size in entry["shape"]], str(entry["dtype"])


def _check_filling(
    ledger: Ledger, name: str, start: int, stop: int, shape: list[int], group: int, used: int
) -> None:
    """The last group of a row [groups, bytes] has room behind its ``used`` columns: codes of zero, all of them."""
    codes = np.frombuffer(ledger.data[start:stop], np.uint8).reshape(shape)[:, -1]
    packed = shape[-1] < group
    values = np.stack((codes & 15, codes >> 4), -1).reshape(len(codes), -1) if packed else codes
    if (values[:, used:] != (8 if packed else 128)).any():
        ledger.refuse(start, stop, f"tensor {name} has values behind its last column")
