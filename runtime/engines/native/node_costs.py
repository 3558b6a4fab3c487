"""What the nodes cost that a stage of the lane engine is made of: the library writes it down, for benchmarks."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from . import library as interface

HEAD = 4
"""The role of what follows on an epilogue."""


@dataclass(frozen=True)
class NodeCost:
    """A node in call number ``call``, from 1 (a head is a call of its own), of a stage of ``role`` (edgeloop.h).

    ``outputs``: numbers that it gives for each row. ``us``: microseconds of the thread that it took longest.
    """

    call: int
    role: int
    name: str
    outputs: int
    us: float


def count_nodes(model: int) -> None:
    """Let the library write down what nodes of the model at that address cost, from now on."""
    interface.Calls()("el_profile", model, 1)


def read_nodes(model: int) -> list[NodeCost]:
    """Return what was written down since ``count_nodes``, in the order in which it ran; UsageError without."""
    calls, count = interface.Calls(), ctypes.c_uint64()
    calls("el_profile_read", model, None, 0, ctypes.byref(count))
    nodes = (interface.NodeTime * count.value)()
    calls("el_profile_read", model, nodes, count.value, ctypes.byref(count))
    names: dict[int, str] = {}
    for kind in {node.kind for node in nodes}:
        names[kind] = calls.functions.el_node_name(kind).decode()
    return [NodeCost(n.call, n.role, names[n.kind], n.outputs, n.nanoseconds / 1000) for n in nodes]
