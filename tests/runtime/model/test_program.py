"""A program as data: what follows from it, and that nothing else can be in it."""

from __future__ import annotations

from typing import Any, get_args, get_type_hints

import msgspec
import pytest
from msgspec import structs
from programs import PROGRAMS, VOCAB

from edgeloop.runtime.model.ops import (
    _READ,
    _WEIGHTS,
    Attend,
    Linear,
    Op,
    kind,
    reads,
    weight_fields,
    with_names,
    writes,
)
from edgeloop.runtime.model.program import CacheShape, Program
from edgeloop.runtime.model.weights import Delta, Matrix, Part, Tensor, Vector, canonical, tensors


def test_every_op_is_in_some_program() -> None:
    used = {type(op) for make in PROGRAMS.values() for stage in make().stages for op in stage.ops}
    assert used == set(get_args(Op))


@pytest.mark.parametrize(
    "where", ["", "loop", "prologue", "weights/norm", "prologue/ops/0", "prologue/ops/3/by", "routing"]
)
def test_an_unknown_key_is_refused(where: str) -> None:
    routed = PROGRAMS["routed"]()
    program = structs.replace(PROGRAMS["relaxed"](), routing=routed.routing)
    json = msgspec.json.decode(msgspec.json.encode(program))
    place: Any = json
    for key in where.split("/") if where else []:
        place = place[int(key) if isinstance(place, list) else key]
    assert msgspec.convert(json, Program) == program
    place["more"] = 1
    with pytest.raises(msgspec.ValidationError, match="unknown field `more`"):
        msgspec.convert(json, Program)


def test_an_unknown_op_is_refused() -> None:
    json = msgspec.json.decode(msgspec.json.encode(PROGRAMS["relaxed"]()))
    json["prologue"]["ops"][0]["op"] = "invert"
    with pytest.raises(msgspec.ValidationError, match="Invalid value 'invert' - at `\\$.prologue.ops"):
        msgspec.convert(json, Program)


def test_what_an_op_reads_and_writes() -> None:
    attend = Attend("q", "k", "v", "y", 2, 1, 4, 0.5, 0)
    assert kind(attend) == "attend"
    assert reads(attend) == ("q", "k", "v")
    assert reads(structs.replace(attend, k=None, v=None)) == ("q",)
    linear = Linear("x", ("q", "k"), "w")
    assert writes(linear) == ("q", "k")
    assert weight_fields(linear) == (("weight", "w"),)
    named = with_names(linear, {"x": "a", "k": "b", "w": "c"})
    assert named == Linear("a", ("q", "b"), "w")


def test_a_name_in_an_op_is_that_of_a_value_or_a_weight() -> None:
    """A field of another name would be read by nobody, and checked by nobody."""
    for op in get_args(Op):
        named = {
            field
            for field, kind_of in get_type_hints(op).items()
            if str in (kind_of, *get_args(kind_of)) and not field.startswith("_")
        }
        assert named <= {*_READ, *_WEIGHTS, "y"}, op


def test_caches_and_what_they_take() -> None:
    relaxed, shared, gemma = (PROGRAMS[name]() for name in ("relaxed", "shared", "gemma"))
    assert [len(relaxed.caches(name)) for name in ("prologue", "block", "epilogue")] == [1, 2, 1]
    assert relaxed.kv_slots == 3
    assert relaxed.kv_bytes_per_token == (1 + 2 * 3 + 1) * 2 * 4 * 4
    assert not relaxed.shares_kv
    assert shared.caches("block") == (CacheShape(1, 4, 5, True),) * 2
    assert shared.shares_kv
    assert shared.kv_slots == 1
    assert [shape.window for shape in gemma.caches("block")] == [4, None, None]
    assert structs.replace(gemma, context_length=4).caches("block")[0].window is None
    assert (relaxed.window, shared.window, gemma.window) == (None, 5, None)


def test_facts() -> None:
    relaxed, hierarchical, gemma = (PROGRAMS[name]() for name in ("relaxed", "hierarchical", "gemma"))
    assert (relaxed.depths, relaxed.width, relaxed.applied_layers) == (3, 8, 8)
    assert (hierarchical.depths, hierarchical.width, hierarchical.applied_layers) == (4, 16, 4)
    assert hierarchical.stage("block", 3) == hierarchical.loop.blocks[1]
    assert relaxed.tied_embedding
    assert not PROGRAMS["gpt"]().tied_embedding
    assert [by.dims for by in gemma.rotations] == [4, 4, 4]
    assert PROGRAMS["parallel_loop"]().kept_rows == 1


def test_tensors_of_weights() -> None:
    assert dict(tensors({"a.norm": Vector(8), "a.rows": Vector(8, 3)})) == {
        "a.norm.weight": Tensor((8,), ("a.norm.weight",), "vector"),
        "a.rows.weight": Tensor((3, 8), ("a.rows.weight",), "vector"),
    }
    deltas = {"k": Delta(2), "v": Delta(5, rescaled=True)}
    matrix = Matrix({"q": 6, "k": 4, "v": 3}, 8, bias=True, copies=2, deltas=deltas, depths=2)
    assert matrix.rows == 13
    assert dict(tensors({"a.qkv": matrix})) == {
        "a.qkv.weight": Tensor((26, 8), ("a.q.weight", "a.k.weight", "a.v.weight"), "matrix"),
        "a.qkv.bias": Tensor((26,), ("a.q.bias", "a.k.bias", "a.v.bias"), "vector"),
        "a.k.lora_a": Tensor((2, 2, 8), ("a.k.lora_a",), "delta"),
        "a.k.lora_b": Tensor((2, 4, 2), ("a.k.lora_b",), "delta"),
        "a.v.lora_a": Tensor((2, 5, 8), ("a.v.lora_a",), "delta"),
        "a.v.lora_b": Tensor((2, 3, 5), ("a.v.lora_b",), "delta"),
        "a.v.lora_scale": Tensor((2, 3), ("a.v.lora_scale",), "delta"),
    }
    assert dict(tensors({"embed": Matrix({"embed": VOCAB}, 8)})) == {
        "embed.weight": Tensor((VOCAB, 8), ("embed.weight",), "matrix")
    }


def test_canonical_tensors_of_weights() -> None:
    deltas = {"v": Delta(5)}
    matrix = Matrix({"q": 6, "v": 3}, 8, bias=True, copies=2, deltas=deltas, depths=2)
    weights = {
        "norm": Vector(8),
        "a.rows": Vector(8, 3),
        "a.qv": matrix,
        "a.o": Matrix({"o": 8}, 6, bias=True),
    }
    assert list(canonical(weights)) == [
        Part("norm.weight", (8,), per_depth=False),
        Part("a.rows.weight", (8,), per_depth=True),
        Part("a.q.weight", (6, 8), per_depth=True),
        Part("a.v.weight", (3, 8), per_depth=True),
        Part("a.q.bias", (6,), per_depth=True),
        Part("a.v.bias", (3,), per_depth=True),
        Part("a.v.lora_a", (5, 8), per_depth=True),
        Part("a.v.lora_b", (3, 5), per_depth=True),
        Part("a.o.weight", (8, 6), per_depth=False),
        Part("a.o.bias", (8,), per_depth=False),
    ]
    assert [part.name for part in canonical(weights)] == [n for _, t in tensors(weights) for n in t.parts]
