"""The exit rules of Huginn's authors, written out from their code, against ours on their models.

Their evaluator looks at one token after the other behind a prompt that ran every depth: at its latent states, or at the
logits after each depth. Here both come from runs that stop after a given depth; what decides is written here.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from family_runs import authors

from edgeloop.runtime.session import Session

DEPTHS = 8
NAMES = ("huginn_tiny", "retrofit_llama32", "parcae_diag")
TOKENS = range(4, 14)
Tensor = torch.Tensor
Looked = tuple[int, list[Tensor], list[Tensor]]


def entropy_diff(states: list[Tensor], logits: list[Tensor], threshold: float) -> int:
    before = torch.tensor(100.0)
    for step, row in enumerate(logits):
        p = F.softmax(row, dim=-1)
        entropy = -(p * torch.log(p + 1e-10)).sum()
        if (entropy - before).abs() < threshold:
            return step + 1
        before = entropy
    return len(logits)


def latent_diff(states: list[Tensor], logits: list[Tensor], threshold: float) -> int:
    for step in range(len(logits)):
        if (states[step + 1] - states[step]).norm() / states[step + 1].norm() < threshold:
            return step + 1
    return len(logits)


def kl(states: list[Tensor], logits: list[Tensor], threshold: float) -> int:
    before = torch.full_like(logits[0], 1 / len(logits[0])).log()
    for step, row in enumerate(logits):
        now = F.log_softmax(row, dim=-1)
        if F.kl_div(now, before, reduction="none", log_target=True).sum() < threshold:
            return step + 1
        before = now
    return len(logits)


def argmax_stability(states: list[Tensor], logits: list[Tensor], threshold: float) -> int:
    before, same = -1, 0
    for step, row in enumerate(logits):
        now = int(row.argmax())
        same = same + 1 if now == before else 0
        if same >= threshold:
            return step + 1
        before = now
    return len(logits)


RULES = {
    "kl": (kl, (1e-3, 2e-2, 0.15)),
    "latent": (latent_diff, (0.03, 0.3, 0.6, 0.9)),
    "entropy-diff": (entropy_diff, (1e-3, 1e-2, 0.1)),
    "stable": (argmax_stability, (5, 2, 1)),
}
"""By our name: the authors' rule, and thresholds, of which the first is theirs. Those of kl are below a tiny model's
distance from a uniform prediction, with which theirs compares the first depth, and ours nothing."""


@pytest.fixture(scope="module")
def seen(exported: Callable[..., Path], checkpoint: Callable[[str], Path]) -> Callable[[str], list[Looked]]:
    """For each of some tokens: its place, its states from the loop's input on, and its logits after each depth."""
    made: dict[str, list[Looked]] = {}

    def get(name: str) -> list[Looked]:
        if name not in made:
            ids = authors(checkpoint(name))["input_ids"]
            made[name] = [(at, *look(exported(name), ids, at)) for at in TOKENS]
        return made[name]

    return get


def look(bundle: Path, ids: np.ndarray, at: int) -> tuple[list[Tensor], list[Tensor]]:
    states: list[Tensor] = []
    logits = list[Tensor]()
    for depth in range(1, DEPTHS + 1):
        with Session.open(bundle, engine="reference", depth=DEPTHS, exit=f"depth:{depth}") as session:
            loop = session._start(at + 1)
            loop.prompt(ids[:at])
            if depth == DEPTHS:
                loop.observe = lambda depth, state: states.append(torch.from_numpy(state[0, -1].copy()))
            logits.append(torch.from_numpy(loop.step(int(ids[at]))[0].copy()))
            if depth == DEPTHS:
                states.insert(0, torch.from_numpy(loop.entered[0, -1].copy()))
                wide = session.program.loop.carries[0].width
    return [state[:wide] for state in states], logits


@pytest.mark.parametrize("rule", RULES)
def test_a_token_leaves_where_the_authors_let_it_go(
    exported: Callable[..., Path],
    checkpoint: Callable[[str], Path],
    seen: Callable[[str], list[Looked]],
    rule: str,
) -> None:
    (theirs, thresholds), left = RULES[rule], set()
    for name, threshold in product(NAMES, thresholds):
        ids, text = authors(checkpoint(name))["input_ids"], f"{rule}:{threshold}"
        with Session.open(exported(name), engine="reference", depth=DEPTHS, exit=text) as session:
            for at, states, logits in seen(name):
                loop = session._start(at + 1)
                loop.prompt(ids[:at])
                loop.step(int(ids[at]))
                assert loop.depth == theirs(states, logits, threshold)
                left.add((name, loop.depth))
    assert len(left) > 2 * len(NAMES)
