"""How many tokens of prompts go into a tick, which all that decode wait for."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..checks import real_number
from ..decode.stage_call import BLOCK, WHOLE
from ..errors import UsageError

CHUNK, CHUNK_ALONE = 32, 128
"""Tokens of prompts in a tick beside other sequences, which wait that long, and without any; and where a bound on the
wait is given, the most that a tick takes."""
_FIRST = 4
"""Tokens of the first chunk under a bound, when nothing has been measured."""
_FORGETS = 0.2
"""How much of what a row was thought to cost goes when one costs less. One that costs more is believed at once."""


def checked_stall(max_stall: float | None) -> float | None:
    """Return ``max_stall``, milliseconds; UsageError unless it is above 0, or None."""
    if max_stall is not None and not 0 < real_number(max_stall, "max_stall") < float("inf"):
        raise UsageError(f"max_stall is {max_stall}, wanted milliseconds above 0")
    return max_stall


@dataclass(slots=True)
class PrefillShare:
    """The tokens of prompts that a tick takes.

    ``max_stall``: milliseconds that prompts may add to the time between two tokens of a sequence; None: no bound but
    ``CHUNK``. Between two tokens a chunk goes through every stage, so its tokens cost a row of each, the block
    ``depths`` times. What that is follows from the chunks before. One token goes through however slow it is.
    """

    depths: int
    max_stall: float | None = None
    _row_ns: dict[str, float] = field(default_factory=dict)
    """By stage: what a row of a chunk costs."""

    def tokens(self, alone: bool) -> int:
        """Return how many tokens a tick takes; ``alone``: there is one sequence."""
        if self.max_stall is None:
            return CHUNK_ALONE if alone else CHUNK
        known = self._row_ns
        if BLOCK not in known and WHOLE not in known:
            return _FIRST
        staged = sum(known[s] * (self.depths if s == BLOCK else 1) for s in known if s != WHOLE)
        each = max(staged, known.get(WHOLE, 0.0))
        return int(min(max(1.0, self.max_stall * 1e6 / max(each, 1.0)), CHUNK_ALONE))

    def took(self, stage: str, rows: int, ns: int) -> None:
        """Note that a call of ``stage`` with ``rows`` rows of prompts took so long."""
        each, known = ns / rows, self._row_ns.get(stage)
        slower = known is None or each >= known
        self._row_ns[stage] = each if slower or known is None else known + _FORGETS * (each - known)
