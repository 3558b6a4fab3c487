"""The lane engine against the reference engine: every op, storage and mode; and files that somebody spoiled."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from lanes_files import QUANTS, stored
from programs import PROGRAMS
from random_programs import random_program

from edgeloop.export.bounds import ACTIVATIONS, EXACT, difference
from edgeloop.export.parity import Expected, trace
from edgeloop.runtime.engines.backend import Lanes
from edgeloop.runtime.engines.native import format as records
from edgeloop.runtime.engines.native.engine import NativeBackend
from edgeloop.runtime.engines.native.file import NAME, write_lanes
from edgeloop.runtime.engines.native.library import Activations
from edgeloop.runtime.engines.reference.engine import ReferenceBackend
from edgeloop.runtime.errors import EdgeloopError, UsageError
from edgeloop.runtime.model.program import Program

Opened = Callable[..., tuple[NativeBackend, ReferenceBackend]]


@pytest.fixture
def opened(lane_engine: Path, tmp_path: Path) -> Iterator[Opened]:
    """``opened(program, "int4", kv_bits=16)``: lane engine and reference engine over the same random weights."""
    engines: list[NativeBackend] = []

    def get(program: Program, quant: str = "none", **asked: object) -> tuple[NativeBackend, ReferenceBackend]:
        path, (tensors, group) = tmp_path / f"{len(engines)}-{NAME}", stored(program, quant)
        write_lanes(path, program, tensors, group)
        engines.append(NativeBackend(program, path, **asked))  # type: ignore[arg-type]
        return engines[-1], ReferenceBackend(program, tensors, group)

    yield get
    for engine in engines:
        engine.close()


@pytest.mark.parametrize("quant", QUANTS)
@pytest.mark.parametrize("kind", PROGRAMS)
def test_every_kind_of_program(opened: Opened, kind: str, quant: str) -> None:
    """Every op after every depth, single and packed lanes, mixed depths, filled-in K and V: floats to 1e-4."""
    engine, reference = opened(PROGRAMS[kind](), quant, activations=Activations.FLOAT)
    Expected.of(reference).check("native", engine)


@pytest.mark.parametrize("seed", range(30))
def test_random_programs(opened: Opened, seed: int) -> None:
    quant = QUANTS[seed % len(QUANTS)]
    engine, reference = opened(random_program(seed), quant, activations=Activations.FLOAT)
    Expected.of(reference).check("native", engine)


@pytest.mark.parametrize("quant", QUANTS[1:])
def test_int8_activations_are_those_of_the_reference(opened: Opened, quant: str) -> None:
    """One product of a matrix: what is left is the order in which groups are added."""
    program = PROGRAMS["relaxed"]()
    engine, reference = opened(program, quant)
    reference = reference.with_activations(ACTIVATIONS["lanes"])
    ids = np.arange(7)[None]
    found, wanted = (
        backend.prologue(ids, Lanes.single(0, 0, 7, 0), backend.new_cache(1, 8)).copy()
        for backend in (engine, reference)
    )
    assert difference(found, wanted) < 1e-5
    rounded = Expected.of(reference, ACTIVATIONS["lanes"])
    rounded.check("native", engine)


@pytest.mark.parametrize(
    ("kv_bits", "bound", "bytes_"), [(16, 5e-3, 2 * 4), (8, 0.05, 16 + 4), (4, 0.4, 16 + 2 * 2)]
)
def test_kv_of_fewer_bits(opened: Opened, kv_bits: int, bound: float, bytes_: int) -> None:
    """Near what 32 bits give; and not the same, or it was not there. 4 dims are as 16 in 8 bits, as 32 in 4."""
    program = PROGRAMS["relaxed"]()
    engine, reference = opened(program, kv_bits=kv_bits)
    wanted, found = trace(reference), trace(engine)
    assert (
        EXACT < difference(found.mixed, wanted.mixed) < bound or difference(found.logits, wanted.logits) > 0
    )
    assert difference(found.logits, wanted.logits) < bound
    cache, other = engine.new_cache(1, 8), opened(program)[0].new_cache(1, 8)
    assert cache.used_bytes(5, [5] * 3) * 4 * 4 == other.used_bytes(5, [5] * 3) * bytes_


def test_kv_of_bits_that_there_are_not(opened: Opened) -> None:
    with pytest.raises(UsageError, match="K/V of 3 bits, wanted 32 or 16 or 8 or 4"):
        opened(PROGRAMS["relaxed"](), kv_bits=3)


def test_memory_is_taken_as_slots_fill_up(opened: Opened) -> None:
    engine, _ = opened(PROGRAMS["relaxed"]())
    cache = engine.new_cache(4, engine.program.context_length)
    assert cache.nbytes < 4096
    engine.prologue(np.zeros((1, 3), np.int64), Lanes.single(0, 0, 3, 0), cache)
    state = np.zeros((1, 3, engine.program.width), np.float32)
    engine.block(state, Lanes.single(0, 0, 3, 0), cache)
    assert cache.nbytes > 0


def test_what_a_call_may_not_ask_for(opened: Opened) -> None:
    """One line each, and the engine goes on."""
    engine, _ = opened(PROGRAMS["relaxed"]())
    cache, program = engine.new_cache(1, 8), engine.program
    state = np.zeros((1, 2, program.width), np.float32)
    wrong = {
        "a depth": Lanes.single(program.depths, 0, 2, 0),
        "a slot": Lanes.single(0, 0, 2, 99),
        "room": Lanes.single(0, 7, 2, 0),
        "a position": Lanes(
            np.zeros(1, np.int64),
            np.zeros(1, np.int32),
            np.array([2], np.int32),
            np.array([[0, program.context_length]]),
        ),
    }
    for what, lanes in wrong.items():
        with pytest.raises(EdgeloopError) as caught:
            engine.block(state, lanes, cache)
        assert "\n" not in str(caught.value), what
    with pytest.raises(EdgeloopError):
        engine.prologue(np.array([[0, program.vocab_size]]), Lanes.single(0, 0, 2, 0), cache)
    engine.block(state, Lanes.single(0, 0, 2, 0), cache)


def test_a_closed_engine(opened: Opened) -> None:
    engine, _ = opened(PROGRAMS["relaxed"]())
    cache = engine.new_cache(1, 8)
    engine.close()
    engine.close()
    with pytest.raises(UsageError, match="the engine is closed"):
        engine.prologue(np.zeros((1, 1), np.int64), Lanes.single(0, 0, 1, 0), cache)
    with pytest.raises(UsageError, match="the engine is closed"):
        engine.new_cache(1, 8)


def test_a_spoiled_file_is_an_error_or_other_numbers(lane_engine: Path, tmp_path: Path) -> None:
    """Read by the library alone, as a host without Python does: nothing ends the process."""
    program, path = PROGRAMS["adapted"](), tmp_path / NAME
    write_lanes(path, program, *stored(program, "int4"))
    whole = path.read_bytes()
    start = int(np.frombuffer(whole, records.HEADER, 1)[0]["data_start"])
    random, refused, lines = np.random.default_rng(0), 0, list[str]()
    for turn in range(300):
        data = bytearray(whole)
        for _ in range(1 + turn % 3):
            at = int(random.integers(start if turn % 10 else len(data)))
            data[at] = int(random.choice([0, 1, 0x7F, 0x80, 0xFF, data[at] ^ 1 << random.integers(8)]))
        if turn % 4:
            _with_checksum(data, start)
        path.write_bytes(data[: int(random.integers(len(data)))] if turn % 25 == 0 else data)
        try:
            engine = NativeBackend(program, path)
        except EdgeloopError as error:
            refused += 1
            lines.append(str(error))
            continue
        try:
            cache = engine.new_cache(1, 4)
            state = engine.prologue(np.zeros((1, 2), np.int64), Lanes.single(0, 0, 2, 0), cache)
            state = engine.block(state, Lanes.single(1, 0, 2, 1), cache)
            engine.epilogue(state, np.array([1]), Lanes.single(1, 0, 2, 0), cache)
        except EdgeloopError as error:
            lines.append(str(error))
        finally:
            engine.close()
    assert refused > 100
    assert not [line for line in lines if "\n" in line]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("storage", records.Storage.I4, "a delta of storage 3"),
        ("rank", 1 << 20, "bytes at [0-9]+ are not within the tensors"),
        ("a", -64, "bytes at [0-9]+ are not within the tensors"),
        ("b", 64, "bytes at 64 are not within the tensors"),
    ],
)
def test_a_delta_in_8_bits_that_is_none(
    lane_engine: Path, tmp_path: Path, field: str, value: int, message: str
) -> None:
    """``value`` below 0: from the end of the file."""
    program, path = PROGRAMS["relaxed"](), tmp_path / NAME
    write_lanes(path, program, *stored(program, QUANTS[-1]))
    data = bytearray(path.read_bytes())
    header = np.frombuffer(bytes(data), records.HEADER, 1)[0]
    offset, count = (int(x) for x in header["tables"][records.TableNumber.PARTS])
    parts = np.frombuffer(data, records.PART, count, offset)
    part = np.flatnonzero(parts["rank"])[0]
    parts[field][part] = value if value >= 0 else len(data) + value
    del parts
    _with_checksum(data, int(header["data_start"]))
    path.write_bytes(data)
    with pytest.raises(EdgeloopError, match=message) as caught:
        NativeBackend(program, path).close()
    assert "\n" not in str(caught.value)


def _with_checksum(data: bytearray, start: int) -> None:
    place = records.HEADER.fields["checksum"][1]  # type: ignore[index]
    data[place : place + 4] = bytes(4)
    data[place : place + 4] = zlib.crc32(data[:start]).to_bytes(4, "little")
