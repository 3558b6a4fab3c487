"""What is made of a program computes what the program does."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from model_run import Model, random_tensors, slots, twin_tensors, values
from msgspec import structs
from programs import PROGRAMS

from edgeloop.runtime.engines.reference.attention import by_head
from edgeloop.runtime.engines.reference.lane import Lane
from edgeloop.runtime.errors import UsageError
from edgeloop.runtime.model.checks import problems
from edgeloop.runtime.model.facts import attentions
from edgeloop.runtime.model.ops import Attend, AttendTwice, Linear, reads, weight_fields, with_names, writes
from edgeloop.runtime.model.program import Program
from edgeloop.runtime.model.stored import StoredWeights
from edgeloop.runtime.model.transform import (
    at_depth,
    fitted,
    keys_values,
    reading,
    sharing_kv,
    unrolled,
    whole,
    windowed,
    with_depths,
)

IDS = [3, 1, 4, 1, 5, 9, 2, 6]
EACH = pytest.mark.parametrize("make", PROGRAMS.values(), ids=PROGRAMS)
CACHED = [make for make in PROGRAMS.values() if make.__name__ != "encoder"]
"""An encoder has no cache: it sees a text at once."""
WRITTEN = [make for make in PROGRAMS.values() if make.__name__ != "parallel_loop"]
"""The loop of the other one reads two caches at once."""


def made(make: Callable[[], Program]) -> Model:
    program = make()
    return Model(program, random_tensors(program.weights))


def close(found: np.ndarray, wanted: np.ndarray) -> bool:
    return bool(np.abs(wanted).max() > 0.01) and np.allclose(found, wanted, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("make", CACHED, ids=lambda make: make.__name__)
def test_token_by_token_is_all_at_once(make: Callable[[], Program]) -> None:
    wanted = made(make).run(IDS)
    model = made(make)
    assert close(np.concatenate([model.run(IDS[:3]), *(model.run([token]) for token in IDS[3:])]), wanted)


@pytest.mark.parametrize("make", WRITTEN, ids=lambda make: make.__name__)
def test_the_loop_written_out_is_the_loop(make: Callable[[], Program]) -> None:
    wanted = made(make).run(IDS)
    model = made(make)
    assert close(model.run_stage(whole(model.program), IDS), wanted)


@pytest.mark.parametrize("make", WRITTEN, ids=lambda make: make.__name__)
def test_an_unrolled_twin_is_the_same_model(make: Callable[[], Program]) -> None:
    model = made(make)
    twin, sources = unrolled(model.program)
    assert twin.depths == 1
    assert twin.applied_layers == model.program.applied_layers
    head = [name for op in twin.head.ops for _, name in weight_fields(op)]
    assert list(twin.weights)[: len(head)] == head  # in the same order each time: files follow from it
    assert not any(weight.per_depth for weight in twin.weights.values() if not _experts(weight))
    assert model.program.shares_kv or not list(problems(twin))
    stored = twin_tensors(twin, sources, model.program.weights, model.stored)
    assert close(Model(twin, stored).run(IDS), model.run(IDS))


def _experts(weight: object) -> bool:
    return getattr(weight, "copies", 1) == 4 or getattr(weight, "rows", None) == 3


@EACH
def test_k_and_v_alone_are_those_of_each_layer(make: Callable[[], Program]) -> None:
    """What enters a layer, given as the state, makes the K and V that the layer makes."""
    model = made(make)
    random = np.random.default_rng(1)
    for depth in range(model.program.depths):
        block = model.program.stage("block", depth)
        attends = [op for op in block.ops if isinstance(op, Attend | AttendTwice) and op.cache is not None]
        fill = keys_values(block)
        assert len(fill.outputs) == 2 * len(attends)
        assert all(isinstance(op, Attend | AttendTwice) is False for op in fill.ops)
        carries = [
            random.standard_normal((5, carry.width)).astype(np.float32)
            for carry in model.program.loop.carries
        ]
        own = slots(block)
        lane = Lane(
            StoredWeights(model.program.weights, model.stored, 0), np.arange(5), depth, 0, own, own, {}, 5
        )
        found = values(block, lane, *carries)
        for op, entered in zip(attends, block.layers, strict=False):
            alone = values(fill, lane, found[entered], *carries[1:])
            k, v = (alone[value] for value in fill.outputs[2 * op.cache : 2 * op.cache + 2])
            assert np.array_equal(by_head(k, op.kv_heads), own[op.cache].keys[:, :5])
            assert np.array_equal(by_head(v, op.kv_heads), own[op.cache].values[:, :5])


def test_a_layer_may_be_entered_by_a_part_of_a_matrix() -> None:
    """Whose other parts are its K and V."""
    program = PROGRAMS["adapted"]()
    block = structs.replace(program.loop.blocks[0], layers=("0.q", "0.out"))
    fill = keys_values(block)
    (qkv, *_) = (op for op in fill.ops if isinstance(op, Linear) and "0.v" in op.y)
    assert (qkv.y, qkv.first) == (("0.k", "0.v"), 1)


def test_later_depths_of_shared_k_and_v_make_none() -> None:
    program = PROGRAMS["shared"]()
    first, later = (at_depth(program, depth) for depth in (0, 1))
    assert first == program.loop.blocks[0]
    assert later == reading(first)
    attends = [op for op in later.ops if isinstance(op, Attend)]
    assert [(op.k, op.v, op.cache) for op in attends] == [(None, None, 0), (None, None, 1)]
    there = {*later.inputs, *(value for op in later.ops for value in writes(op))}
    assert not any(value.endswith((".k", ".v", ".k_turned")) for value in there)
    assert all(value in there for op in later.ops for value in reads(op))
    assert [len(op.y) for op in later.ops if isinstance(op, Linear) and "qkv" in op.weight] == [1, 1]


def test_later_depths_read_the_first_ones_k_and_v() -> None:
    """Another K and V in the first depth's slots is another output of the second."""
    model = made(PROGRAMS["shared"])
    model.run(IDS)
    block = at_depth(model.program, 1)
    state = np.ones((1, 8), np.float32)
    before = values(block, model.lane("block", block, 1, 1), state)[block.outputs[0]]
    for slot in model.kept["block", 0][0]:
        slot.values[:] += 1
    after = values(block, model.lane("block", block, 1, 1), state)[block.outputs[0]]
    assert not np.allclose(before, after)


def test_two_weights_of_one_name_in_a_layer_stay_two() -> None:
    """The norms before the MLPs of two layers, where the ops of both are written as one layer's."""
    program = PROGRAMS["gpt"]()
    block = structs.replace(program.loop.blocks[0], layers=())
    renamed = {f"x.{n}": w for n, w in program.weights.items() if n.startswith("b.")}
    ops = [structs.replace(op, **{f: f"x.{n}" for f, n in weight_fields(op)}) for op in block.ops]
    names = {value: f"again/{value}" for op in ops for value in writes(op)}
    ops = [with_names(op, names | {"state": block.outputs[0]}) for op in ops]
    ops = [structs.replace(op, cache=1) if isinstance(op, Attend) else op for op in ops]
    block = structs.replace(block, ops=block.ops + tuple(ops), outputs=(names[block.outputs[0]],))
    program = structs.replace(
        program, loop=structs.replace(program.loop, blocks=(block,)), weights=program.weights | renamed
    )
    model = Model(program, random_tensors(program.weights))
    twin, sources = unrolled(program)
    assert close(
        Model(twin, twin_tensors(twin, sources, program.weights, model.stored)).run(IDS), model.run(IDS)
    )


def test_a_window_of_the_whole_context_is_none() -> None:
    gemma = PROGRAMS["gemma"]()
    assert [op.window for op in attentions(fitted(gemma))] == [4, None, None]
    short = structs.replace(gemma, context_length=4)
    assert [op.window for op in attentions(fitted(short))] == [None] * 3
    assert [op.window for op in attentions(windowed(gemma, 3))] == [3] * 3
    assert [op.window for op in attentions(windowed(gemma, None))] == [None] * 3
    assert windowed(gemma, 3).loop.blocks[0].ops[0] == gemma.loop.blocks[0].ops[0]


def test_depths_share_and_do_not() -> None:
    shared = PROGRAMS["shared"]()
    own = sharing_kv(shared, False)
    assert not own.shares_kv
    assert own.kv_slots == 3
    assert sharing_kv(own, True) == shared
    assert not list(problems(own))


def open_ended(name: str) -> Program:
    program = PROGRAMS[name]()
    return structs.replace(program, loop=structs.replace(program.loop, open_ended=True))


@pytest.mark.parametrize(
    ("name", "depths", "schedule"),
    [
        ("adapted", 1, (0,)),
        ("adapted", 5, (0,) * 5),
        ("positioned", 2, (0, 0)),
        ("gemma", 7, (0,) * 7),
    ],
)
def test_another_number_of_depths(name: str, depths: int, schedule: tuple[int, ...]) -> None:
    program = open_ended(name)
    other = with_depths(program, depths)
    assert not list(problems(other))
    assert other.loop.schedule == schedule
    assert (other.kv_slots, other.weights, other.head) == (depths, program.weights, program.head)
    assert with_depths(other, program.depths) == program


def test_the_last_block_goes_on() -> None:
    """And what the last block does first is not done again."""
    program = PROGRAMS["encoder"]()
    loop = structs.replace(program.loop, schedule=(1, 0), open_ended=True)
    assert with_depths(structs.replace(program, loop=loop), 4).loop.schedule == (1, 0, 0, 0)


@pytest.mark.parametrize("name", ["relaxed", "hierarchical", "routed"])
def test_depths_that_differ_are_as_many_as_there_are(name: str) -> None:
    program = open_ended(name)
    assert with_depths(program, program.depths) == program
    with pytest.raises(UsageError, match=f"loop runs {program.depths} times and no other number"):
        with_depths(program, program.depths + 1)
