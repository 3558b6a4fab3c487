"""Accounts for a safetensors file: its header, the tensors that the model has, and nothing between, in or after
them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np

from ..bundle.folder import Bundle
from ..bundle.heads import head_shapes, probe_shapes
from ..model.codec import GroupSizes, around_zero, code_shape, group_size_of
from ..model.program import Program
from ..model.weights import tensors
from .ledger import Ledger

_BYTES = {"F32": 4, "F16": 2, "U8": 1}
"""The types that a bundle stores, and the bytes of a number."""
Shapes = Mapping[str, tuple[tuple[int | None, ...], ...]]
"""The shapes that each tensor may have, by its name; None is a size that the file may choose."""


def weights(bundle: Bundle, ledger: Ledger) -> None:
    """Account for the weights of the model: ``program`` says which tensors there are."""
    sizes = bundle.group_sizes
    found = _tensors(ledger, _model_shapes(bundle.program, sizes))
    for name, tensor in tensors(bundle.program.weights):
        stem, columns = name.removesuffix(".weight"), tensor.shape[-1]
        if tensor.kind != "matrix" or f"{stem}.codes" not in found:
            continue
        if (group := group_size_of(sizes, stem)) and columns % group:
            _check_filling(ledger, f"{stem}.codes", *found[f"{stem}.codes"], group, columns % group)


def heads(bundle: Bundle, ledger: Ledger) -> None:
    """Account for the heads that the host computes."""
    shapes = {**head_shapes(bundle.program), **probe_shapes(bundle.program)}
    _tensors(ledger, {name: (shape,) for name, shape in shapes.items()})


def _model_shapes(program: Program, group_sizes: GroupSizes) -> Shapes:
    found: dict[str, tuple[tuple[int, ...], ...]] = {}
    for name, tensor in tensors(program.weights):
        found[name] = (tensor.shape,)
        if tensor.kind == "matrix":
            rows, columns = tensor.shape
            stem = name.removesuffix(".weight")
            size = group_size_of(group_sizes, stem)
            codes = tuple(code_shape(rows, columns, size, bits) for bits in (8, 4))
            found |= {f"{stem}.codes": codes, f"{stem}.scales": (codes[0][:2],)}
    return found


def _tensors(ledger: Ledger, wanted: Shapes) -> dict[str, tuple[int, int, list[int]]]:
    """Account for every tensor; return (start, end, shape) of each one that is wanted."""
    data = ledger.data
    end = 8 + int.from_bytes(data[:8], "little")
    text = bytes(data[8:end])
    try:
        header: Mapping[str, Any] = json.JSONDecoder().raw_decode(text.decode())[0]
        plain = json.dumps(header, separators=(",", ":"), ensure_ascii=not any(b > 127 for b in text))
        places = {name: _place(entry) for name, entry in header.items() if name != "__metadata__"}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
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
        elif (kind == "U8") != name.endswith(".codes") or not any(_fits(shape, w) for w in wanted[name]):
            ledger.refuse(start, stop, f"tensor {name}, which is {kind} {shape} and not as the model has it")
        elif kind not in _BYTES or last - first != prod(shape) * _BYTES[kind]:
            ledger.refuse(start, stop, f"tensor {name}, whose {kind} {shape} is not {last - first} bytes")
        else:
            ledger.take(start, stop, "tensors")
            found[name] = (start, stop, shape)
    return found


def _fits(shape: list[int], wanted: tuple[int | None, ...]) -> bool:
    return len(shape) == len(wanted) and all(w in (None, n) for n, w in zip(shape, wanted, strict=True))


def _place(entry: Mapping[str, Any]) -> tuple[int, int, list[int], str]:
    first, last = map(int, entry["data_offsets"])
    return first, last, [int(size) for size in entry["shape"]], str(entry["dtype"])


def _check_filling(
    ledger: Ledger, name: str, start: int, stop: int, shape: list[int], group: int, used: int
) -> None:
    """Refuse the last group of a row [groups, bytes] unless the codes after its ``used`` columns are zero."""
    codes = np.frombuffer(ledger.data[start:stop], np.uint8).reshape(shape)[:, -1]
    if around_zero(codes, 8 * shape[-1] // group)[:, used:].any():
        ledger.refuse(start, stop, f"tensor {name} has values behind its last column")
