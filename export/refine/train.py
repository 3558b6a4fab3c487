"""Training what the codes' error is absorbed by: the loop that says, after every depth, what the float model says.

Minimized is the sum over all depths of KL(float, codes) of the next token's distribution, by Adam, on windows of a text
that begin anywhere. No token of the text is an aim: the float model is, so that nothing new is learned from it. A part
of the text is held back: where the divergence there is not less afterwards, everything stays as it was.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...quant.recipe import Recipe
from ...runtime.engines.backend import I64
from ...runtime.errors import UsageError
from ...runtime.model.program import Program
from ...runtime.model.stored import map_tensors
from ..fitted import TOKENS, WINDOW
from ..stored import Coded, Fitted
from ..target import Progress
from .forward import Forward
from .state import State
from .tuned import Rates, Tuned

BATCH = 4
"""Windows of a step."""
HELD, MOST_HELD = 16, 8
"""Of the text a sixteenth is held back, 8 windows at most and one at least."""
LEAST = 4
"""Windows that a text has to have."""
_SAID = 40
"""How often progress is shown."""


@dataclass(frozen=True)
class Refined:
    """What training has made. ``before``, ``after``: KL(float, codes) in nats after each depth on ``held`` tokens that
    were not trained on; ``fitted`` is what training began with where ``after`` is no less."""

    fitted: Fitted
    before: tuple[float, ...]
    after: tuple[float, ...]
    held: int

    @property
    def gained(self) -> bool:
        """Whether the divergence has fallen, summed over the depths."""
        return sum(self.after) < sum(self.before)


def tokens_of(steps: int, program: Program, fitted: int = TOKENS) -> int:
    """Return how many tokens of a text are read: so many steps', with those that are held back, or the ``fitted``.

    UsageError for steps of a model that cannot be trained.
    """
    if steps and program.routing is not None:
        raise UsageError(
            "a router decides which depths a token of this model runs, and training runs all of them; leave --refine "
            "away"
        )
    window = min(WINDOW, program.context_length)
    return max(fitted, (steps * BATCH + MOST_HELD) * window if steps else 0)


def refine(
    program: Program,
    recipe: Recipe,
    floats: Path,
    codes: Mapping[str, Coded],
    ids: I64,
    steps: int,
    progress: Progress,
    state: State | None = None,
    seed: int = 0,
    rates: Rates | None = None,
) -> Refined:
    """Return what ``steps`` of training on the text ``ids`` [S] make of ``codes``.

    ``floats``: every stored tensor as float32 (``fitted.write_floats``). ``state``: where training is kept, to go on
    with. On a GPU where torch has one (CUDA), else on the processor: the same on the same computer with as many
    threads, and nearly the same on others. UsageError for a text that is too short.
    """
    window = min(WINDOW, program.context_length)
    if len(ids) < LEAST * window:
        raise UsageError(
            f"the text to train with has {len(ids)} tokens, wanted {LEAST * window} at least, and better "
            f"{tokens_of(steps, program)} for {steps} steps; give more text, or leave --refine away"
        )
    held = window * max(1, min(MOST_HELD, len(ids) // window // HELD))
    where = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    text, rest = torch.from_numpy(ids[:-held]), torch.from_numpy(ids[-held:]).view(-1, window).to(where)
    teacher = {
        name: torch.from_numpy(np.array(value)).to(where) for name, value in map_tensors(floats).items()
    }
    training = Training(program, recipe, teacher, codes, rates or Rates())
    before = training.measure(rest)
    done = 0 if state is None else state.load(training.parameters, training.optimizer)
    began, first = time.monotonic(), done
    for step in range(done, steps):
        training.step(windows(text, window, seed, step).to(where), share(step, steps))
        left = (time.monotonic() - began) / (step + 1 - first) * (steps - step - 1)
        if step in (first, steps - 1) or (step + 1) % max(1, steps // _SAID) == 0:
            progress(f"training: step {step + 1} of {steps}, {_minutes(left)} left", (step + 1) / steps)
        if state is not None and step + 1 < steps:
            state.save(step + 1, training.parameters, training.optimizer)
    after = training.measure(rest)
    made = {**codes, **training.tuned.coded(), **training.tuned.floats()}
    gained = sum(after) < sum(before)
    return Refined(made if gained else codes, before, after, held)


class Training:
    """The float model, the one that is trained, and what changes it."""

    def __init__(
        self,
        program: Program,
        recipe: Recipe,
        teacher: Mapping[str, Tensor],
        codes: Mapping[str, Coded],
        rates: Rates,
    ) -> None:
        self.tuned = Tuned(program, recipe, teacher, codes)
        self._forward, self._teacher = Forward(program), teacher
        groups = [(rate, each) for rate, each in self.tuned.groups(rates) if each]
        self._rates = [rate for rate, _ in groups]
        self.parameters = [one.requires_grad_() for _, each in groups for one in each]
        self.optimizer = torch.optim.Adam(
            [{"params": each, "lr": rate} for rate, each in groups], betas=(0.9, 0.999), eps=1e-12
        )

    def step(self, ids: Tensor, share: float) -> None:
        """Change the model by one step on windows ``ids`` [B, S], at ``share`` of the step sizes."""
        with torch.no_grad():
            wanted = [logits.log_softmax(-1) for logits in self._forward(self._teacher, ids)]
        found = self._forward(self.tuned.values(), ids)
        torch.stack(
            [divergence(each, logits) for each, logits in zip(wanted, found, strict=True)]
        ).sum().backward()
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * share
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.tuned.bound()

    def measure(self, ids: Tensor) -> tuple[float, ...]:
        """Return the divergence after each depth, of windows ``ids`` [B, S] one after the other."""
        with torch.no_grad():
            values, total = self.tuned.values(), torch.zeros(self._forward.program.depths, device=ids.device)
            for row in ids.split(1):
                pairs = zip(self._forward(self._teacher, row), self._forward(values, row), strict=True)
                total += torch.stack([divergence(one.log_softmax(-1), other) for one, other in pairs])
        return tuple((total / len(ids)).tolist())


def divergence(wanted: Tensor, logits: Tensor) -> Tensor:
    """Return KL(wanted, softmax(logits)), mean over tokens, of log probabilities and logits [B, S, V]."""
    found = logits.log_softmax(-1).flatten(0, 1)
    return F.kl_div(found, wanted.flatten(0, 1), log_target=True, reduction="batchmean")


def windows(text: Tensor, length: int, seed: int, step: int) -> Tensor:
    """Return the windows [B, length] of ``text`` [S] that ``step`` is made of."""
    generator = torch.Generator().manual_seed((seed << 32) + step)
    starts = torch.randint(0, len(text) - length + 1, (BATCH, 1), generator=generator)
    return text[starts + torch.arange(length)]


def share(step: int, steps: int) -> float:
    """Return the share of the step sizes at ``step``: a short warm-up, then linear to zero, so that codes settle."""
    return min((step + 1) / max(1, steps // 50), (steps - step) / steps)


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds > 90 else f"{seconds:.0f} s"
