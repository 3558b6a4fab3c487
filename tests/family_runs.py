"""What a bundle of a family's fixture computes, in the ways that its authors' logits were made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file

from edgeloop.runtime import Session
from edgeloop.runtime.decode.sequential import SequentialDecoder
from edgeloop.runtime.engines.backend import Backend

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
PREFILL = 9


def authors(folder: Path) -> dict[str, npt.NDArray[Any]]:
    """The arrays of a fixture by their names, of its first sequence: ``input_ids`` [S], logits [S, V]."""
    found = load_file(folder / "reference.safetensors")
    return {name: array if name.startswith("hidden") else array[0] for name, array in found.items()}


def full(backend: Backend, ids: I64) -> F32:
    """Logits [S, V] of all tokens at once."""
    return SequentialDecoder(backend, backend.new_cache(1, len(ids))).prompt(ids, "all").copy()


def decoded(backend: Backend, ids: I64, prefill: int = PREFILL) -> F32:
    """Logits [S, V] of some tokens at once, then one by one."""
    loop = SequentialDecoder(backend, backend.new_cache(1, len(ids)))
    parts = [loop.prompt(ids[:prefill], "all").copy()]
    parts += [loop.prompt(ids[i : i + 1]).copy() for i in range(prefill, len(ids))]
    return np.concatenate(parts)


def states(backend: Backend, ids: I64) -> list[F32]:
    """The states [S, D] after each depth."""
    found: list[F32] = []
    loop = SequentialDecoder(backend, backend.new_cache(1, len(ids)))
    loop.observe = lambda depth, state: found.append(state[0].copy())
    loop.prompt(ids, "all")
    return found


def stopped(bundle: Path, engine: str, depth: int, ids: I64) -> F32:
    """Logits [S, V] where every token stops after ``depth``."""
    with Session.open(bundle, engine=engine, exit=f"depth:{depth}") as session:
        return session.logits(ids)


def greedy(session: Session, ids: I64, count: int = 8) -> list[int]:
    """The tokens that follow."""
    return [step.token for step in session.generate(ids.tolist(), max_tokens=count)]
