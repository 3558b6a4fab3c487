"""A program run forward in torch on windows of text: what the model says after every depth, with gradients."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from ...runtime.model.program import Program
from ...runtime.model.rotation import Rotation
from ...runtime.model.sizes import head_sizes
from ...runtime.model.transform import at_depth
from .ops import Call, Pair, compute


class Forward:
    """The program of a decoder, at full depth."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self._blocks = [at_depth(program, depth) for depth in range(program.depths)]
        self._head = head_sizes(program)
        self._turns: dict[Rotation, Pair] = {}

    def __call__(self, values: Mapping[str, Tensor], ids: Tensor) -> Iterator[Tensor]:
        """Yield the logits [B, S, V] after each depth, of windows ``ids`` [B, S], each from position 0.

        ``values``: every stored tensor by its name, float32, matrices as ``name.weight`` [N, K].
        """
        program = self.program
        inputs = {"ids": ids, "types": torch.zeros_like(ids)}
        inputs["positions"] = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        call = Call(program.weights, values, self._turns)
        state = compute(program.prologue, call, *(inputs[name] for name in program.prologue.inputs))
        first: dict[int, Pair] = {}
        for depth, block in enumerate(self._blocks):
            state = compute(block, Call(program.weights, values, self._turns, depth, first), *state)
            read = Call(program.weights, values, self._turns, depth)
            (logits,) = compute(program.head, call, *compute(program.epilogue, read, *state))
            yield logits
