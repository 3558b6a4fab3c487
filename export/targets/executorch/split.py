"""Weights beside the program instead of in it: base.ptd, and deltas.ptd for all that differs between depths.

The program names weights by the hash of their content. So an app that gets new deltas gets deltas.ptd and the small
model.pte that names them; base.ptd, nearly all of the bytes, stays byte for byte what it was. With names instead of
hashes deltas.ptd alone would do, but XNNPACK's weight cache knows weights of all programs of a process by these keys:
two sets of deltas in one app would be taken for each other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from pathlib import Path

import torch
from executorch.exir import EdgeProgramManager, ExecutorchProgramManager

from ....runtime.engines.executorch.layout import BASE, DELTAS
from ...lower.xnnpack_weights import Delta, Numbers
from .methods import Methods


def delta_keys(methods: Methods) -> set[str]:
    """Return the keys under which XNNPACK's serializer stores deltas, and vectors that have a row for each depth."""
    keys = set()
    for method in methods.values():
        for module in method.modules():
            if isinstance(module, Delta) or (isinstance(module, Numbers) and module.differs):
                keys |= {
                    hashlib.sha256(t.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
                    for t in module.buffers()
                }
    return keys


def split_weights(edge: EdgeProgramManager, deltas: Collection[str]) -> EdgeProgramManager:
    """Return the same methods, their weights in files that are written when they are serialized."""
    # ``methods`` is a set, whose order is another in each process; that of the methods is that of the data.
    programs = {name: edge.exported_program(name) for name in sorted(edge.methods)}
    for program in programs.values():
        for delegate in program.graph_module.children():
            store = delegate.named_data_store_output
            for key, entry in store.pte_data.items():
                store.external_data.setdefault(DELTAS if key in deltas else BASE, {})[key] = entry
            store.pte_data.clear()
    return EdgeProgramManager(
        programs, compile_config=edge.compile_config
    )  # it collects what the delegates store


def write_data(program: ExecutorchProgramManager, folder: Path) -> tuple[str, ...]:
    """Write the files of split weights to ``folder``; return their names, none if nothing was split."""
    program.write_tensor_data_to_file(str(folder))
    return tuple(name for name in (BASE, DELTAS) if (folder / name).is_file())
