"""The reference engine behind the depth loop: every kind of program that the tests have."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from model_run import Model, random_tensors, types_of
from msgspec import structs
from programs import PROGRAMS

from edgeloop.runtime.decode.encoding import EncoderText, encode
from edgeloop.runtime.decode.sequential import SequentialDecoder
from edgeloop.runtime.engines.reference.engine import ReferenceBackend
from edgeloop.runtime.errors import UsageError
from edgeloop.runtime.model.ops import Attend
from edgeloop.runtime.model.program import Program

IDS = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3]
EACH = pytest.mark.parametrize("make", PROGRAMS.values(), ids=PROGRAMS)


def engine(program: Program) -> ReferenceBackend:
    return ReferenceBackend(program, random_tensors(program.weights), 0)


def logits(backend: ReferenceBackend, pieces: list[int]) -> np.ndarray:
    if backend.program.encoder:
        whole = encode(backend, [EncoderText(np.array(IDS), types_of(len(IDS)))], logits=True).logits
        assert whole is not None
        return whole[0]
    loop, start, found = SequentialDecoder(backend, backend.new_cache(2, 16), cache_sequence=1), 0, []
    for size in pieces:
        found.append(loop.prompt(np.array(IDS[start : start + size]), rows="all").copy())
        start += size
    return np.concatenate(found)


@EACH
def test_stage_by_stage_it_is_what_the_ops_give(make: Callable[[], Program]) -> None:
    program = make()
    wanted = Model(program, random_tensors(program.weights)).run(IDS)
    np.testing.assert_allclose(logits(engine(program), [10]), wanted, atol=1e-5)


@pytest.mark.parametrize("pieces", [[6, 4], [3, *[1] * 7]])
@pytest.mark.parametrize("make", [make for name, make in PROGRAMS.items() if name != "encoder"])
def test_pieces_are_the_whole(make: Callable[[], Program], pieces: list[int]) -> None:
    backend = engine(make())
    np.testing.assert_allclose(logits(backend, pieces), logits(backend, [10]), atol=1e-5)


@pytest.mark.parametrize("pieces", [[6, 4], [1] * 10])
def test_a_window_in_every_layer_but_of_different_length(
    monkeypatch: pytest.MonkeyPatch, pieces: list[int]
) -> None:
    """What the slots keep is the longest; a layer that sees less does not see it."""

    def narrowed(windows: dict[int, int]) -> Program:
        program = PROGRAMS["twice"]()
        ops = tuple(
            structs.replace(op, window=windows[op.cache % 2]) if isinstance(op, Attend) else op
            for op in program.loop.blocks[0].ops
        )
        block = structs.replace(program.loop.blocks[0], ops=ops)
        return structs.replace(program, loop=structs.replace(program.loop, blocks=(block,)))

    wanted = logits(engine(narrowed({0: 5, 1: 20})), [10])
    monkeypatch.setattr("edgeloop.runtime.engines.kv.SLACK", 1)
    windows = narrowed({0: 3, 1: 5})
    backend = engine(windows)
    assert backend.new_cache(1, 16).rows == 6
    whole = Model(windows, random_tensors(windows.weights)).run(IDS)  # whose slots keep everything
    np.testing.assert_allclose(logits(backend, pieces), whole, atol=1e-5)
    assert np.abs(whole - wanted).max() > 1e-3


def test_what_a_shift_keeps_is_of_the_token_before() -> None:
    backend = engine(PROGRAMS["parallel_loop"]())
    loop = SequentialDecoder(backend, backend.new_cache(1, 16))
    loop.prompt(np.array(IDS[:4]))
    with pytest.raises(UsageError, match="the cache no longer has what it had after 2 tokens"):
        loop.truncate(2)
    loop.sequence.truncate(2)
    with pytest.raises(UsageError, match="2 tokens before the next one, but .* token 4; .*start again"):
        loop.prompt(np.array(IDS[2:3]))
    loop.reset()
    again = loop.prompt(np.array(IDS), rows="all")
    np.testing.assert_allclose(again, logits(backend, [10]), atol=1e-5)
