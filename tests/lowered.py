"""One stage of ops, lowered alone: run by onnxruntime, and by the reference engine's ops lane by lane."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch

from edgeloop.export.lower.exact import with_float_activations
from edgeloop.export.lower.graph import Graph, Stored
from edgeloop.export.lower.onnx import check, write_ops
from edgeloop.export.weights import WeightsWriter
from edgeloop.quant.pack import quantize
from edgeloop.runtime.engines.backend import Lanes
from edgeloop.runtime.engines.kv import rows_kept
from edgeloop.runtime.engines.onnx.session import open_session, use_threads
from edgeloop.runtime.engines.packed import PackedLanes
from edgeloop.runtime.engines.reference.lane import Lane, Slot
from edgeloop.runtime.engines.reference.ops import run
from edgeloop.runtime.model.ops import Attend, Op
from edgeloop.runtime.model.program import Carry, Loop, Program, Stage
from edgeloop.runtime.model.rotary import cos_sin
from edgeloop.runtime.model.stored import StoredWeights
from edgeloop.runtime.model.weights import Weight, tensors


def random_weights(
    weights: Mapping[str, Weight], bits: int = 32, group_size: int = 16
) -> dict[str, np.ndarray]:
    """Tensors as a recipe stores them."""
    random, found = np.random.default_rng(3), dict[str, np.ndarray]()
    for name, tensor in tensors(weights):
        value = random.standard_normal(tensor.shape).astype(np.float32)
        if tensor.kind == "matrix" and bits < 32:
            packed = quantize(torch.from_numpy(value), bits, group_size)
            found[name.replace(".weight", ".codes")] = packed.codes
            found[name.replace(".weight", ".scales")] = packed.scales
        else:
            found[name] = value.astype(np.float16) if tensor.kind == "delta" else value
    return found


def write(found: Mapping[str, np.ndarray], folder: Path) -> Path:
    """The file of the tensors; without gaps, each aligned."""
    file = folder / "w.safetensors"
    with WeightsWriter(file, len(found) + 1) as writer:
        for name, value in sorted(found.items(), key=lambda item: -item[1].itemsize):
            writer.add(name, value)
    return file


VOCAB, CONTEXT, CAPACITY = 20, 64, 16
DEPTH, CACHED, TOKENS = (2, 0, 1), (4, 0, 2), (3, 2, 1)
"""Three lanes of up to three tokens, some padded, each at another depth and behind other tokens."""


@dataclass(frozen=True)
class Model:
    """A program whose block is ``ops`` from ``sizes`` (its carries) to ``outputs``, with random weights."""

    program: Program
    found: Mapping[str, np.ndarray]
    group_size: int

    @staticmethod
    def of(
        ops: Iterable[Op],
        sizes: Mapping[str, int],
        outputs: Iterable[str],
        bits: int = 32,
        group_size: int = 16,
        **weights: Weight,
    ) -> Model:
        found = random_weights(weights, bits, group_size)
        nothing = Stage(tuple(sizes), (), tuple(sizes))
        block = Stage(tuple(sizes), tuple(ops), tuple(outputs))
        carries = tuple(Carry(name, size) for name, size in sizes.items())
        program = Program(
            family="test", vocab_size=VOCAB, context_length=CONTEXT, prologue=Stage(("ids",), (), ()),
            loop=Loop(carries, (block,), (0, 0, 0)), epilogue=nothing, head=nothing, weights=dict(weights),
        )  # fmt: skip
        check(program)
        return Model(program, found, group_size)

    def graph(self, folder: Path, packed: bool = False, shared: bool = False) -> Path:
        """The block as a graph whose outputs are its values, with float activations."""
        stored = Stored.open(write(self.found, folder), self.group_size)
        graph = Graph(self.program, stored, packed)
        stage = self.program.loop.blocks[0]
        values = write_ops(graph, stage, shared)
        rows = {name: values[name] for name in stage.outputs}
        lead = ("N", 1) if packed else ("B", "S")
        model = graph.model({n: (r.value, (*lead, r.size)) for n, r in rows.items()})
        ir.save(model, folder / "block.onnx")
        return with_float_activations(folder / "block.onnx")

    def reference(
        self,
        x: Mapping[str, np.ndarray],
        lanes: Lanes,
        caches: list[list[np.ndarray]],
        first: int | None = None,
    ) -> list[list[np.ndarray]]:
        """The outputs of the valid rows of each lane; new rows go into ``caches``, [K, V] of each."""
        stage, found = self.program.loop.blocks[0], []
        weights = StoredWeights(self.program.weights, self.found, self.group_size)
        shapes = self.program.caches("block")
        for b, (depth, cached, n) in enumerate(zip(lanes.depth, lanes.cached, lanes.tokens, strict=True)):
            slots = [
                Slot(keys[b], values[b], shape.window)
                for (keys, values), shape in zip(caches, shapes, strict=True)
            ]
            lane = Lane(
                weights,
                lanes.positions[b, :n],
                int(depth),
                int(cached),
                slots,
                slots,
                block=0 if cached else int(n),
            )
            values = {name: value[b, :n] for name, value in x.items()}
            for op in stage.ops:
                run(op, lane, values)
            found.append([values[name] for name in stage.outputs])
        return found


def call(
    program: Program,
    path: Path,
    given: Mapping[str, np.ndarray],
    lanes: Lanes,
    caches: list[list[np.ndarray]],
) -> dict[str, np.ndarray]:
    """The outputs of a graph by name; K and V are bound in place."""
    use_threads(None)  # a process has one pool, which other tests may have made
    session = open_session(path)
    binding, memory = session.io_binding(), dict(given)
    for i, by in enumerate(program.rotations):
        tail = f".{i}" if i else ""
        memory.update(zip((f"cos{tail}", f"sin{tail}"), cos_sin(by, np.arange(32)), strict=True))
    for i, pair in enumerate(caches):
        memory.update(zip((f"past.{i}.key", f"past.{i}.value"), pair, strict=True))
    for node in session.get_inputs():
        array = np.ascontiguousarray(memory[node.name] if node.name in memory else getattr(lanes, node.name))
        memory[node.name] = array  # a binding holds addresses
        binding.bind_input(node.name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
    outputs = [node.name for node in session.get_outputs()]
    for name in outputs:
        if name.startswith("present."):
            array = memory[name.replace("present", "past")]
            binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        else:
            binding.bind_output(name)
    session.run_with_iobinding(binding)
    return {name: value.numpy() for name, value in zip(outputs, binding.get_outputs(), strict=True)}


def hold(
    model: Model, folder: Path, atol: float = 2e-5, scale: float = 1.0, capacity: int = CAPACITY
) -> set[tuple[str, str]]:
    """The graph and its packed form against the reference's ops; (domain, operator) of all nodes."""
    random, written = np.random.default_rng(7), set()
    depth, cached, tokens = np.array(DEPTH), np.array(CACHED, np.int32), np.array(TOKENS, np.int32)
    length = int(tokens.max())
    positions = cached[:, None] + np.arange(length) + 3
    x = {
        carry.name: scale * random.standard_normal((len(depth), length, carry.width)).astype(np.float32)
        for carry in model.program.loop.carries
    }
    attends = [
        op for op in model.program.loop.blocks[0].ops if isinstance(op, Attend) and op.cache is not None
    ]
    for packed in (False, True):
        arrays = depth, cached, tokens, positions
        lanes = PackedLanes(*arrays) if packed else Lanes(*arrays)
        caches = [
            [random.standard_normal((3, op.kv_heads, capacity, op.head_dim)).astype(np.float32) for _ in "kv"]
            for op in attends
        ]
        theirs = [[array.copy() for array in pair] for pair in caches]
        path = model.graph(folder, packed)
        state = np.concatenate(list(x.values()), -1)
        given = {"state": lanes.pack(state) if isinstance(lanes, PackedLanes) else state}
        outputs = call(model.program, path, given, lanes, caches)
        found = [outputs[name] for name in model.program.loop.blocks[0].outputs]
        for b, wanted in enumerate(model.reference(x, Lanes(*arrays), theirs)):
            n, start = tokens[b], int(tokens[:b].sum())
            for ours, rows in zip(found, wanted, strict=True):
                mine = ours[start : start + n, 0] if packed else ours[b, :n]
                assert mine.shape == rows.shape
                np.testing.assert_allclose(mine, rows, rtol=2e-5, atol=atol)
            for pair, other in zip(caches, theirs, strict=True):
                for array, rows in zip(pair, other, strict=True):
                    kept = rows_kept(int(cached[b] + n), capacity, model.program.window)
                    np.testing.assert_allclose(array[b, :, :kept], rows[b, :, :kept], atol=atol)
        graph = ir.load(path.with_suffix("").with_suffix(".onnx")).graph
        written |= {(node.domain, node.op_type) for node in graph}
    return written
