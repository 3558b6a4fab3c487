"""The calls by which an encoder is compared: texts of several lengths in one call, each whole, with padding behind
it."""

from __future__ import annotations

import numpy as np

from ..runtime.engines.backend import F32, I32, I64, Backend, Lanes
from ..runtime.model.program import Program

LENGTHS = (11, 7, 1)


def whole_texts(backend: Backend, random: np.random.Generator) -> tuple[list[F32], F32, F32]:
    """Return, of the valid rows, the state after each depth, the head's output, and a call with a text at each
    depth."""
    program = backend.program
    tokens = np.minimum(LENGTHS, program.context_length).astype(np.int32)
    ids, types = some_tokens(program, random, (len(tokens), int(tokens.max())))
    per_depth, given = through(backend, ids, types, tokens)
    mixed = _lanes(np.arange(program.depths), np.resize(tokens, program.depths))
    shape = (*mixed.positions.shape, program.width)
    state = random.standard_normal(shape).astype(np.float32)
    found = backend.block(state, mixed, backend.new_cache(*shape[:2]))
    return per_depth, given, found[_valid(mixed)]


def some_tokens(program: Program, random: np.random.Generator, shape: tuple[int, int]) -> tuple[I64, I64]:
    """Return random ids and types of ``shape``."""
    ids = random.integers(0, program.vocab_size, shape, dtype=np.int64)
    return ids, random.integers(0, max(program.token_types, 1), shape, dtype=np.int64)


def through(backend: Backend, ids: I64, types: I64, tokens: I32) -> tuple[list[F32], F32]:
    """Return the valid rows of ids, types [B, S], ``tokens`` [B] of which are valid, after each depth and after the
    head."""
    cache, lanes = backend.new_cache(*ids.shape), _lanes(np.zeros(len(tokens), np.int64), tokens, types)
    valid, per_depth = _valid(lanes), []
    state = backend.prologue(ids, lanes, cache)
    for depth in range(backend.program.depths):
        state = backend.block(state, lanes.at(depth, 0), cache)
        per_depth.append(state[valid])
    last = lanes.at(backend.program.depths - 1, 0)
    return per_depth, backend.epilogue(state, np.flatnonzero(valid), last, cache).copy()


def _lanes(depths: I64, tokens: I32, types: I64 | None = None) -> Lanes:
    """Return lanes that begin with their first token."""
    positions = np.tile(np.arange(tokens.max()), (len(tokens), 1))
    return Lanes(depths, np.zeros_like(tokens), tokens, positions, types=types)


def _valid(lanes: Lanes) -> np.ndarray:
    """Return [B, S]: whether it is a token, not padding."""
    return np.arange(lanes.positions.shape[1]) < lanes.tokens[:, None]
