"""The whole model as one method, as ExecuTorch's stock LLM runners call it: the loop written out, caches inside.

    forward(tokens [1, S] int64, input_pos [1] int64) → logits [1, V] of the last token

A matrix is one module however often it is applied; vectors and deltas of each depth are their own. Caches are buffers
that the method changes: rings of C rows, in which token p is in row p mod C. So a sliding window needs no more rows
than it sees, and a sequence that outgrows the context forgets its oldest tokens instead of failing.

S new tokens, C rows of a cache, K KV heads, d size of a head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ....runtime.engines.backend import F32
from ....runtime.engines.executorch.kinds import Mask, RotaryInput, whole_lanes
from ....runtime.errors import ExportError
from ....runtime.model import ops
from ....runtime.model.program import Program, Stage
from ....runtime.model.rotary import frequencies
from ....runtime.model.rotation import Yarn
from ....runtime.model.sizes import IDS, sizes
from ....runtime.model.transform import whole
from ...lower.xnnpack import LOWERINGS, Lowering, Steps, check
from ...lower.xnnpack_attend import JointRotate
from ...lower.xnnpack_weights import WeightModules, float_activations
from .ring import Attend, Call, Lookup, Ring, Rings, Rotate, Width

MASKED = -1e30
"""The score of a key that is not seen; infinities would be compared by XNNPACK's softmax."""


class RotaryLookup(nn.Module):
    """The tables of one rotation of heads of ``width``: dims that are not rotated have a cosine of 1 and a sine of
    0."""

    def __init__(self, rotary_input: RotaryInput, width: int) -> None:
        super().__init__()
        dims, by = rotary_input.by.dims, rotary_input.by
        each = np.repeat(np.arange(dims // 2), 2) if rotary_input.pairs else np.tile(np.arange(dims // 2), 2)
        first = np.arange(dims) % 2 == 0 if rotary_input.pairs else np.arange(dims) < dims // 2
        found = {"frequency": frequencies(by)[each], "sign": np.where(first, -1, 1)}
        for name, numbers in found.items():
            padded = np.concatenate((numbers, np.zeros(width - dims)))
            self.register_buffer(name, torch.from_numpy(padded.astype(np.float32)))
        self.amplitude = by.scaling.amplitude if isinstance(by.scaling, Yarn) else 1.0
        self.register_buffer("factor", torch.tensor([self.amplitude] * dims + [1.0] * (width - dims)))

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return cos and sin [S, 1, width] at positions [S]."""
        angle = positions.unsqueeze(1).float() * self.get_buffer("frequency")
        cos, sin = torch.cos(angle), torch.sin(angle) * self.get_buffer("sign")
        if self.amplitude != 1:
            cos, sin = cos * self.get_buffer("factor"), sin * self.get_buffer("factor")
        return cos.unsqueeze(1), sin.unsqueeze(1)


class Flat(nn.Module):
    """The whole model. ``rows``: C. ``chunk``: S at most."""

    def __init__(self, program: Program, weights: Mapping[str, Tensor], rows: int, chunk: int) -> None:
        super().__init__()
        self.chunk, held, rings = chunk, WeightModules(program, weights, free=True), Rings(rows)
        lowerings: dict[type, Lowering] = {
            **LOWERINGS, ops.Embed: Lookup, ops.Rotate: Rotate, ops.Attend: rings.attend,
        }  # fmt: skip
        del lowerings[JointRotate]
        body, head = _parted(program)
        given = [IDS] * len(body.inputs)
        known = sizes(body, given, program.weights)
        self.body = Steps(body, given, held, lowerings)
        self.head = Steps(head, [known[value] for value in head.inputs], held, lowerings)
        attends = [module for module in self.modules() if isinstance(module, Attend)]
        self.layers, self.masks = len(attends), dict.fromkeys(module.mask for module in attends)
        found = [module.rotary_input for module in self.modules() if isinstance(module, Rotate)]
        self.widths: list[Width] = list(dict.fromkeys(found))
        self.rotary = nn.ModuleList(RotaryLookup(*each) for each in self.widths)
        self.register_buffer("steps", torch.arange(chunk))
        self.register_buffer("ring", torch.arange(rows))
        heads = attends[0].op.kv_heads if attends else 1
        self.register_buffer("starts", torch.arange(heads).unsqueeze(1) * rows)

    def forward(self, tokens: Tensor, input_pos: Tensor) -> Tensor:
        """Return the logits [1, V] of the last of tokens [1, S] from position input_pos [1] on."""
        rows, count = len(self.get_buffer("ring")), tokens.shape[1]
        positions = input_pos + self.get_buffer("steps")[:count]  # [S]
        at = (self.get_buffer("starts") + positions % rows).flatten()
        cos_sin = {width: table(positions) for width, table in zip(self.widths, self.rotary, strict=True)}
        call = Call(at, cos_sin, self._seen(input_pos, positions, count))
        hosts = {"ids": tokens.view(-1), "positions": positions}
        found = self.body(call, *(hosts[name] for name in self.body.inputs))
        logits: Tensor = self.head(call, *(value[-1:] for value in found))[0]
        return logits

    def _seen(self, start: Tensor, positions: Tensor, count: int) -> dict[Mask, Tensor]:
        """Return the masks [S, C] of ``count`` tokens from position ``start`` [1] on."""
        # Row c holds the newest position up to the call's last that is c modulo C.
        ring = self.get_buffer("ring")
        last = start + (count - 1)
        held = last - (last - ring) % len(ring)  # [C]
        causal, found = (held >= 0) & (held <= positions.unsqueeze(1)), {}
        for mask in self.masks:
            seen = causal
            if mask.window is not None:
                seen = seen & (held > positions.unsqueeze(1) - mask.window)
            found[mask] = torch.where(seen, 0.0, MASKED)
        return found


def check_flat(program: Program) -> None:
    """Raise ExportError for what the whole model as one method does not compute."""
    check(program)
    if program.prefix_lm:
        raise ExportError(
            "the flat layout does not take attend with mask prefix: its hosts cut prompts into pieces, and this "
            "model's see themselves; export it with --layout staged"
        )
    if whole_lanes(program) or not any(program.caches(name) for name in ("prologue", "block", "epilogue")):
        raise ExportError(
            "the flat layout writes token by token, and the model keeps no K/V; export it with --layout staged"
        )


def _parted(program: Program) -> tuple[Stage, Stage]:
    """Return the whole model as two stages: all but its head, and the head, which runs on the last token alone."""
    stage, count = whole(program), len(program.head.ops)
    ahead, head = stage.ops[: len(stage.ops) - count], stage.ops[len(stage.ops) - count :]
    own = {value for op in head for value in ops.writes(op)}
    needed = tuple(dict.fromkeys(value for op in head for value in ops.reads(op) if value not in own))
    given = needed or stage.outputs
    return Stage(stage.inputs, ahead, given), Stage(given, head, stage.outputs)


class UnsavedProgram:
    """The module itself as a program, with float activations; ``close`` empties its caches."""

    def __init__(self, model: Flat) -> None:
        self._model = model

    def logits(self, ids: Sequence[int], start: int) -> F32:
        """Return the logits [V] of the last of the tokens ``ids`` from position ``start`` on."""
        with torch.no_grad(), float_activations(self._model):
            found: F32 = self._model(torch.tensor([list(ids)]), torch.tensor([start]))[0].numpy()
        return found

    def close(self) -> None:
        """Forget all tokens."""
        for module in self._model.modules():
            if isinstance(module, Ring):
                for cache in module.buffers():
                    cache.zero_()
