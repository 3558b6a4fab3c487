"""Sums of products over the inputs of matrices, of which no more than some bytes stay in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

Key = tuple[str, int]
"""A matrix, and the number of its copy."""


class Sums:
    """Σ a bᵀ [K, K] by key. A sum is met once a depth, so the one that was met last is the one to be put away."""

    def __init__(self, files: Path, most_bytes: int) -> None:
        """``files``: how the names of files begin that this object alone writes, reads and removes."""
        self._begin, self._most = files, most_bytes
        self._held: dict[Key, Tensor] = {}
        self._files: dict[Key, Path] = {}
        self._made = 0

    @contextmanager
    def met(self) -> Iterator[None]:
        """Keep what is added in the block in memory until its end."""
        before = set(self._held)
        yield
        for key in sorted(set(self._held) - before):
            if sum(held.nbytes for held in self._held.values()) > self._most:
                self._put_away(key)

    def add(self, key: Key, a: Tensor, b: Tensor) -> None:
        """Add aᵀ b of a and b [n, K] to the sum of ``key``."""
        held = self._fetch(key)
        # numpy's product of a matrix with itself does half of the work, and its others take 6/7 of torch's time here.
        product = torch.from_numpy(a.numpy().T @ b.numpy())
        if held is None:
            self._held[key] = product
        else:
            held.add_(product)

    def take(self, key: Key) -> Tensor | None:
        """Return the sum of ``key`` and forget it; None where nothing was added."""
        found = self._fetch(key)
        self._held.pop(key, None)
        return found

    def _fetch(self, key: Key) -> Tensor | None:
        if key in self._files:
            path = self._files.pop(key)
            self._held[key] = torch.from_numpy(np.load(path))
            path.unlink()
        return self._held.get(key)

    def _put_away(self, key: Key) -> None:
        path = self._begin.with_name(f"{self._begin.name}-{self._made}.npy")
        self._made += 1
        np.save(path, self._held.pop(key).numpy())
        self._files[key] = path
