"""The flat model as one .pte, with the constants that ExecuTorch's stock LLM runner reads from a program."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import (
    EdgeCompileConfig,
    EdgeProgramManager,
    ExecutorchBackendConfig,
    to_edge_transform_and_lower,
)
from executorch.exir.lowered_backend_module import get_lowered_backend_modules
from executorch.runtime import Runtime

from ....runtime.engines.backend import F32
from ....runtime.engines.executorch.flat import Constant
from ....runtime.errors import ExportError
from ....runtime.model.program import Program
from ...quiet import quiet
from .flat import Flat
from .lower import few_passes, undisturbed

METHOD = "forward"
CHUNK = 64
"""Tokens of a prompt in one call at most: XNNPACK reserves memory for as many."""


def chunk_of(program: Program) -> int:
    """Return the most tokens of a call."""
    return min(CHUNK, program.context_length)


def rows_of(program: Program, chunk: int) -> int:
    """Return the rows of a cache: the context, or what a chunk's first and last token see between them."""
    window = program.window
    return program.context_length if window is None else min(program.context_length, window + chunk - 1)


def constants(program: Program, chunk: int) -> dict[str, Constant]:
    """Return the constants of extension/llm/runner/constants.h, methods without inputs; and get_n_layers, as its
    exporter has.

    A runner cuts prompts into pieces of get_max_seq_len, and with enable_dynamic_shape gives each in one call.
    """
    found: dict[str, Constant] = {
        "get_max_seq_len": chunk,
        "get_max_context_len": program.context_length,
        "get_vocab_size": program.vocab_size,
        "get_n_layers": program.applied_layers,
        "use_kv_cache": True,
        "use_sdpa_with_kv_cache": False,
        "enable_dynamic_shape": chunk > 1,
    }
    if program.bos_token_id is not None:
        found["get_bos_id"] = program.bos_token_id
    if program.eos_token_ids:
        found["get_eos_ids"] = program.eos_token_ids
    return found


def lower_flat(model: Flat, named: dict[str, Constant]) -> EdgeProgramManager:
    """Lower ``model`` to delegates between writes to caches. ExportError when XNNPACK left arithmetic of a layer
    out."""
    tokens, free = torch.zeros(1, min(model.chunk, 5), dtype=torch.long), None
    if model.chunk > 1:
        free = {1: torch.export.Dim("S", min=1, max=model.chunk)}
    with torch.no_grad(), quiet(), undisturbed():
        program = torch.export.export(
            model.eval(),
            (tokens, torch.zeros(1, dtype=torch.long)),
            dynamic_shapes=(free, None),
            prefer_deferred_runtime_asserts_over_guards=True,  # it cannot prove that S ≥ 1 suffices
        )
        with few_passes():
            edge = to_edge_transform_and_lower(
                {METHOD: program},
                partitioner=[XnnpackPartitioner()],
                compile_config=EdgeCompileConfig(_check_ir_validity=False),
                constant_methods={
                    name: list(value) if isinstance(value, tuple) else value for name, value in named.items()
                },
            )
        graph = edge.exported_program(METHOD).graph_module
        delegates, left = len(get_lowered_backend_modules(graph)), heavy(graph)
        # One between two layers' writes, one before the first, and some for rotations and masks.
        if left or delegates > model.layers + EXTRA_DELEGATES:
            raise ExportError(
                f"XNNPACK took the model in {delegates} pieces for {model.layers} layers and left "
                f"{', '.join(left) or 'nothing'}; please report the checkpoint's config"
            )
        return edge


def serialize_flat(edge: EdgeProgramManager) -> bytes:
    """Return the .pte; caches are written in place."""
    with quiet():
        return bytes(edge.to_executorch(ExecutorchBackendConfig(run_reinplace_pass=True)).buffer)


EXTRA_DELEGATES = 4
_HEAVY = ("linear", "mm", "bmm", "addmm", "_softmax", "sigmoid", "permute_copy", "rsqrt")


def heavy(graph: torch.fx.GraphModule) -> list[str]:
    """Return the operators outside of delegates that belong into them."""
    called = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    return sorted({name for name in called if any(f".{word}." in name for word in _HEAVY)})


class FlatProgram:
    """A saved flat .pte on the wheel's own runtime."""

    def __init__(self, path: Path) -> None:
        with quiet():
            self._program = Runtime.get().load_program(path)
        self.names = sorted(self._program.method_names)
        self._forward = self._program.load_method(METHOD)

    def constant(self, name: str) -> list[object]:
        """Return the outputs of a method without inputs."""
        return list(self._program.load_method(name).execute([]))

    def logits(self, ids: Sequence[int], start: int) -> F32:
        """Return the logits [V] of the last of the tokens ``ids`` from position ``start`` on."""
        tokens = torch.tensor([list(ids)], dtype=torch.long)
        (out,) = self._forward.execute([tokens, torch.tensor([start])])
        found: F32 = np.array(out[0].numpy(), np.float32)
        return found
