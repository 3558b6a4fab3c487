"""Runs texts through an encoder: whole, several in a call, the shorter ones padded on the right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..engines.backend import F32, I64, Backend, Lanes
from ..engines.kv import KVCache
from ..errors import UsageError
from ..model.program import Program

BATCH = 16
"""Texts of a call: attention costs their longest length squared, for each of them."""


@dataclass(frozen=True)
class EncoderText:
    """A text as an encoder gets it: ids [S] of its tokens, and the type of each."""

    ids: I64
    types: I64


@dataclass(frozen=True)
class Encoded:
    """B encoded texts: ``states`` [B, S, D], zeros behind a text, and ``tokens`` [B], the number of tokens of each.

    ``logits`` [B, S, V] are those of the model's head, where they were requested; zeros behind a text as well.
    """

    states: F32
    tokens: I64
    logits: F32 | None = None

    @property
    def mean(self) -> F32:
        """The mean state of each text's tokens, [B, D]."""
        found: F32 = self.states.sum(axis=1) / self.tokens[:, None].astype(np.float32)
        return found

    @property
    def first(self) -> F32:
        """The state of each text's first token, [B, D]."""
        return self.states[:, 0]


def check_encoder(program: Program, where: object, wanted: bool) -> None:
    """Raise UsageError where a decoder is asked to encode (``wanted``), or an encoder for what only a decoder can
    do."""
    if program.encoder and not wanted:
        raise UsageError(f"{where} is an encoder, which continues no text: use edgeloop encode")
    if wanted and not program.encoder:
        raise UsageError(f"{where} is a decoder, whose tokens see no later ones: use edgeloop run")


def encode(
    backend: Backend, texts: Sequence[EncoderText], depth: int | None = None, logits: bool = False
) -> Encoded:
    """Return ``texts`` after ``depth`` depths, by default all; with ``logits`` also the head's output.

    UsageError for a depth that the model does not have, and for logits of a model without a head.
    """
    program = backend.program
    depths = program.depths if depth is None else depth
    if not 1 <= depths <= program.depths:
        raise UsageError(f"depth is {depths}, wanted 1 to {program.depths}, which the model has")
    if logits and not program.head.ops:
        raise UsageError("logits of a model that has no head: it gives states only")
    tokens = np.array([len(text.ids) for text in texts], np.int64)
    # The first carry is what layers work on, whatever else goes from depth to depth.
    found = np.zeros((len(texts), int(tokens.max()), program.loop.carries[0].width), np.float32)
    given = np.zeros((*found.shape[:2], program.vocab_size), np.float32) if logits else None
    order = np.argsort(
        tokens, kind="stable"
    )  # texts of a call are about as long: padding takes time as tokens do
    for start in range(0, len(texts), BATCH):
        part = order[start : start + BATCH]
        state, lanes, cache = _call(backend, [texts[i] for i in part], depths)
        valid = np.arange(found.shape[1]) < tokens[part, None]
        rows, places = np.flatnonzero(valid[:, : state.shape[1]]), np.nonzero(valid)
        at = part[places[0]], places[1]
        found[at] = state.reshape(-1, state.shape[2])[rows, : found.shape[2]]
        if given is not None:
            given[at] = backend.epilogue(state, rows, lanes, cache)
    return Encoded(found, tokens, given)


def _call(backend: Backend, texts: Sequence[EncoderText], depths: int) -> tuple[F32, Lanes, KVCache]:
    """Return the state [B, S, D] of ``texts`` after ``depths`` depths in one call, and its lanes and caches."""
    tokens = np.array([len(text.ids) for text in texts], np.int32)
    batch, length = len(texts), int(tokens.max())
    ids, types = np.zeros((2, batch, length), np.int64)
    for row, text in enumerate(texts):
        ids[row, : tokens[row]], types[row, : tokens[row]] = text.ids, text.types
    positions = np.tile(np.arange(length), (batch, 1))
    lanes = Lanes(np.zeros(batch, np.int64), np.zeros(batch, np.int32), tokens, positions, types=types)
    cache = backend.new_cache(batch, length)  # an encoder has none: it holds what engines prepare for a call
    state = backend.prologue(ids, lanes, cache)
    for depth in range(depths):
        state = backend.block(state, lanes.at(depth, 0), cache)
    return state, lanes.at(depths - 1, 0), cache
