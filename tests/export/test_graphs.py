"""The exported graphs: fused operators, one weights file, nothing of the machine that made them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import onnx
import pytest

from edgeloop.export.weights import tensor_spans

PACKED = ("prologue.packed", "block.packed", "epilogue.packed")
STAGES = ("prologue", "block", "fill", "epilogue", *PACKED)
SMALL = 256  # bytes: tables of a few integers may lie in the graph itself
Bundles = Callable[..., Path]


def load(bundle: Path, stage: str) -> onnx.ModelProto:
    return onnx.load(bundle / "onnx" / f"{stage}.onnx", load_external_data=False)


def operators(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def external(model: onnx.ModelProto) -> dict[str, tuple[str, int, int]]:
    """Initializer → (file, offset, length)."""
    found = {}
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            entry = {e.key: e.value for e in tensor.external_data}
            found[tensor.name] = (entry["location"], int(entry["offset"]), int(entry["length"]))
    return found


QUANTIZED = {
    "MatMulNBits": 8,
    "GroupQueryAttention": 2,
    "SimplifiedLayerNormalization": 1,
    "SkipSimplifiedLayerNormalization": 3,
    "Split": 2,
    "Sigmoid": 2,
}


@pytest.mark.parametrize(
    ("kind", "quant", "group_size", "fused", "plain_matmuls"),
    [
        # 2 layers: 4 matrices, 1 attention, 2 norms (the first has no residual to add) and a SwiGLU each.
        ("rec_middle_cycle", "none", 32, QUANTIZED | {"MatMulNBits": 0}, 8),
        # LoRA on q, k, v, o, gate, up, down: a pair of products for each of the 4 fused projections.
        ("mor-lora", "int4", 32, QUANTIZED, 16),
        # One scale a row: every matrix takes activations that are quantized token by token.
        (
            "rec_middle_cycle",
            "int8-channel",
            32,
            QUANTIZED | {"MatMulNBits": 0, "MatMulIntegerToFloat": 8, "QuantizeLinear": 8},
            0,
        ),
        # Sandwich norms: two more a layer, on outputs; 2 layers; and one after the last sum.
        (
            "ouro",
            "int4",
            128,
            QUANTIZED | {"SimplifiedLayerNormalization": 5, "SkipSimplifiedLayerNormalization": 4},
            0,
        ),
    ],
)
def test_operators_of_the_block(
    exported: Bundles, kind: str, quant: str, group_size: int, fused: dict[str, int], plain_matmuls: int
) -> None:
    found = operators(load(exported(kind, quant, group_size), "block"))
    assert {name: found[name] for name in fused} == fused
    assert found["MatMul"] + found["Gemm"] == plain_matmuls
    # What attention and norms are made of where nothing is fused.
    assert not {"Softmax", "Sin", "Cos", "Trilu", "Pow", "ReduceMean", "Loop", "If"} & set(found)


def test_every_application_of_an_unrolled_block_shares_its_weights(exported: Bundles) -> None:
    model = load(exported("mobilellm", "int8", 64), "block")
    assert operators(model)["GroupQueryAttention"] == 6  # 3 layers, each twice
    names = [t.name for t in model.graph.initializer if t.name.endswith("qkv_proj.codes")]
    assert len(names) == 3
    uses = Counter(i for node in model.graph.node for i in node.input)
    assert [uses[name] for name in names] == [2, 2, 2]


def test_prologue_and_epilogue(exported: Bundles) -> None:
    bundle = exported("mor-lora", "int4", 32)
    prologue, epilogue = (operators(load(bundle, stage)) for stage in ("prologue", "epilogue"))
    assert (prologue["GatherBlockQuantized"], prologue["MatMulNBits"]) == (1, 4)
    assert (epilogue["GatherBlockQuantized"], epilogue["MatMulNBits"]) == (0, 5)  # 4 and the head
    ouro = exported("ouro", "int4", 128)
    assert operators(load(ouro, "prologue"))["GroupQueryAttention"] == 0
    assert operators(load(ouro, "epilogue"))["MatMulNBits"] == 1


BUNDLES = [
    ("rec_middle_cycle", "none", 32),
    ("mor-lora", "int8-channel", 32),
    ("mor-lora", "int4", 32),
    ("ouro", "int4", 128),
]


@pytest.mark.parametrize(("kind", "quant", "group_size"), BUNDLES)
def test_weights_are_in_one_file_and_once(exported: Bundles, kind: str, quant: str, group_size: int) -> None:
    folder = exported(kind, quant, group_size) / "onnx"
    assert sorted(p.name for p in folder.iterdir()) == sorted(
        [f"{s}.onnx" for s in STAGES] + ["weights.safetensors"]
    )
    placed = tensor_spans(folder / "weights.safetensors")
    pointed = set()
    for stage in STAGES:
        model = load(folder.parent, stage)
        for name, (file, offset, length) in external(model).items():
            assert file == "weights.safetensors"
            if name.endswith("]"):  # the rows of the stored matrix behind the queries'
                whole = placed[name.partition("[")[0]]
                assert stage == "fill"
                assert whole.offset < offset < offset + length == whole.offset + whole.length
                continue
            assert (offset, length) == (placed[name].offset, placed[name].length)
            pointed.add(name)
        inside = [t for t in model.graph.initializer if t.name not in external(model)]
        constants = [a.t for node in model.graph.node for a in node.attribute if a.name == "value"]
        assert all(t.ByteSize() < SMALL + 100 for t in [*inside, *constants])
    assert pointed == set(placed)
    ends = sorted((p.offset, p.offset + p.length) for p in placed.values())
    assert all(end == start for (_, end), (start, _) in pairwise(ends))


def test_a_tied_head_points_at_the_embedding(exported: Bundles) -> None:
    for kind, quant in (("mor-lora", "int4"), ("mobilellm", "int8")):
        bundle = exported(kind, quant, 32 if quant == "int4" else 64)
        first, last = (external(load(bundle, stage)) for stage in ("prologue", "epilogue"))
        for side in ("codes", "scales"):
            assert first[f"embed.{side}"] == last[f"embed.{side}"]
    untied = external(load(exported("ouro", "int4", 128), "epilogue"))
    assert "head.codes" in untied
    assert "embed.codes" not in untied


@pytest.mark.parametrize(("kind", "quant", "group_size"), BUNDLES)
def test_nothing_of_this_machine_is_inside(exported: Bundles, kind: str, quant: str, group_size: int) -> None:
    for path in exported(kind, quant, group_size).rglob("*.[oj]*"):  # graphs and manifest
        data = path.read_bytes()
        for trace in (path.parent, Path(__file__).parents[2], Path.home(), ".py", "stack_trace"):
            assert str(trace).encode() not in data


def test_inputs_and_their_free_sizes(exported: Bundles) -> None:
    model = load(exported("mor-lora", "int4", 32), "block")
    shapes = {
        i.name: [d.dim_param or d.dim_value for d in i.type.tensor_type.shape.dim] for i in model.graph.input
    }
    assert shapes == {
        "state": ["B", "S", 64],
        "depth": ["B"],
        "positions": ["B", "S"],
        "last": ["B"],
        "longest": [1],
        "tokens": ["B"],
        "cos": ["P", 8],
        "sin": ["P", 8],
        **{f"past.{i}.{side}": ["B", 2, "C", 16] for i in range(2) for side in ("key", "value")},
    }
    assert [o.name for o in model.graph.output] == [
        "next",
        *(f"present.{i}.{side}" for i in range(2) for side in ("key", "value")),
    ]


def test_the_fill_graph_projects_and_does_nothing_else(exported: Bundles) -> None:
    model = load(exported("mor-lora", "int4", 32), "fill")
    found = operators(model)
    assert {n: found[n] for n in ("MatMulNBits", "RotaryEmbedding", "SimplifiedLayerNormalization")} == {
        "MatMulNBits": 2,
        "RotaryEmbedding": 2,
        "SimplifiedLayerNormalization": 2,
    }
    assert found["GroupQueryAttention"] == 0
    assert [i.name for i in model.graph.input] == ["state", "depth", "positions", "cos", "sin"]
    assert [o.name for o in model.graph.output] == ["key.0", "value.0", "key.1", "value.1"]
    plain = load(exported("ouro", "int4", 128), "fill").graph.input
    assert [i.name for i in plain] == ["state", "positions", "cos", "sin"]


def test_models_without_depths_have_nothing_to_fill(exported: Bundles) -> None:
    assert not (exported("mobilellm", "int8", 64) / "onnx" / "fill.onnx").exists()
