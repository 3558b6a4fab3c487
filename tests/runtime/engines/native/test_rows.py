"""A row's bits depend on nothing but the row: for every op and storage, in any company and on any kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from lanes_files import QUANTS, stored
from programs import PROGRAMS
from random_programs import random_program

from edgeloop.runtime.decode.sequential import SequentialDecoder
from edgeloop.runtime.engines.backend import Lanes
from edgeloop.runtime.engines.native.engine import NativeBackend
from edgeloop.runtime.engines.native.file import NAME, write_lanes
from edgeloop.runtime.engines.native.library import Activations
from edgeloop.runtime.engines.packed import PackedLanes
from edgeloop.runtime.errors import EdgeloopError
from edgeloop.runtime.model.program import Program

F32 = npt.NDArray[np.float32]
TOKENS = 21
KERNELS = ("portable", "avx2", "avx512")
CASES: dict[str, Callable[[], Program]] = {
    **{name: made for name, made in PROGRAMS.items() if not made().encoder},
    **{f"random-{seed}": lambda seed=seed: random_program(seed) for seed in range(8)},
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[Program, int]:
    program = CASES[request.param]()
    if program.encoder:
        pytest.skip("an encoder has no tokens before others")
    return program, list(CASES).index(request.param)


@pytest.fixture
def opened(lane_engine: Path, tmp_path: Path) -> Iterator[Callable[..., NativeBackend]]:
    """``opened(program, "int4", threads=2)``: a backend of random weights."""
    engines: list[NativeBackend] = []

    def get(program: Program, quant: str, **asked: object) -> NativeBackend:
        path = tmp_path / f"{quant}-{NAME}"
        if not path.exists():
            write_lanes(path, program, *stored(program, quant))
        engines.append(NativeBackend(program, path, **asked))  # type: ignore[arg-type]
        return engines[-1]

    yield get
    for engine in engines:
        engine.close()


def texts(program: Program, count: int = 3) -> npt.NDArray[np.int64]:
    random = np.random.default_rng(3)
    length = min(TOKENS, program.context_length)
    return random.integers(0, program.vocab_size, (count, length), dtype=np.int64)


def alone(backend: NativeBackend, ids: npt.NDArray[np.int64], cuts: list[int]) -> F32:
    """Logits of every token of a text that is run by itself, cut into calls of so many tokens."""
    loop = SequentialDecoder(backend, backend.new_cache(1, len(ids)))
    found, start = [], 0
    for size in cuts:
        found.append(loop.prompt(ids[start : start + size], rows="all").copy())
        start += size
    assert start == len(ids)
    return np.concatenate(found)


def together(backend: NativeBackend, ids: npt.NDArray[np.int64], packed: bool) -> F32:
    """The same of the first of several texts, of which each call has the next tokens: one, four, none."""
    program, (count, length) = backend.program, ids.shape
    cache = backend.new_cache(count, length)
    done, found, turn = np.zeros(count, np.int32), list[F32](), 0
    while done[0] < length:
        tokens = np.minimum(np.roll([1, 4, 0], turn)[:count], length - done).astype(np.int32)
        turn += 1
        widest = max(int(tokens.max()), 1)
        positions = done[:, None] + np.arange(widest)
        given = np.stack([np.resize(ids[s, done[s] :], widest) if done[s] < length else ids[s, :1].repeat(widest)
                          for s in range(count)])  # fmt: skip

        def lanes(depth: int, slots: int, done=done, tokens=tokens, positions=positions) -> Lanes:  # type: ignore[no-untyped-def]
            size, at = count * slots, [s * slots + min(depth, slots - 1) for s in range(count)]
            arrays = [np.zeros(size, np.int64), np.zeros(size, np.int32), np.zeros(size, np.int32)]
            places = np.zeros((size, widest), np.int64)  # noqa: B023
            for array, values in zip(arrays, (depth, done, tokens), strict=True):
                array[at] = values
            places[at] = np.minimum(positions, program.context_length - 1)
            if packed:
                return PackedLanes(*arrays, places, shared=program.shares_kv, fresh=depth == 0)
            return Lanes(*arrays, places)

        def spread(state: F32, slots: int, depth: int, tokens=tokens) -> F32:  # type: ignore[no-untyped-def]
            if packed or slots == 1:
                return state
            wide = np.zeros((count * slots, *state.shape[1:]), np.float32)
            wide[[s * slots + min(depth, slots - 1) for s in range(count)]] = state
            return wide

        valid = np.arange(widest) < tokens[:, None]
        rows = given[valid][:, None] if packed else given
        state = backend.prologue(rows, lanes(0, 1), cache).copy()
        slots = cache.slots
        for depth in range(program.depths):
            out = backend.block(spread(state, slots, depth), lanes(depth, slots), cache)
            if not packed and slots > 1:
                out = out[[s * slots + min(depth, slots - 1) for s in range(count)]]
            state = out.copy()
        first = np.arange(tokens[0])
        if len(first):
            logits = backend.epilogue(state, first, lanes(program.depths - 1, 1), cache)
            found.append(logits.copy())
        elif len(program.caches("epilogue")):
            backend.epilogue(state, np.zeros(0, np.int64), lanes(program.depths - 1, 1), cache)
        done += tokens
    return np.concatenate(found)


def equal(found: F32, wanted: F32, what: str) -> None:
    __tracebackhide__ = True
    assert np.isfinite(wanted).all()
    assert found.tobytes() == wanted.tobytes(), f"{what}: up to {np.abs(found - wanted).max()}"


def test_any_chunks_company_and_threads(
    opened: Callable[..., NativeBackend], case: tuple[Program, int]
) -> None:
    program, number = case
    ids = texts(program)
    quant, length = QUANTS[number % len(QUANTS)], ids.shape[1]
    activations = list(Activations)[number // len(QUANTS) % 2]
    backend = opened(program, quant, threads=1, activations=activations)
    wanted = alone(backend, ids[0], [length])
    random = np.random.default_rng(number)
    for threads in (1, 2, 5):
        other = opened(program, quant, threads=threads, activations=activations)
        equal(alone(other, ids[0], [1] * length), wanted, f"{threads} threads, token by token")
        cuts, left = list[int](), length
        while left:
            cuts.append(int(random.integers(1, left + 1)))
            left -= cuts[-1]
        equal(alone(other, ids[0], cuts), wanted, f"{threads} threads, {cuts}")
        for packed in (False, True):
            equal(together(other, ids, packed), wanted, f"{threads} threads, packed {packed}, among others")


def test_a_whole_prompt(opened: Callable[..., NativeBackend], case: tuple[Program, int]) -> None:
    """In one call: the logits of its last token, and what a token behind it gets, as stage by stage."""
    program, number = case
    ids = texts(program, 1)[0]
    backend = opened(program, QUANTS[number % len(QUANTS)])
    wanted = alone(backend, ids, [len(ids)])
    decoder = SequentialDecoder(backend, backend.new_cache(1, len(ids)), chunk=7)
    equal(decoder.prompt(ids[:-1]).copy(), wanted[-2:-1], "the last token of a prompt")
    equal(decoder.step(int(ids[-1])).copy(), wanted[-1:], "the token behind it")


@pytest.mark.parametrize("kv_bits", [16, 8, 4])
def test_few_bits_of_k_and_v(
    opened: Callable[..., NativeBackend], case: tuple[Program, int], kv_bits: int
) -> None:
    """A token's K and V are rounded by themselves: in any cut, beside others, with any threads and kernels."""
    program, number = case
    ids, quant = texts(program), QUANTS[number % len(QUANTS)]
    one, two = (opened(program, quant, kv_bits=kv_bits, threads=threads) for threads in (1, 2))
    whole = ids.shape[1]
    wanted = alone(one, ids[0], [whole])
    equal(alone(two, ids[0], [1] * whole), wanted, "token by token")
    equal(alone(one, ids[0], [whole // 3, whole - whole // 3]), wanted, "in two pieces")
    equal(together(two, ids, True), wanted, "among others")
    for kernels in KERNELS:
        try:
            backend = opened(program, quant, kv_bits=kv_bits, kernels=kernels, threads=1)
        except EdgeloopError:
            continue  # this processor has none
        equal(alone(backend, ids[0], [whole]), wanted, kernels)


@pytest.mark.parametrize("kernels", KERNELS)
def test_any_kernels(opened: Callable[..., NativeBackend], case: tuple[Program, int], kernels: str) -> None:
    program, number = case
    ids = texts(program, 1)[0]
    for quant in QUANTS if number < 2 else (QUANTS[number % len(QUANTS)],):
        for activations in Activations:
            wanted = alone(
                opened(program, quant, activations=activations, kernels="portable"), ids, [len(ids)]
            )
            try:
                backend = opened(program, quant, activations=activations, kernels=kernels)
            except EdgeloopError as error:
                pytest.skip(f"this processor has no {kernels}: {error}")
            assert backend.kernels == kernels
            equal(alone(backend, ids, [len(ids)]), wanted, f"{kernels}, {quant}, {activations.name}")


def test_deeper_lanes_are_alone_in_a_call_of_mixed_depths(opened: Callable[..., NativeBackend]) -> None:
    """As depth-pipelined decoding makes them: each lane as it is when it is the only one."""
    program = PROGRAMS["relaxed"]()
    backend = opened(program, "int4", threads=2)
    random, ids = np.random.default_rng(1), texts(program, 1)[0][:9]
    n = program.depths
    state = random.standard_normal((n, 1, program.width)).astype(np.float32)

    def call(first: int, count: int) -> F32:
        loop = SequentialDecoder(backend, backend.new_cache(1, 16))
        loop.prompt(ids)
        depth = np.arange(first, first + count)
        cached = (9 - depth).astype(np.int32)
        lanes = Lanes(depth, cached, np.ones(count, np.int32), cached[:, None].astype(np.int64), first)
        return backend.block(state[first : first + count], lanes, loop.cache).copy()

    together = call(0, n)
    for depth in range(n):
        equal(call(depth, 1)[0], together[depth], f"depth {depth}")
