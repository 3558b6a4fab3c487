"""Methods become one .pte: exported, partitioned to XNNPACK and serialized together, so that weights are stored
once."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator

import torch
from executorch.backends.xnnpack import xnnpack_preprocess
from executorch.backends.xnnpack._passes import XNNPACKPassManager, XNNPACKRemoveCloneOpsTransform
from executorch.backends.xnnpack._passes.convert_to_linear import ConvertToLinearPass
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import (
    EdgeCompileConfig,
    EdgeProgramManager,
    ExecutorchBackendConfig,
    ExecutorchProgramManager,
    to_edge_transform_and_lower,
)
from executorch.exir.passes import MemoryPlanningPass

from ....runtime.errors import ExportError
from ...quiet import quiet
from .methods import Methods

# Of XNNPACK's 17 passes. The others look for convolutions, batch norms, channels-last tensors and the like, which
# there are none of here, and each rewrites the whole graph: with them lowering takes twice as long.
PASSES = [XNNPACKRemoveCloneOpsTransform, ConvertToLinearPass]
DELEGATE = "executorch_call_delegate"
Step = Callable[[str], None]


def lower(methods: Methods, step: Step) -> EdgeProgramManager:
    """Lower every method to one XNNPACK delegate; ``step`` is called with the progress.

    ExportError when XNNPACK left an operator of a method out: it would run on slow portable kernels, if at all.
    """
    programs = {}
    with torch.no_grad(), quiet(), undisturbed():
        for name, module in methods.items():
            step(name)
            inputs, free = module.example()
            first, *rest = free
            shapes = (first, tuple(rest)) if rest else (first,)
            programs[name] = torch.export.export(module.eval(), inputs, dynamic_shapes=shapes)
        step("XNNPACK")
        with few_passes():
            edge = to_edge_transform_and_lower(
                programs,
                partitioner=[XnnpackPartitioner()],
                compile_config=EdgeCompileConfig(_check_ir_validity=False),
            )
    for name in methods:
        left = outside(edge, name)
        if left != [DELEGATE]:
            raise ExportError(
                f"XNNPACK did not take the whole method {name}, but left {', '.join(left)}; "
                "please report the checkpoint's config"
            )
    return edge


def outside(edge: EdgeProgramManager, name: str) -> list[str]:
    """Return what a method calls: delegates, and operators outside of them."""
    nodes = edge.exported_program(name).graph_module.graph.nodes
    called = [node.target for node in nodes if node.op == "call_function"]
    return [getattr(t, "__name__", str(t)) for t in called if getattr(t, "__name__", "") != "getitem"]


def serialize(edge: EdgeProgramManager) -> ExecutorchProgramManager:
    """Return the .pte, and what was split from it. Inputs and outputs have no memory: the host's is used in place."""
    plan = MemoryPlanningPass(alloc_graph_input=False, alloc_graph_output=False)
    with quiet():
        return edge.to_executorch(ExecutorchBackendConfig(memory_planning_pass=plan))


@contextlib.contextmanager
def few_passes() -> Iterator[None]:
    """Run only ``PASSES`` of XNNPACK's preprocessing within the block; it has no option for that."""

    class ReducedPasses(XNNPACKPassManager):  # type: ignore[misc]  # it has no types
        def __init__(self, program: torch.export.ExportedProgram, passes: object = None) -> None:
            super().__init__(program, PASSES)

    xnnpack_preprocess.XNNPACKPassManager = ReducedPasses
    try:
        yield
    finally:
        xnnpack_preprocess.XNNPACKPassManager = XNNPACKPassManager


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Switch off garbage collection within the block: it walks millions of graph nodes, a quarter of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
