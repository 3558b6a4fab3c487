"""``edgeloop bench``: how far each phase is from what the machine could do, by bytes and operations counted by hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeloop.apps.compare_native import work_of_a_token
from edgeloop.apps.measure import roofs, speed
from edgeloop.apps.measure.limit import LIMIT, MACHINE, ROOFLINE, Least, Limits, Load, Loads
from edgeloop.apps.measure.roofs import FLOAT, Roofs, measured_roofs
from edgeloop.apps.measure.runner import Opened, Runner, Setup, Wrote
from edgeloop.apps.measure.turns import Turns
from edgeloop.runtime.bundle.folder import Bundle
from edgeloop.runtime.errors import EngineError
from edgeloop.runtime.model.weights import Matrix

CommandJson = Callable[..., Any]
MADE = Roofs(
    cache=1 << 20, reads={1 << 19: 100e9, 1 << 22: 10e9}, rates={8: 200e9, 4: 400e9, FLOAT: 50e9}, foreign=0
)
"""A machine of 1 MB of cache."""
FULL = (0.0, 0.0, 1.0)


def bytes_of(loads: list[Load]) -> float:
    return sum(load.bytes for load in loads)


def test_bytes_and_operations_of_a_token(bundle: Path) -> None:
    """Those of matrices as ``edgeloop compare`` counts them; of deltas, K/V and attention by hand."""
    opened = Bundle.open(bundle)
    loads, said = Loads(opened, 32), work_of_a_token(opened)
    program, behind = opened.program, 10
    deltas = 3 * sum(
        delta.rank * (matrix.columns + matrix.parts[part])
        for matrix in program.weights.values()
        if isinstance(matrix, Matrix)
        for part, delta in matrix.deltas.items()
    )  # three depths
    assert deltas
    token = loads.token(behind, FULL, False)
    kv = program.kv_bytes_per_token * behind
    assert sum(load.kv for load in token) == kv
    assert bytes_of(token) - kv == pytest.approx(said["token_bytes"] + 2 * deltas, rel=1e-6)
    matrices = sum(count for load in token for bits, count in load.operations.items() if bits != FLOAT)
    assert matrices == said["token_ops"] + 2 * loads.work.head.row_products
    # 8 layers are run: 1, 2 in each of 3 depths, 1. A query meets a key and a value of 16 numbers in each of 4 heads.
    floats = sum(load.operations.get(FLOAT, 0) for load in token)
    assert floats == 2 * deltas + 8 * 4 * 4 * 16 * behind
    assert bytes_of(Loads(opened, 8).token(behind, FULL, False)) == bytes_of(token) - 3 * kv / 4


def test_tokens_that_leave_read_less(bundle: Path) -> None:
    loads = Loads(Bundle.open(bundle), 32)
    by_stage = {name: bytes_of(each) for name, each in loads.stages(8).items()}
    around = by_stage["prologue"] + by_stage["epilogue"]
    blocks = [by_stage[f"block, depth {n}"] for n in (1, 2, 3)]
    assert bytes_of(loads.token(8, FULL, False)) == pytest.approx(around + sum(blocks))
    some = loads.token(8, (0.5, 0.25, 0.25), False)
    assert bytes_of(some) == pytest.approx(around + blocks[0] + blocks[1] / 2 + blocks[2] / 4)
    looked = loads.token(
        8, (0.5, 0.25, 0.25), True
    )  # logits after depth 1, of half after 2, of a quarter after 3
    assert bytes_of(looked) == pytest.approx(bytes_of(some) + 0.75 * by_stage["epilogue"])


def test_a_prompt_reads_its_weights_once_a_chunk(bundle: Path) -> None:
    loads = Loads(Bundle.open(bundle), 32)
    one, whole = (loads.prompt(tokens, 0) for tokens in (1, 8))
    weights = [sum(load.bytes - load.kv for load in each) for each in (one, whole)]
    assert weights[0] == weights[1]
    head = loads.work.head.row_products * 2
    counted = [
        sum(count for load in each for bits, count in load.operations.items() if bits != FLOAT) - head
        for each in (one, whole)
    ]
    assert counted[1] == 8 * counted[0]


def test_the_lowest_roof_is_the_one() -> None:
    """1 MB in cache and out of it, at 10 and at 100 operations a byte; half of it K/V."""
    small, large = 1 << 18, 1 << 23
    read = Least.of([Load(1e6, 0, small, {4: 1e6})], MADE)
    assert (read.seconds, read.roof) == (pytest.approx(1e-5), "cache bandwidth")
    far = Least.of([Load(1e6, 0.6e6, large, {4: 1e6})], MADE)
    assert (far.seconds, far.roof) == (pytest.approx(1e-4), "memory bandwidth, for K/V")
    busy = Least.of([Load(1e6, 0, large, {4: 1e8, 8: 1e6})], MADE)
    assert (busy.seconds, busy.roof) == (pytest.approx(1e8 / 400e9 + 1e6 / 200e9), "int4 rate")
    both = Least.of([Load(1e6, 0, large, {4: 1e6}), Load(1e6, 0, large, {FLOAT: 2e7})], MADE)
    assert (both.seconds, both.roof) == (pytest.approx(1e-4 + 4e-4), "float rate")
    assert (both.bytes, both.operations) == (2e6, 2.1e7)


def test_a_block_comes_back_sooner_than_the_rest(bundle: Path) -> None:
    """From its second depth on it is read out of a cache that the whole token is too large for."""
    loads = Loads(Bundle.open(bundle), 32)
    once, again = loads.turns(8)
    assert again < once < bytes_of(loads.token(8, FULL, False))
    between = Roofs(int((once + again) / 2), {int(again): 100e9, int(once): 10e9}, {}, 0)
    roof = [Least.of(loads.stages(8)[f"block, depth {n}"], between).roof for n in (1, 2, 3)]
    assert roof == ["memory bandwidth", "cache bandwidth", "cache bandwidth"]


def test_a_share_is_the_least_time_over_the_measured(bundle: Path) -> None:
    opened, setup = Opened.of(Setup(str(bundle), "onnx")), Setup(str(bundle), "onnx")
    runner, loads = Runner(opened, setup, 32), Loads(opened.bundle, 32)
    turns = Turns[Wrote]()
    for ms in (1.0, 2.0, 4.0):
        turns.add(Wrote(ms, (ms,) * 4, (), 0.0, Counter({3: 4}), None))
    limits = Limits(loads, runner, MADE)
    limits.decode(4, 8, turns)
    limits.prefill(8, 0, turns)
    found = limits.found()
    decode, prefill, *machine = found.measures
    least = Least.of(loads.token(8 + 2.5, FULL, False), MADE)
    assert decode.name == f"decode, 4 tokens behind 8: {least.roof}"
    assert decode.value.median == pytest.approx(1000 * least.seconds / 2)
    assert (decode.value.high, decode.value.low) == (
        pytest.approx(1000 * least.seconds),
        pytest.approx(250 * least.seconds),
    )
    assert prefill.name.startswith("prefill, 8 tokens: ")
    assert [m.group for m in machine] == [MACHINE] * 5 + [ROOFLINE] * 2
    at = next(m for m in machine if m.group == ROOFLINE)
    assert at.at == pytest.approx(least.operations / least.bytes)
    assert at.value.median == pytest.approx(least.operations / 2e-3 / 1e9)


@pytest.mark.parametrize("engine", ["native", "onnx"])
def test_bench_says_how_far_each_phase_is(engine: str, bundle: Path, command_json: CommandJson) -> None:
    flags = ("--engine", engine, "-p", "8,16", "-n", 4, "--runs", 1)
    found = command_json("bench", bundle, *flags)
    groups = {
        name: [m for m in found["record"]["measures"] if m["group"] == name]
        for name in (LIMIT, MACHINE, ROOFLINE)
    }
    phases = [measure["name"].partition(":")[0] for measure in groups[LIMIT]]
    assert phases[:4] == [
        "prefill, 8 tokens", "prefill, 16 tokens", "decode, 4 tokens behind 8", "decode, 4 tokens behind 16",
    ]  # fmt: skip
    assert {"block, depth 1", "block, depth 2", "block, depth 3", "epilogue"} <= set(phases)
    assert {m["name"].partition(":")[0] for m in groups[ROOFLINE]} == set(phases)
    assert all(m["value"]["median"] > 0 for group in groups.values() for m in group)
    assert found["limit"] == {m["name"]: m["value"]["median"] for m in groups[LIMIT]}
    assert {"multiplying int8", "multiplying int4", "multiplying floats"} <= {
        m["name"] for m in groups[MACHINE]
    } or (engine == "onnx")


def test_the_machine_is_measured_once_a_run_and_anew_in_each(
    bundle: Path, command_json: CommandJson, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = iter((10e9, 20e9))
    monkeypatch.setattr(
        speed,
        "measured_roofs",
        lambda sizes, threads, cpus: Roofs(1 << 20, {1 << 20: next(rates)}, {}, 0.5, "no library"),
    )
    flags = ("-p", "8,16", "-n", 2, "--runs", 1, "--engine", "onnx")
    for wanted in (10.0, 20.0):
        record = command_json("bench", bundle, *flags)["record"]
        machine = [m for m in record["measures"] if m["group"] == MACHINE]
        assert [m["value"]["median"] for m in machine] == [wanted]
        assert any("other programs took 50% of the cores" in note for note in record["notes"])
        assert any("held to bandwidth alone: no library" in note for note in record["notes"])


def test_what_is_held_to_no_limit_is_said(bundle: Path, command_json: CommandJson) -> None:
    flags = ("-p", 8, "-n", 4, "--runs", 1)
    found = command_json("bench", bundle, *flags, "--decode", "pipelined")
    assert not any(name.startswith("decode") for name in found["limit"])
    assert any("with drafts is held to no limit" in note for note in found["record"]["notes"])
    assert command_json("bench", bundle, *flags, "--engine", "reference")["limit"] == {}


def test_rates_of_this_machine(lane_engine: Path) -> None:
    """Two sizes and the usual ones; a size in between is held to the nearest."""
    found = measured_roofs([100_000, 200_000], 2)
    assert {100_000, 200_000} < set(found.reads)
    assert all(rate > 0 for rate in (*found.reads.values(), *found.rates.values()))
    assert set(found.rates) == {8, 4, FLOAT}
    assert found.reading(110_000) == found.reads[100_000]
    assert found.reading(1e12) == found.reads[max(found.reads)]
    assert (found.place(1), found.place(1e12)) == ("cache", "memory")


def test_without_the_library_there_are_no_matrix_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise EngineError("the lane engine was not built")

    monkeypatch.setattr("edgeloop.apps.predicting.bare_models.bare_model", missing)
    found = measured_roofs([], 1)
    assert (found.rates, found.why) == ({}, "the lane engine was not built")
    assert roofs.measured_roofs([], 1).reads
    read = Least.of([Load(1e6, 0, 1e6, {4: 1e12})], found)
    assert read.roof.endswith("bandwidth")
