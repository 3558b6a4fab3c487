"""Operators of engine onnx, from ONNX Runtime's own profile of each graph."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from ...runtime.bundle.folder import Bundle
from ...runtime.engines.onnx.engine import OnnxBackend, graph_name
from ...runtime.engines.table import EngineOptions
from ...runtime.errors import EngineError
from .calls import StageCall
from .operators import Operator, layers_of

NORMS = (
    "SimplifiedLayerNormalization",
    "SkipSimplifiedLayerNormalization",
    "LayerNormalization",
    "SkipLayerNormalization",
)
"""Kinds of which every layer has as many; a layer begins with one."""


def open_onnx(bundle: Bundle, options: EngineOptions, folder: Path) -> OnnxBackend:
    """Open the engine with profiles of its graphs, which go into ``folder``."""
    return OnnxBackend.open(bundle, options.threads, profiles=folder)


def onnx_operators(backend: OnnxBackend, calls: Sequence[StageCall], folder: Path) -> list[Operator]:
    """Return the operators of ``calls``, the last that there were; the profiles end.

    The runs of a graph are in the order of its calls. EngineError where they are not as many.
    """
    program, numbers = backend.program, defaultdict[str, list[int]](list)
    for number, call in enumerate(calls):
        block = program.loop.schedule[call.depth] if call.depth is not None else 0
        numbers[graph_name(call.stage, block)].append(number)
    found = []
    for name, path in backend.end_profiles().items():
        runs = (
            list(_runs(msgspec.json.decode(path.read_bytes())))[-len(numbers[name]) :]
            if numbers[name]
            else []
        )
        if len(runs) != len(numbers[name]):
            raise EngineError(
                f"ONNX Runtime's profile of {name} has {len(runs)} runs of {len(numbers[name])} calls"
            )
        for number, nodes in zip(numbers[name], runs, strict=True):
            call = calls[number]
            stage = program.stage(call.stage, call.depth or 0)
            layers = layers_of([kind in NORMS for kind, _, _ in nodes], len(stage.layers))
            found += [
                Operator(number, kind, begin, us, layer)
                for (kind, begin, us), layer in zip(nodes, layers, strict=True)
            ]
    return sorted(found, key=lambda one: (one.call, one.begin_us))


def _runs(events: list[dict[str, Any]]) -> Iterator[list[tuple[str, float, float]]]:
    """(kind, microseconds since the run began, microseconds) of the nodes of each run, in the order of time."""
    events = sorted(events, key=lambda event: event["ts"])
    nodes = [event for event in events if event["cat"] == "Node" and event["name"].endswith("_kernel_time")]
    place = 0
    for run in (event for event in events if event["cat"] == "Session" and event["name"] == "model_run"):
        begin, end = run["ts"], run["ts"] + run["dur"]
        while place < len(nodes) and nodes[place]["ts"] < begin:
            place += 1
        found = []
        while place < len(nodes) and nodes[place]["ts"] <= end:
            node = nodes[place]
            found.append((str(node["args"]["op_name"]), float(node["ts"] - begin), float(node["dur"])))
            place += 1
        yield found
