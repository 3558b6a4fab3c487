"""Whole stages as graphs: several carries, what skips a depth, K and V that depths share, logits of some rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from lowered import Model, call, random_weights, write
from msgspec import structs

from edgeloop.export.lower.exact import with_float_activations
from edgeloop.export.lower.graph import Stored
from edgeloop.export.lower.onnx import check, stage_graph, whole_graph, write_graphs
from edgeloop.runtime.engines.backend import Lanes
from edgeloop.runtime.engines.packed import PackedLanes
from edgeloop.runtime.engines.reference.lane import Lane, Slot
from edgeloop.runtime.engines.reference.ops import run
from edgeloop.runtime.errors import ExportError
from edgeloop.runtime.model.blocks import Attention, Layer, Mlp, NormKind, Writer, llama, parallel
from edgeloop.runtime.model.checks import problems
from edgeloop.runtime.model.ops import Act, Add, Attend, Concat, Embed, Linear, Norm, Rotate, Softcap
from edgeloop.runtime.model.program import Carry, Loop, Program, Stage
from edgeloop.runtime.model.rotation import Rotation
from edgeloop.runtime.model.stored import StoredWeights
from edgeloop.runtime.model.transform import keys_values, unrolled
from edgeloop.runtime.model.weights import Delta, Matrix, Vector, Weight

D, VOCAB, CAPACITY = 32, 40, 12
TURNS = Rotation(16, 1e4)
LLAMA = Layer(
    D, Attention(4, 2, 16, TURNS), Mlp(48), NormKind(1e-5), 3, norm_rows=True,
    deltas={"q_proj": Delta(2), "v_proj": Delta(3), "down_proj": Delta(2)},
)  # fmt: skip
NEOX = Layer(
    D,
    Attention(2, 2, 16, Rotation(8, 1e4), bias=True, out_bias=True),
    Mlp(48, "gelu", False, bias=True),
    NormKind(1e-5, "layer", bias=True),
)
Block = Callable[..., str]


def two_carries(block: Block, layer: Layer) -> Program:
    """A state and what the prologue made, read at every depth by an adapter; layers around and in the loop."""
    weights: dict[str, Weight] = {}
    plain = outside(layer)
    w = Writer(weights, "ids")
    w.add(Embed("ids", "e", w.weight("embed", Matrix({"embed": VOCAB}, D)), 2.0))
    first = block(w, "e", "first", plain)
    prologue = w.stage(first, w.norm(first, "given", "given", D, NormKind(1e-5)))
    w = Writer(weights, "state", "given")
    w.add(Concat(("state", "given"), "both"))
    w.linear("both", ("adapted",), "adapter", Matrix({"adapter": D}, 2 * D))
    out = block(w, block(w, "adapted", "a", layer), "b", layer)
    loop = Loop((Carry("state", D), Carry("given", D)), (w.stage(out, "given"),), (0, 0, 0))
    w = Writer(weights, "state", "given")
    last = block(w, "state", "last", plain)
    w.add(Add(last, "given", "sum"))
    epilogue = w.stage("sum", "given")
    w = Writer(weights, "state", "given")
    w.linear(
        w.norm("state", "n", "norm", D, NormKind(1e-5)), ("l",), "head", Matrix({"head": VOCAB}, D, bias=True)
    )
    w.add(Softcap("l", "logits", 5.0))
    program = Program(
        family="test", vocab_size=VOCAB, context_length=64, prologue=prologue, loop=loop, epilogue=epilogue,
        head=w.stage("logits"), weights=weights,
    )  # fmt: skip
    assert not list(problems(program))
    check(program)
    return program


def outside(layer: Layer) -> Layer:
    """The same layer outside of the loop."""
    return Layer(layer.width, layer.attention, layer.mlp, layer.norm)


@dataclass
class Case:
    """A program with weights, its lanes, and random rows and caches."""

    program: Program
    found: dict[str, np.ndarray]
    folder: Path
    group_size: int

    def __post_init__(self) -> None:
        self.stored = Stored.open(write(self.found, self.folder), self.group_size)
        self.random = np.random.default_rng(5)
        self.arrays = (
            np.array([2, 0, 1]), np.array([4, 0, 2], np.int32), np.array([3, 2, 1], np.int32),
            np.array([4, 0, 2])[:, None] + np.arange(3),
        )  # fmt: skip

    def caches(self, stage: str) -> list[list[np.ndarray]]:
        shapes = self.program.caches(stage)
        return [
            [
                self.random.standard_normal((3, s.kv_heads, CAPACITY, s.head_dim)).astype(np.float32)
                for _ in "kv"
            ]
            for s in shapes
        ]

    def graph(self, model: ir.Model) -> Path:
        ir.save(model, self.folder / "stage.onnx")
        return with_float_activations(self.folder / "stage.onnx")

    def wanted(self, stages: list[Stage], given: list[np.ndarray], caches: list[list[np.ndarray]], b: int):
        """What ``stages``, one after the other, give for lane ``b``."""
        depth, cached, n, positions = (array[b] for array in self.arrays)
        weights = StoredWeights(self.program.weights, self.found, self.group_size)
        slots = [Slot(keys[b], values[b]) for keys, values in caches]
        lane = Lane(weights, positions[:n], int(depth), int(cached), slots, slots)
        rows = [x[b, :n] for x in given]
        for stage in stages:
            values = dict(zip(stage.inputs, rows, strict=True))
            for op in stage.ops:
                run(op, lane, values)
            rows = [values[name] for name in stage.outputs]
        return rows

    def hold(
        self, name: str, stages: list[Stage], given: list[np.ndarray], found_name: str, packed: bool
    ) -> None:
        """The graph ``name`` gives what ``stages`` give."""
        lanes = PackedLanes(*self.arrays) if packed else Lanes(*self.arrays)
        caches = self.caches(name)
        copies = [[array.copy() for array in pair] for pair in caches]
        ids = given[0].ndim == 2
        x = given[0] if ids else np.concatenate(given, -1)  # positions are the lanes'
        x = lanes.pack(x)[..., 0 if ids else slice(None)] if isinstance(lanes, PackedLanes) else x
        inputs = {"ids" if ids else "state": x}
        flat = np.flatnonzero((np.arange(3) < self.arrays[2][:, None]).ravel())
        if found_name == "logits":
            inputs["rows"] = np.arange(len(flat))[::-1].copy() if packed else flat[::-1].copy()
        path = self.graph(stage_graph(self.program, self.stored, name, packed=packed))
        found = call(self.program, path, inputs, lanes, caches)[found_name]
        wanted = np.concatenate([np.concatenate(self.wanted(stages, given, copies, b), -1) for b in range(3)])
        if found_name != "logits":
            found = found[:, 0] if packed else found.reshape(9, -1)[flat]
        found = found[::-1] if found_name == "logits" else found
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())


@pytest.fixture(
    params=[(llama, LLAMA, 32), (llama, LLAMA, 4), (parallel, NEOX, 32)], ids=["llama", "int4", "neox"]
)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    block, layer, bits = request.param
    program = two_carries(block, layer)
    return Case(program, random_weights(program.weights, bits), tmp_path, 16)


@pytest.mark.parametrize("packed", [False, True])
def test_stages_of_several_carries(case: Case, packed: bool) -> None:
    program, random = case.program, case.random
    ids = random.integers(0, VOCAB, (3, 3))
    case.hold("prologue", [program.prologue], [ids], "state", packed)
    given = [random.standard_normal((3, 3, D)).astype(np.float32) for _ in range(2)]
    case.hold("block", [program.loop.blocks[0]], given, "next", packed)
    case.hold("epilogue", [program.epilogue, program.head], given, "logits", packed)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("bits", "group"), [(32, 16), (8, 16), (4, 16), (8, 0)])
@pytest.mark.parametrize("columns", [64, 40])
def test_tables(tmp_path: Path, bits: int, group: int, columns: int, packed: bool) -> None:
    """Of tokens, scaled, and of positions; the last group of a row may be filled up."""
    weights = {name: Matrix({name: VOCAB}, columns) for name in ("embed", "places")}
    ops = (Embed("ids", "e", "embed", 2.5), Embed("positions", "p", "places"), Add("e", "p", "y"))
    prologue, still = Stage(("ids", "positions"), ops, ("y",)), Stage(("state",), (), ("state",))
    program = Program(
        family="test", vocab_size=VOCAB, context_length=VOCAB, prologue=prologue,
        loop=Loop((Carry("state", columns),), (still,), (0,)), epilogue=still, head=still, weights=weights,
    )  # fmt: skip
    case = Case(program, random_weights(weights, bits, group), tmp_path, group)
    case.hold(
        "prologue", [prologue], [case.random.integers(0, VOCAB, (3, 3)), case.arrays[3]], "state", packed
    )


def test_what_a_depth_keeps_of_tokens_that_skip_it(case: Case) -> None:
    given = [case.random.standard_normal((3, 3, D)).astype(np.float32) for _ in range(2)]
    path = case.graph(stage_graph(case.program, case.stored, "fill"))
    found = call(case.program, path, {"state": np.concatenate(given, -1)}, Lanes(*case.arrays), [])
    assert list(found) == ["key.0", "value.0", "key.1", "value.1"]
    stage = keys_values(case.program.loop.blocks[0])
    for b, n in enumerate(case.arrays[2]):
        for ours, rows in zip(found.values(), case.wanted([stage], given, [], b), strict=True):
            np.testing.assert_allclose(ours[b, :n], rows, rtol=1e-4, atol=1e-4)


def test_graphs_are_files_beside_the_weights(case: Case) -> None:
    graphs = write_graphs(case.program, case.stored, fill=True)
    assert list(graphs) == [
        "prologue", "prologue.packed", "block", "block.packed", "epilogue", "epilogue.packed", "fill"
    ]  # fmt: skip
    assert {path.parent for path in graphs.values()} == {case.folder}
    shapes = {
        value.name: [str(d) for d in value.shape or ()]
        for value in ir.load(graphs["block.packed"]).graph.inputs
    }
    assert shapes["state"] == ["N", "1", str(2 * D)]
    assert list(shapes)[-2:] == ["spread", "kept"]


def test_an_unrolled_model_is_one_graph(tmp_path: Path) -> None:
    """One carry, a tied table, which is also a matrix; logits of the last token of each lane."""
    weights: dict[str, Weight] = {}
    w = Writer(weights, "ids")
    w.add(Embed("ids", "e", w.weight("embed", Matrix({"embed": VOCAB}, D))))
    prologue = w.stage("e")
    layer = Layer(D, LLAMA.attention, LLAMA.mlp, LLAMA.norm)
    w = Writer(weights, "state")
    block = w.stage(llama(w, "state", "a", layer))
    w = Writer(weights, "state")
    w.linear(w.norm("state", "n", "norm", D, NormKind(1e-5)), ("logits",), "embed", weights["embed"])
    still = Stage(("state",), (), ("state",))
    program = Program(
        family="test", vocab_size=VOCAB, context_length=64, prologue=prologue,
        loop=Loop((Carry("state", D),), (block,), (0, 0)), epilogue=still, head=w.stage("logits"), weights=weights,
    )  # fmt: skip
    twin, _ = unrolled(program)
    case = Case(twin, random_weights(twin.weights, 4), tmp_path, 16)
    caches = case.caches("prologue")
    copies = [[array.copy() for array in pair] for pair in caches]
    ids, last = case.random.integers(0, VOCAB, (3, 3)), case.arrays[2] - 1
    path = case.graph(whole_graph(twin, case.stored))
    lanes = Lanes(*case.arrays)
    found = call(twin, path, {"ids": ids, "rows": 3 * np.arange(3) + last}, lanes, caches)["logits"]
    for b, n in enumerate(last):
        wanted = case.wanted([twin.prologue, twin.head], [ids], copies, b)[0][n]
        np.testing.assert_allclose(found[b], wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("normed", [False, True])
def test_depths_that_share_k_and_v(tmp_path: Path, packed: bool, normed: bool) -> None:
    """Depth 0 makes K and V of its tokens, depth 1 none; normed: by more ops than one between matrix and attention."""
    attend = Attend("q'", "k'", "v", "m", 4, 2, 16, 0.25, 0, slot="first")
    ops = [Norm("x", "h", "rms", 1e-5), Linear("h", ("q", "k", "v"), "qkv"), Rotate("q", "q'", 4, TURNS)]
    if normed:
        ops += [Norm("k", "kn", "layer", 1e-5, "w", groups=2), Act("kn", "ka", "tanh"),
                Rotate("ka", "k'", 2, Rotation(8, 1e4))]  # fmt: skip
    else:
        ops.append(Rotate("k", "k'", 2, TURNS))
    ops += [attend, Linear("m", ("o",), "o"), Add("x", "o", "y")]
    deltas = {"q": Delta(2), "k": Delta(2)}
    matrices = {
        "qkv": Matrix({"q": 64, "k": 32, "v": 32}, D, bias=True, deltas=deltas, depths=3), "o": Matrix({"o": D}, 64),
    }  # fmt: skip
    model = Model.of(ops, {"x": D}, ["y"], **matrices, **({"w": Vector(16, 3)} if normed else {}))
    path = model.graph(tmp_path, packed, shared=True)
    made = [node.op_type for node in ir.load(path).graph]
    assert made.count("GroupQueryAttention") == 1
    random = np.random.default_rng(2)
    caches = [[random.standard_normal((1, 2, CAPACITY, 16)).astype(np.float32) for _ in "kv"]]
    copies = [[array.copy() for array in pair] for pair in caches]
    for depth in (0, 1):
        arrays = np.array([depth]), np.array([3], np.int32), np.array([4], np.int32), 3 + np.arange(4)[None]
        fresh = depth == 0
        lanes = PackedLanes(*arrays, shared=True, fresh=fresh) if packed else Lanes(*arrays)
        x = random.standard_normal((1, 4, D)).astype(np.float32)
        given = {"state": x.reshape(4, 1, D) if packed else x, "fresh": np.array([4 if fresh else 0])}
        found = call(model.program, path, given, lanes, caches)["y"].reshape(4, D)
        if not fresh:
            model = reading_only(model)
        wanted = model.reference({"x": x}, Lanes(*arrays), copies)[0][0]
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
        for ours, theirs in zip(caches[0], copies[0], strict=True):
            np.testing.assert_allclose(ours[:, :, :7], theirs[:, :, :7], atol=1e-4)


def reading_only(model: Model) -> Model:
    """The block at a depth that only reads."""
    block = model.program.loop.blocks[0]
    ops = tuple(structs.replace(op, k=None, v=None) if isinstance(op, Attend) else op for op in block.ops)
    loop = structs.replace(model.program.loop, blocks=(structs.replace(block, ops=ops),))
    return Model(structs.replace(model.program, loop=loop), model.found, model.group_size)


def test_shared_k_and_v_that_something_else_reads_are_refused(tmp_path: Path) -> None:
    attend = Attend("q", "k", "v", "m", 4, 2, 16, 0.25, 0, slot="first")
    model = Model.of([Linear("x", ("q", "k", "v"), "qkv"), attend], {"x": D}, ["m", "k"],
                     qkv=Matrix({"q": 64, "k": 32, "v": 32}, D))  # fmt: skip
    with pytest.raises(ExportError, match="attend where K/V that depths share are used for more"):
        model.graph(tmp_path, shared=True)
