"""Palettized weights: each is one of 16 float16 values, in tables that a few rows of a matrix share.

The format of Apple's Neural Engine (coremltools, "grouped channels"). The values of a table are those with the least
squared error for the weights of its rows: k-means in one dimension, which can be solved exactly. It is solved for a
histogram of the weights, 1024 bins from the smallest to the largest, which is 30 times as fast and has 3% more squared
error than for each weight by itself (normal weights with some outliers).

Where it is known what the matrix is given, indices are found as codes are (``gptq.py``): column by column, the error of
each passed on to those that are left. Neither tables in whose k-means an error weighs its inputs' squares are better
for that (an embedding that is the head as well gets worse), nor such that are fitted again to the indices.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..runtime.model.codec import ENTRIES, Palette
from .gptq import NUMBERS, correction, damped, passed_on, round_columns

F32 = npt.NDArray[np.float32]
F16 = npt.NDArray[np.float16]

_BINS = 1024


def palettize(weight: Tensor, rows: int) -> Palette:
    """Return ``weight`` [N, K] float32 with a table for each ``rows`` of its rows, which divide N."""
    indices = np.empty(weight.shape, np.uint8)
    tables = np.empty((len(weight) // rows, ENTRIES), np.float16)
    for t in range(len(tables)):
        part = slice(t * rows, (t + 1) * rows)
        values = weight[part].numpy()
        tables[t] = _table(values.ravel())
        indices[part] = np.searchsorted(_borders(tables[t].astype(np.float32)), values)
    return Palette(indices, tables)


def fitted_palette(weight: Tensor, rows: int, hessian: Tensor, drift: Tensor | None = None) -> Palette:
    """Return what ``palettize`` does, for inputs whose sum of x xᵀ is ``hessian`` [K, K]; ``drift`` as for ``gptq``."""
    columns = weight.shape[1]
    share = None if drift is None else correction(hessian, drift)
    hessian = damped(hessian)
    order = hessian.diagonal().argsort(descending=True, stable=True)
    upper = passed_on(hessian[order][:, order])
    parts = [
        _fitted(
            part if share is None else torch.addmm(part, part, share),
            rows,
            order,
            upper,
        )
        for part in weight.split(max(1, NUMBERS // columns // rows) * rows)
    ]
    indices, tables = (
        np.concatenate([getattr(part, side) for part in parts]) for side in ("indices", "tables")
    )
    return Palette(indices, tables)


def _fitted(weight: Tensor, rows: int, order: Tensor, upper: Tensor) -> Palette:
    """Return some rows [n, K]; ``order`` [K] of the columns, in which ``upper`` has them."""
    tables = np.stack([_table(part.numpy().ravel()) for part in weight.split(rows)])
    return Palette(_indices(weight, tables, rows, order, upper).numpy(), tables)


def _indices(weight: Tensor, tables: F16, rows: int, order: Tensor, upper: Tensor) -> Tensor:
    """Return the indices [n, K] uint8 of ``weight`` by GPTQ."""
    values = torch.from_numpy(tables.astype(np.float32))
    borders = (values[:, 1:] + values[:, :-1]) / 2
    found = torch.empty(weight.shape[1], len(weight), dtype=torch.uint8)

    def rounded(k: int, now: Tensor) -> Tensor:
        chosen = torch.searchsorted(borders, now.reshape(-1, rows))
        found[k] = chosen.flatten()
        return values.gather(1, chosen).flatten()

    round_columns(weight.T[order], upper, rounded)
    indices = torch.empty_like(found)
    indices[order] = found
    return indices.T.contiguous()


def _table(values: F32) -> F16:
    """Return the 16 values, ascending; where fewer do, the largest repeats."""
    from coremltools._deps import _kmeans1d as kmeans1d  # what coremltools' own palettization calls

    counts, edges = np.histogram(values, _BINS)
    used = counts > 0
    centers = (edges[1:] + edges[:-1])[used] / 2
    found = np.array(kmeans1d.cluster(centers, ENTRIES, weights=counts[used]).centroids, np.float32)
    # The means of the weights themselves, in place of those of the bins.
    nearest = np.searchsorted(_borders(found), values)
    members = np.bincount(nearest, minlength=len(found))
    sums = np.bincount(nearest, values, len(found))
    means = np.where(members > 0, sums / np.maximum(members, 1), found)
    return np.pad(means.astype(np.float16), (0, ENTRIES - len(found)), mode="edge")


def _borders(table: F32) -> F32:
    """Return [k − 1]: the limits below which weights belong to an entry rather than to the next."""
    return np.asarray((table[1:] + table[:-1]) / 2, np.float32)
