"""The engine call that a sequence's tokens need next, as data: what the sequence hands to its driver.

Sequences (``sequence.py``) are generators of stage calls. A driver runs each call on an engine and sends the answer
back: ``sequential.py`` those of one sequence alone, ``pipeline.py`` with drafts, ``serve/scheduler.py`` those of many
sequences, put together.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..engines.backend import F32, I64

PROLOGUE, BLOCK, FILL, EPILOGUE = "prologue", "block", "fill", "epilogue"
COPY = "copy"
"""No computation: the K/V rows of ``positions`` in ``depth``'s slot also go into those of all deeper depths."""
WHOLE = "whole"
"""Prologue, every depth and epilogue together, for tokens that no exit rule may stop between. Only drivers that set
``TokenSequence.whole``, or ask for ``whole_step``, get it: for a sequence alone it is quicker, and an engine may have
one call for it."""


@dataclass(slots=True)
class StageCall:
    """One call of ``stage`` at ``depth`` for n rows, behind the ``cached`` tokens that the depth's slot holds.

    ``rows``: ids [n] for PROLOGUE and WHOLE, states [n, D] for BLOCK, FILL and EPILOGUE, none [0, D] for COPY.
    ``positions`` [n] of these tokens in the sequence. ``reads``: of how many of the last rows EPILOGUE and WHOLE give
    logits: 0, 1 or n.

    The answer is states [n, D] for PROLOGUE and BLOCK, logits [reads, V] for EPILOGUE and WHOLE, and empty for FILL
    and COPY. With ``reads`` 0 a driver may send a row of logits all the same. An answer is lent until the driver has
    run the next call of that stage: a sequence copies what it keeps for longer.
    """

    stage: str
    depth: int
    cached: int
    rows: npt.NDArray[Any]
    positions: I64
    reads: int = 1


Calls = Generator[StageCall, F32, None]
"""Calls after which there is nothing to return."""
StageCalls = Generator[StageCall, F32, tuple[F32, int]]
"""Calls of one token, that end with its logits [1, V] and the number of depths that it ran."""
PromptCalls = Generator[StageCall, F32, tuple[F32, I64]]
"""Calls of a text of S tokens, that end with logits [N, V] and the number of depths [S] that each token ran."""


def tokens_from(first: int, count: int) -> I64:
    """Return the positions [count] of neighbouring tokens, of which ``first`` is the earliest."""
    return np.arange(first, first + count)
