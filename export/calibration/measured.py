"""What an exit rule achieved on a text: a row of the report, a point of its curves."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Measured:
    """A rule with its thresholds (R − 1), and what they achieved on a text.

    ``mean_depth`` counts depths run, 1 … R. ``full_perplexity``: that of the text at full depth. ``tokens_per_s``
    and ``speed``, relative to full depth where it ran beside it, are None where they were not measured. ``chosen``:
    these thresholds went into the bundle.
    """

    rule: str
    thresholds: tuple[float, ...]
    mean_depth: float
    agreement: float
    perplexity: float
    full_perplexity: float
    tokens_per_s: float | None = None
    speed: float | None = None
    chosen: bool = False
