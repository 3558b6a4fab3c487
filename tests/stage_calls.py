"""The stage calls of a sequence without an engine, for tests that say what is asked for in which order."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import numpy as np

from edgeloop.runtime.decode.sequence import TokenSequence
from edgeloop.runtime.decode.stage_call import StageCall

Call = tuple[object, ...]


def asked(sequence: TokenSequence, calls: Generator[StageCall, Any, object]) -> list[Call]:
    """(stage, depth, cached, first position, rows, reads) of each call, answered with zeros."""
    width, vocab = sequence.program.width, sequence.program.vocab_size
    found: list[Call] = []
    try:
        call = next(calls)
        while True:
            n = len(call.positions)
            assert call.positions.tolist() == list(range(call.positions[0], call.positions[0] + n))
            found.append((call.stage, call.depth, call.cached, int(call.positions[0]), n, call.reads))
            logits = call.stage in ("epilogue", "whole")
            call = calls.send(np.zeros((call.reads, vocab) if logits else (n, width), np.float32))
    except StopIteration:
        return found


def block(depth: int, cached: int, position: int, n: int = 1) -> Call:
    return ("block", depth, cached, position, n, 1)
