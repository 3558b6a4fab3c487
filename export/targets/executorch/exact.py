"""The same program with exact activations: its own graphs, codes and scales, and nothing rounded to int8.

The effect of int8 activations on a correct program differs from one processor to the next, by whole steps of the
rounding, so that only a loose bound is possible. Float arithmetic agrees to 1e-4 everywhere. So each delegate is taken
as it was serialized, the very bytes that are in the .pte: where it converts an activation to int8 it copies it, and a
matrix is the floats that its codes and scales stand for. A wrong scale, swapped rows or a delta of another depth are in
those bytes and stay wrong. Nothing is lowered a second time, which is what takes the time of an export; memory and disk
are those of an export with ``--quant none``.

What is not checked this way is XNNPACK's int8 kernels themselves: that is left to a bound (``export/bounds.py``).
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from executorch.backends.xnnpack.serialization.xnnpack_graph_serialize import (
    CONSTANT_TENSOR_ALIGNMENT,
    XNNHeader,
    _get_schema_bytes,
)
from executorch.exir import EdgeProgramManager
from executorch.exir._serialize._flatbuffer import _flatc_compile, _flatc_decompile
from executorch.exir._serialize._named_data_store import NamedDataStore
from executorch.exir.lowered_backend_module import LoweredBackendModule, get_lowered_backend_modules

from ....runtime.engines.backend import F32
from ....runtime.errors import ExportError
from ....runtime.model.codec import around_zero, from_bfloat16, scaled

EXACT_PROGRAM = "exact.scratch"
"""The temporary file that it is written to."""
NAMED = 2**64 - 1
"""The offset of a constant that is found by its key."""
Graph = dict[str, Any]
Made = dict[tuple[str, str], tuple[str, bytes]]
"""(key of the codes, key of the scales) → (key, bytes) of the floats: once for all methods."""


def exact_activations(edge: EdgeProgramManager) -> EdgeProgramManager:
    """Change the delegates of ``edge``, which must have been serialized already, in place, and return it."""
    made: Made = {}
    programs = {name: edge.exported_program(name) for name in sorted(edge.methods)}
    for program in programs.values():
        for delegate in get_lowered_backend_modules(program.graph_module):
            _exact_delegate(delegate, made)
    return EdgeProgramManager(
        programs, constant_methods=edge._config_methods, compile_config=edge.compile_config
    )


def _exact_delegate(delegate: LoweredBackendModule, made: Made) -> None:
    stored = delegate.named_data_store_output
    entries = {**stored.pte_data}
    for beside in stored.external_data.values():
        entries |= beside
    data = {key: bytes(stored.buffers[entry.buffer_index]) for key, entry in entries.items()}
    graph, constants = read_graph(delegate.processed_bytes)
    _exact_graph(graph, data, made)
    store = NamedDataStore()
    for key in sorted({c["named_key"] for c in graph["constant_data"] if c["named_key"]}):
        store.add_named_data(key, data[key], CONSTANT_TENSOR_ALIGNMENT)
    delegate._processed_bytes = write_graph(graph, constants)
    delegate._named_data_store_output = store.get_named_data_store_output()


def _exact_graph(graph: Graph, data: dict[str, bytes], made: Made) -> None:
    """Change a delegate's graph in place. ``data``: constants by key, to which those of floats are added."""
    for node in graph["xnodes"]:
        if node["xnode_union_type"] == "XNNConvert":
            node["xnode_union_type"] = "XNNCopy"
    constants = graph["constant_data"]
    for value in graph["xvalues"]:
        if value["xvalue_union_type"] != "XNNQuantizedTensorValue":
            continue
        quantized = value["xvalue_union"]
        tensor, scheme = quantized["tensor_value"], quantized["quant_params_type"]
        value |= {"xvalue_union_type": "XNNTensorValue", "xvalue_union": tensor}
        datatype, tensor["datatype"] = tensor["datatype"], "xnn_datatype_fp32"
        if scheme == "PerTokenDynamicQuant":
            continue
        if datatype not in _CODES:
            raise ExportError(
                f"the program has a matrix of {datatype}, which parity knows no floats for; this version of "
                "executorch lowers in another way"
            )
        place, scales = tensor["constant_buffer_idx"], quantized["quant_params"]["scale_buffer_idx"]
        keys = constants[place]["named_key"], constants[scales]["named_key"]
        if keys not in made:
            floats = _CODES[datatype](data[keys[0]], data[keys[1]], tensor["dims"][0]).tobytes()
            made[keys] = f"exact_{hashlib.sha256(floats).hexdigest()}", floats
        key, floats = made[keys]
        data[key] = floats
        # A constant of its own: the codes may be those of another value too, with other scales.
        tensor["constant_buffer_idx"] = len(constants)
        constants.append({"offset": NAMED, "size": len(floats), "named_key": key})
    used = {v["xvalue_union"]["constant_buffer_idx"] for v in graph["xvalues"]}
    for i, constant in enumerate(constants):
        if i not in used and constant["named_key"]:
            constants[i] = {"offset": 0, "size": 0, "named_key": ""}


def _int4(codes: bytes, scales: bytes, rows: int) -> F32:
    """Return the values of two codes a byte with an offset, and bfloat16 scales of groups."""
    stored = np.frombuffer(codes, np.uint8).reshape(rows, -1)
    return scaled(around_zero(stored, 4), from_bfloat16(np.frombuffer(scales, np.uint16)).reshape(rows, -1))


def _int8(codes: bytes, scales: bytes, rows: int) -> F32:
    """Return the values of a code a byte without an offset, and a float32 scale a row."""
    return scaled(
        np.frombuffer(codes, np.int8).reshape(rows, -1), np.frombuffer(scales, np.float32).reshape(rows, -1)
    )


_CODES = {"xnn_datatype_qbint4": _int4, "xnn_datatype_qcint8": _int8}


def read_graph(delegate: bytes) -> tuple[Graph, bytes]:
    """Return the graph of a serialized delegate, as its schema names things, and its constants without a key."""
    header = XNNHeader.from_bytes(delegate[: XNNHeader.EXPECTED_LENGTH])
    at, constants = header.flatbuffer_offset, header.constant_data_offset
    with tempfile.TemporaryDirectory() as folder:
        schema, binary = Path(folder) / "schema.fbs", Path(folder) / "graph.bin"
        schema.write_bytes(_get_schema_bytes())
        binary.write_bytes(delegate[at : at + header.flatbuffer_size])
        _flatc_decompile(folder, str(schema), str(binary))
        graph: Graph = json.loads(binary.with_suffix(".json").read_bytes())
    return graph, delegate[constants : constants + header.constant_data_size]


def write_graph(graph: Mapping[str, Any], constants: bytes) -> bytes:
    """Return the delegate of a graph; the inverse of ``read_graph``."""
    with tempfile.TemporaryDirectory() as folder:
        schema, text = Path(folder) / "schema.fbs", Path(folder) / "graph.json"
        schema.write_bytes(_get_schema_bytes())
        text.write_text(json.dumps(graph), encoding="utf-8")
        _flatc_compile(folder, str(schema), str(text))
        binary = text.with_suffix(".bin").read_bytes()
    start, padded = _aligned(XNNHeader.EXPECTED_LENGTH), _aligned(len(binary))
    header: bytes = XNNHeader(start, len(binary), start + padded, len(constants)).to_bytes()
    return header.ljust(start, b"\0") + binary.ljust(padded, b"\0") + constants


def _aligned(size: int) -> int:
    aligned: int = -size % CONSTANT_TENSOR_ALIGNMENT + size
    return aligned
