"""A program from a stranger's file: what cannot be meant is refused in a line, and nothing else is a surprise."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import numpy as np
import pytest
from model_run import Model, random_tensors
from msgspec import structs
from mutants import Json, mutants, transplants
from programs import PROGRAMS, program

from edgeloop.runtime.model.checks import problems
from edgeloop.runtime.model.limits import MAX_NAME
from edgeloop.runtime.model.ops import AttendTwice
from edgeloop.runtime.model.program import Program
from edgeloop.runtime.model.sizes import IDS, head_sizes, output_size, sizes
from edgeloop.runtime.model.transform import keys_values, reading, unrolled, whole
from edgeloop.runtime.model.weights import tensors

HUGE = {"type": "matrix", "parts": {"down_proj": 1 << 24}, "columns": 1 << 17}

STATES = {"inputs": ["state"], "ops": [], "outputs": ["state"]}
"""A head that gives what it reads."""


def json_of(program: Program) -> Json:
    """The program as a manifest says it, with what is left out there because it is usual."""
    return msgspec.json.decode(msgspec.json.encode(_explicit(program)))


def _explicit(value: object) -> object:
    if isinstance(value, msgspec.Struct):
        config = value.__struct_config__
        tag = {config.tag_field: config.tag} if config.tag_field else {}
        return tag | {name: _explicit(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, dict):
        return {key: _explicit(item) for key, item in value.items()}
    return [_explicit(item) for item in value] if isinstance(value, tuple) else value


def read(json: Json) -> Program:
    return msgspec.json.decode(msgspec.json.encode(json), type=Program)


def put(json: Json, path: str, value: object) -> None:
    """Set what is at ``path``, such as ``loop/blocks/0/ops/3/eps``."""
    *way, last = path.split("/")
    for key in way:
        json = json[int(key)] if isinstance(json, list) else json[key]
    json[int(last) if isinstance(json, list) else last] = value


def first_problem(kind: str, path: str, value: object) -> str:
    json = json_of(PROGRAMS[kind]())
    put(json, path, value)
    return next(problems(read(json)), "")


@pytest.mark.parametrize("make", PROGRAMS.values(), ids=PROGRAMS)
def test_sound_programs_have_no_problems(make: Callable[[], Program]) -> None:
    program = make()
    assert list(problems(program)) == []
    assert read(json_of(program)) == program
    assert msgspec.json.decode(msgspec.json.encode(program), type=Program) == program


@pytest.mark.parametrize(
    ("kind", "path", "value", "wanted"),
    [
        ("relaxed", "family", "a\nb", "family is 'a\\nb', wanted 1 to 200 printable characters"),
        ("relaxed", "family", "", "family is ''"),
        ("relaxed", "vocab_size", 0, "vocab_size is 0, wanted 1 to 16777216"),
        ("relaxed", "vocab_size", 21, "prologue op 0 (embed, embedded): table embed has 20 rows"),
        ("relaxed", "context_length", 10**30, "context_length is 10000000000000000000…"),
        ("relaxed", "context_length", 10**300, "context_length is a number of more than 77 digits"),
        ("relaxed", "eos_token_ids", [-1], "eos_token_ids is -1"),
        ("relaxed", "bos_token_id", 10**9, "bos_token_id is 1000000000"),
        ("relaxed", "weights/norm/size", 0, "the size of weight norm is 0"),
        ("relaxed", "weights/norm/size", 9, "head op 0 (norm, normed): weight norm is [9], wanted [8]"),
        ("relaxed", "weights/norm/rows", 1, "differs between depths, and outside of the loop there are none"),
        ("relaxed", "weights/b.0.qkv_proj/columns", 10**12, "the columns of weight b.0.qkv_proj is 1000000000000"),
        ("relaxed", "weights/b.0.qkv_proj/parts", {}, "the rows of weight b.0.qkv_proj is 0"),
        ("relaxed", "weights/b.0.qkv_proj/parts/k_proj", 5, "op 3 (rotate, 0.k_turned): rotates 4 dims of heads of 5"),
        ("relaxed", "weights/b.0.qkv_proj/deltas", {"z": {"rank": 1}}, "has a delta of z, which is none of its parts"),
        ("relaxed", "weights/b.0.qkv_proj/deltas/q_proj/rank", 0, "the rank of delta q_proj of weight b.0.qkv_proj"),
        ("relaxed", "weights/b.0.qkv_proj/deltas", {}, "is of 3 depths, and has no deltas"),
        ("relaxed", "weights/b.0.qkv_proj/depths", 2, "weight b.0.qkv_proj is of 2 depths, wanted 3"),
        ("relaxed", "weights/b.0.attention_norm/rows", 4, "weight b.0.attention_norm is of 4 depths, wanted 3"),
        ("relaxed", "weights/extra", {"type": "vector", "size": 3}, "weight extra is used by no op"),
        ("relaxed", "weights/b.0.down_proj", HUGE, "a tensor b.0.down_proj.weight of 16777216 × 131072, more than"),
        ("relaxed", "weights/b.0.o_proj/parts", {"q_proj": 8}, "two tensors with the name b.0.q_proj"),
        ("routed", "weights/b.0.qkv_proj/copies", 2, "has 2 copies and deltas of 3 depths"),
        ("relaxed", "loop/open_ended", True, "weight b.0.attention_norm is of 3 depths, and loop.open_ended says"),
        ("relaxed", "loop/carries", [], "the number of loop.carries is 0"),
        ("relaxed", "loop/carries/0/width", 16, "block op 0 (norm, 0.h): weight b.0.attention_norm is [8]"),
        ("adapted", "loop/carries/1/name", "state", "loop.carries have two of one name"),
        ("adapted", "loop/carries/1/width", 4, "block op 1 (linear, adapted): both is [N, 12], wanted [N, 16]"),
        ("relaxed", "loop/schedule", [], "the number of depths in loop.schedule is 0"),
        ("relaxed", "loop/schedule", [0] * (1 << 14 | 1), "the number of depths in loop.schedule is 16385"),
        ("relaxed", "loop/schedule", [0, 1, 0], "a block in loop.schedule is 1, wanted 0"),
        ("hierarchical", "loop/schedule", [0, 0, 0, 0], "loop.schedule never runs block 1 of 2"),
        ("relaxed", "loop/schedule", [0] * 10000, "the number of layers that are applied is 20002"),
        ("encoder", "loop/schedule/2", 0, "loop.schedule never runs block 1 of 2"),
        ("relaxed", "prologue/inputs", ["ids", "more"], "prologue has the input more, wanted ids, positions, types"),
        ("relaxed", "prologue/outputs", ["ids"], "prologue gives ids, wanted the loop's carries, [N, 8]"),
        ("relaxed", "loop/blocks/0/outputs", [], "block gives nothing, wanted the loop's carries, [N, 8]"),
        ("relaxed", "loop/blocks/0/outputs", ["1.gate"], "block gives [N, 12], wanted the loop's carries, [N, 8]"),
        ("relaxed", "epilogue/inputs", ["a", "b"], "epilogue has 2 inputs, wanted 1"),
        ("relaxed", "epilogue/outputs", ["nowhere"], "the outputs of epilogue have nowhere, which"),
        ("positioned", "context_length", 33, "table places has 32 rows, wanted one for each of 33 positions"),
        ("positioned", "prologue/ops/2/a", "positions", "reads positions, whole numbers, as vectors"),
        ("relaxed", "head/inputs", ["state", "more"], "head has 2 inputs, wanted 1"),
        ("relaxed", "head", STATES, "head gives [N, 8], wanted logits, [N, 20]"),
        ("encoder", "prologue/inputs", ["ids"], "prologue op 1 (embed, typed): reads types, which nothing"),
        ("relaxed", "head/outputs", ["normed"], "head gives [N, 8], wanted logits, [N, 20]"),
        ("relaxed", "loop/blocks/0/layers", ["state"], "block has 1 layers and 2 caches"),
        ("relaxed", "loop/blocks/0/layers", ["state", "state"], "the layers of block have a value twice"),
        ("relaxed", "loop/blocks/0/layers/1", "0.gate", "a layer takes 0.gate, [N, 12], and the first input is [N, 8]"),
        ("relaxed", "loop/blocks/0/layers/1", "state", "the layers of block have a value twice"),
        ("relaxed", "loop/blocks/0/layers/1", "1.out", "block: K/V of its layers need 0.mixed"),
        ("relaxed", "loop/blocks/0/ops/0/x", "later", "block op 0 (norm, 0.h): reads later, which nothing"),
        ("relaxed", "loop/blocks/0/ops/0/y", "state", "block op 0 (norm, state): writes state, which is there already"),
        ("relaxed", "loop/blocks/0/ops/0/y", "\x1b[2J", "block op 0 (norm): a value is '\\x1b[2J', wanted 1 to 200"),
        ("relaxed", "loop/blocks/0/ops/0/y", "y" * (MAX_NAME + 1), "block op 0 (norm): a value is 'yyyy"),
        ("relaxed", "loop/blocks/0/ops/0/weight", "none", "uses the weight none, which the program does not have"),
        ("relaxed", "loop/blocks/0/ops/0/weight", "embed", "weight embed is a matrix, wanted a vector"),
        ("relaxed", "loop/blocks/0/ops/0/eps", -1e-5, "eps is -1e-05, wanted 0 to 1"),
        ("relaxed", "loop/blocks/0/ops/0/groups", 0, "groups is 0"),
        ("relaxed", "loop/blocks/0/ops/0/groups", 3, "state has 8 numbers, wanted a multiple of 3"),
        ("relaxed", "loop/blocks/0/ops/0/at", 3, "at, a depth of weight b.0.attention_norm, is 3, wanted 0 to 2"),
        ("relaxed", "prologue/ops/1/at", 0, "prologue op 1 (norm, 0.h): at is 0, and no weight of it differs"),
        ("twice", "loop/blocks/0/ops/0/at", 1, "weight b.0.attention_norm is of 2 depths, and ops use 1"),
        ("relaxed", "loop/blocks/0/ops/1/weight", "norm", "weight norm is a vector, wanted a matrix"),
        ("relaxed", "loop/blocks/0/ops/1/first", 1, "takes 3 parts of b.0.qkv_proj from part 1 on, it has 3"),
        ("relaxed", "loop/blocks/0/ops/1/y", [], "block op 1 (linear): takes 0 parts"),
        ("relaxed", "loop/blocks/0/ops/2/heads", 0, "heads is 0, wanted 1"),
        ("relaxed", "loop/blocks/0/ops/2/by/dims", 3, "rotates 3 dims of heads of 4"),
        ("relaxed", "loop/blocks/0/ops/2/by/dims", 6, "rotates 6 dims of heads of 4"),
        ("relaxed", "loop/blocks/0/ops/2/by/theta", 0, "by.theta is 0.0, wanted 1e-06"),
        ("gemma", "loop/blocks/0/ops/4/by/scaling/factor", 0, "by.scaling.factor is 0.0"),
        ("gemma", "loop/blocks/0/ops/4/by/scaling/high_freq_factor", 1, "low_freq_factor is not below"),
        ("relaxed", "loop/blocks/0/ops/4/heads", 3, "0.q_turned is [N, 8], wanted [N, 12]"),
        ("relaxed", "loop/blocks/0/ops/4/kv_heads", 3, "heads are 2, no multiple of kv_heads, 3"),
        ("relaxed", "loop/blocks/0/ops/4/kv_heads", 0, "kv_heads is 0"),
        ("relaxed", "loop/blocks/0/ops/4/cache", 1, "cache is 1, wanted 0: they are numbered as they come"),
        ("relaxed", "loop/blocks/0/ops/4/k", None, "has no k and v"),
        ("relaxed", "loop/blocks/0/ops/4/mask", "both", "mask is both, and it has a cache"),
        ("hierarchical", "loop/blocks/1/outputs/0", "state", "block 1 op"),
        ("shared", "loop/blocks/0/ops/4/window", 33, "window is 33, wanted 1 to 32"),
        ("shared", "loop/blocks/0/ops/4/slot", "own", "block has caches of slot first and own"),
        ("relaxed", "epilogue/ops/2/slot", "first", "slot is first, and it has no cache that the loop's depths"),
        ("routed", "loop/blocks/0/ops/4/slot", "first", "b.0.qkv_proj is a matrix for each depth, and makes K/V"),
        ("hierarchical", "loop/blocks/1/ops/5/window", 3, "block 1 has other caches than block 0"),
        ("experts", "loop/blocks/0/ops/12/top", 5, "takes the best 5 of 4 experts"),
        ("gemma", "head/ops/2/cap", 0, "head op 2 (softcap, capped): cap is 0.0"),
        ("relaxed", "loop/blocks/0/ops/4/scale", 1e38, "scale is 1e+38"),
        ("routed", "routing/capacity", [1.0], "routing.capacity has 1 shares, wanted one for each of 3 depths"),
        ("routed", "routing/capacity/1", 1.5, "routing.capacity is 1.5"),
        ("routed", "routing/temperature", 0, "routing.temperature is 0.0"),
        ("routed", "routing/alpha", -1e300, "routing.alpha is -1e+300"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused(kind: str, path: str, value: object, wanted: str) -> None:
    found = first_problem(kind, path, value)
    assert wanted in found
    assert "\n" not in found
    assert len(found) < 400


def test_an_encoder_needs_no_head() -> None:
    json = json_of(PROGRAMS["encoder"]())
    json["head"] = STATES
    del json["weights"]["norm"]
    json["weights"]["embed"]["bias"] = False
    program = read(json)
    assert program.encoder
    assert list(problems(program)) == []
    assert output_size(program) == program.width
    assert program.token_types == 2


def test_a_model_has_a_layer() -> None:
    empty = program({}, lambda w: "embedded", [lambda w: ("state",)])
    assert list(problems(empty)) == ["the number of layers that are applied is 0, wanted 1 to 16384"]


def test_a_router_is_for_several_depths_of_one_state() -> None:
    routing = PROGRAMS["routed"]().routing
    once, two = (structs.replace(PROGRAMS[name](), routing=routing) for name in ("twice", "adapted"))
    once = structs.replace(once, routing=structs.replace(once.routing, capacity=()))
    assert list(problems(once)) == ["routing is for models of several depths, this one has 1"]
    assert list(problems(two)) == ["routing is for loops of one carry, this one has 2"]
    whole = structs.replace(PROGRAMS["encoder"](), routing=structs.replace(routing, capacity=()))
    assert list(problems(whole)) == [
        "routing is for models whose attention has caches, and this one's has none"
    ]


@pytest.mark.parametrize("make", PROGRAMS.values(), ids=PROGRAMS)
def test_a_program_with_anything_changed_is_refused_or_as_good(make: Callable[[], Program]) -> None:
    """Every number, name and list of it, one at a time: a problem in a line, or a program that can be taken apart."""
    json = json_of(make())
    refused = sound = 0
    changes = list(mutants(json))
    for holder, key, value in changes + list(transplants(changes)):
        usual, holder[key] = holder[key], value
        try:
            program = msgspec.convert(json, Program)
        except msgspec.ValidationError:
            continue
        finally:
            holder[key] = usual
        if (problem := next(problems(program), None)) is None:
            sound += 1
            take_apart(program)
            continue
        refused += 1
        assert "\n" not in problem
        assert len(problem) < 600
    assert refused > sound > 0


def take_apart(program: Program) -> None:
    """All that is made of a program: none of it may fail for one without problems."""
    with np.errstate(all="ignore"):  # an exp of an exp may be larger than a float32
        model = Model(program, random_tensors(program.weights))
        assert model.run([1, 2, 3]).shape == (3, program.vocab_size)
    carries = [carry.width for carry in program.loop.carries]
    for stage in (program.epilogue, *program.loop.blocks):
        assert all(size >= 1 for size in sizes(stage, carries, program.weights).values())
    sizes(program.head, head_sizes(program), program.weights)
    for block in program.loop.blocks:
        fill = keys_values(block)
        found = sizes(fill, carries, program.weights)
        for op in (op for op in block.ops if getattr(op, "cache", None) is not None and hasattr(op, "k")):
            at = 2 * op.cache
            assert [found[y] for y in fill.outputs[at : at + 2]] == [op.kv_heads * op.head_dim] * 2
        if program.shares_kv:
            sizes(reading(block), carries, program.weights)
    if any(isinstance(op, AttendTwice) for block in program.loop.blocks for op in block.ops):
        with pytest.raises(ValueError, match="attend_twice reads the K/V of two depths"):
            whole(program)
        return
    stage = whole(program)
    assert sizes(stage, [IDS] * len(stage.inputs), program.weights)[stage.outputs[0]] == program.vocab_size
    twin, sources = unrolled(program)
    carries = [carry.width for carry in twin.loop.carries]
    found = sizes(twin.prologue, [IDS] * len(stage.inputs), twin.weights)
    assert [found[value] for value in twin.prologue.outputs] == carries
    assert sizes(twin.head, carries, twin.weights)[twin.head.outputs[0]] == program.vocab_size
    assert set(sources) == {part for _, tensor in tensors(twin.weights) for part in tensor.parts}
