"""Stored weights: every store of a matrix reads as the same numbers, in memory that is bounded."""

from __future__ import annotations

import numpy as np
import pytest

from edgeloop.runtime.errors import BundleError
from edgeloop.runtime.model import stored
from edgeloop.runtime.model.stored import StoredWeights
from edgeloop.runtime.model.weights import Matrix

RANDOM = np.random.default_rng(0)
WEIGHTS = {"w": Matrix({"a": 4, "b": 6}, 8)}


def store(kind: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """A matrix [10, 8] as it is stored, and its numbers."""
    if kind in ("float32", "float16"):
        values = RANDOM.standard_normal((10, 8)).astype(kind)
        return {"w.weight": values}, values.astype(np.float32)
    if kind == "palette":
        indices, tables = RANDOM.integers(0, 16, (10, 8), np.uint8), RANDOM.standard_normal((5, 16))
        tables = tables.astype(np.float16)
        values = tables[np.arange(10)[:, None] // 2, indices].astype(np.float32)
        return {"w.indices": indices, "w.tables": tables}, values
    bits = int(kind[3:])
    codes = RANDOM.integers(0, 2**bits, (10, 2, 4), np.uint8)
    scales = RANDOM.random((10, 2)).astype(np.float16)
    values = ((codes.astype(np.float32) - 2 ** (bits - 1)) * scales[..., None]).reshape(10, 8)
    packed = codes if bits == 8 else codes[..., ::2] | codes[..., 1::2] << 4
    return {"w.codes": packed, "w.scales": scales}, values


@pytest.mark.parametrize("kind", ["float32", "float16", "int8", "int4", "palette"])
@pytest.mark.parametrize("kept", [0, 100, 1 << 20])
def test_every_store(monkeypatch: pytest.MonkeyPatch, kind: str, kept: int) -> None:
    monkeypatch.setattr(stored, "_PIECE", 3 * 8)  # rows of 8
    tensors, values = store(kind)
    weights = StoredWeights(WEIGHTS, tensors, 4, kept)
    assert weights.quantized("w") == kind.startswith("int")
    np.testing.assert_array_equal(weights.rows("w", np.array([7, 0, 7])), values[[7, 0, 7]])
    for _ in range(2):
        pieces = list(weights.pieces("w", 4, 10))
        assert [len(piece) for piece in pieces] == [3, 3]
        assert all(piece.dtype == np.float32 for piece in pieces)
        np.testing.assert_array_equal(np.concatenate(pieces), values[4:])
        held = sum(piece.nbytes for piece in weights._kept.values())
        assert held == (0 if kind == "float32" else min(kept // 96, 2) * 96)  # a piece is 96 bytes
    weights.forget()
    assert not weights._kept
    np.testing.assert_array_equal(np.concatenate(list(weights.pieces("w", 0, 10))), values)


def test_tables_that_do_not_go_into_the_rows() -> None:
    tensors, _ = store("palette")
    tensors["w.tables"] = tensors["w.tables"][:3]
    with pytest.raises(
        BundleError, match=r"w\.tables has shape \[3, 16\], wanted a table for every so many of"
    ):
        StoredWeights(WEIGHTS, tensors, 4)
