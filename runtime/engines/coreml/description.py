"""The part of a model's architecture that a Swift host needs: JSON in the package's metadata, under
``edgeloop.spec``."""

from __future__ import annotations

from msgspec import Struct

from ...model.program import Program


class Specification(Struct, frozen=True, forbid_unknown_fields=True):
    """``hidden_size`` is the width of a state; ``kv`` is shared where depths read the K/V of the first."""

    family: str
    vocab_size: int
    hidden_size: int
    context_length: int
    eos_token_ids: tuple[int, ...]
    kv: str


def specification(program: Program) -> Specification:
    """Return the specification of ``program``."""
    kv = "shared" if program.shares_kv else "per-depth"
    return Specification(
        program.family,
        program.vocab_size,
        program.width,
        program.context_length,
        program.eos_token_ids,
        kv,
    )
