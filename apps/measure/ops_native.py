"""Operators of engine native: the nodes that its stages are made of, by the engine's own counters.

A node's time is that of the thread that it took longest; nodes are laid end to end within their call, in the order in
which they run, and what threads wait for each other is between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...runtime.bundle.folder import Bundle
from ...runtime.engines.native.engine import NativeBackend
from ...runtime.engines.native.node_costs import HEAD, NodeCost
from ...runtime.engines.table import EngineOptions
from ...runtime.errors import EngineError
from .calls import StageCall
from .operators import Operator, layers_of


def open_native(bundle: Bundle, options: EngineOptions, folder: Path) -> NativeBackend:
    """Open the engine."""
    return NativeBackend.open(bundle, options.threads, options.kv_bits, options.cpus)


def begin_native(backend: NativeBackend) -> None:
    """Let it count from now on."""
    backend.count_nodes()


def native_operators(backend: NativeBackend, calls: Sequence[StageCall], folder: Path) -> list[Operator]:
    """Return the operators of ``calls``, which are all that came since ``begin_native``. EngineError where they are
    not."""
    passes: dict[int, list[NodeCost]] = {}
    for node in backend.node_costs():
        passes.setdefault(node.call, []).append(node)
    found, number = list[Operator](), 0
    for place, call in enumerate(calls):
        number += 1
        stage = backend.program.stage(call.stage, call.depth or 0)
        at = _laid(found, place, passes.pop(number, []), 0.0, len(stage.layers))
        behind = passes.get(number + 1)
        if call.stage == "epilogue" and behind and behind[0].role == HEAD:
            number += 1
            _laid(found, place, passes.pop(number), at, 0)
    if passes:
        raise EngineError(
            f"{len(passes)} passes of engine native belong to no call; this is a bug, please report it"
        )
    return found


def _laid(found: list[Operator], place: int, nodes: list[NodeCost], at: float, layers: int) -> float:
    """Add ``nodes`` behind each other from microsecond ``at`` on; return where they end."""
    layer_of = layers_of([node.name == "norm" for node in nodes], layers)
    for node, layer in zip(nodes, layer_of, strict=True):
        kind = f"{node.name} to {node.outputs}" if node.name == "linear" else node.name
        found.append(Operator(place, kind, at, node.us, layer))
        at += node.us
    return at
