"""Reads a text on two models side by side, window by window: what one loses against the other after every depth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..engines.backend import F32, I64
from .sequential import SequentialDecoder
from .windows import DepthReader, EndReader

F64 = npt.NDArray[np.float64]
Reader = DepthReader | EndReader


@dataclass(frozen=True)
class Divergence:
    """Sums over the predictions of each window, [windows, R] but ``tokens``, after every depth; [windows, 1] at the end
    alone, where a router decides.

    ``loss`` and ``base_loss``: nats of the text under the model and under the one that it is compared with.
    ``divergence``: KL(base, model) of the next token's distributions, in nats. ``agree``: how often both find the same
    token likeliest. ``accepted`` and ``base_accepted``: how often a model's likeliest token after a depth is the one
    after its last depth, so that a draft read there would be kept.
    """

    tokens: I64
    loss: F64
    base_loss: F64
    divergence: F64
    agree: F64
    accepted: F64
    base_accepted: F64


def diverge(model: SequentialDecoder, base: SequentialDecoder, stream: I64, context: int) -> Divergence:
    """Return how far ``model`` is from ``base`` on ``stream`` [S], S ≥ 2, in disjoint windows of ``context``.

    Both have the same vocabulary and depths, and run every depth, or where a router decides as that of each says. One
    chunk's log-probabilities of every read-out, [R, n, V] float32, are in memory.
    """
    kind = DepthReader if model.backend.program.routing is None else EndReader
    readers = kind(base), kind(model)
    depths = readers[0].depths
    windows = []
    for start in range(0, len(stream) - 1, context):
        targets = stream[start + 1 : start + 1 + context]
        sums = np.zeros((6, depths))
        for reader in readers:
            reader.decoder.reset()
        for at in range(0, len(targets), model.chunk):
            part = targets[at : at + model.chunk]
            sums += _chunk(readers, stream[start + at : start + at + len(part)], part, depths)
        windows.append((len(targets), sums))
    found = np.stack([sums for _, sums in windows], axis=1)
    return Divergence(np.array([tokens for tokens, _ in windows]), *found)


def _chunk(readers: tuple[Reader, Reader], ids: I64, targets: I64, depths: int) -> F64:
    """Return the sums of ``Divergence``, in its order, [6, R] of ids [n], which are followed by targets [n]."""
    sums = np.zeros((6, depths))
    kept: list[list[F32]] = [[] for _ in range(depths)]
    likeliest = np.empty((2, depths, len(ids)), np.int64)

    def keep(depth: int, first: int, logits: F32) -> None:
        found = log_softmax(logits)
        kept[depth].append(found)
        rows = slice(first, first + len(found))
        likeliest[0, depth, rows] = found.argmax(-1)
        sums[1, depth] -= picked(found, targets[rows])

    def compare(depth: int, first: int, logits: F32) -> None:
        found, wanted = log_softmax(logits), kept[depth].pop(0)
        rows = slice(first, first + len(found))
        likeliest[1, depth, rows] = found.argmax(-1)
        sums[0, depth] -= picked(found, targets[rows])
        sums[2, depth] += (np.exp(wanted) * (wanted - found)).sum(dtype=np.float64)

    for reader, visit in zip(readers, (keep, compare), strict=True):
        reader.run(ids, visit)
    sums[3] = (likeliest[0] == likeliest[1]).sum(-1)
    sums[4], sums[5] = ((one == one[-1]).sum(-1) for one in likeliest[::-1])
    return sums


def log_softmax(logits: F32) -> F32:
    """Return the logarithms of the probabilities of logits [n, V]."""
    x = logits - logits.max(axis=-1, keepdims=True)
    y: F32 = x - np.log(np.exp(x).sum(axis=-1, keepdims=True))
    return y


def picked(log_probabilities: F32, targets: I64) -> float:
    """Return the sum of the log-probabilities [n, V] of targets [n]."""
    return float(log_probabilities[np.arange(len(targets)), targets].sum(dtype=np.float64))
