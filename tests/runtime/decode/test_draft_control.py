"""The draft controller against a fake clock: drafts pay where they can, and are never much slower than none."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest

from edgeloop.export.families.llama_spec import Segment
from edgeloop.runtime.decode import draft_control, pass_runner, pipeline
from edgeloop.runtime.decode.draft_control import DraftController, DraftPlan, WholeTokenController
from edgeloop.runtime.decode.pipeline import Pipeline
from edgeloop.runtime.decode.sequential import SequentialDecoder
from edgeloop.runtime.engines.kv import KVCache
from edgeloop.runtime.engines.reference import CAPABILITIES

TOKENS = 6000
HEAD, ENTER = 300, 100
BLOCK = {"cheap": (1000, 1150, 1350), "measured": (1000, 1300, 1840), "dear": (1000, 1900, 2900)}
"""Nanoseconds of the block by lanes."""


class Clocked:
    """An engine that computes nothing; its calls take time. The logits of a row are the depth that it comes from."""

    name = "clocked"

    def __init__(self, program, block):
        self.program, self.now, self._block = program, 0, block
        self._lanes = None

    can = CAPABILITIES

    def new_cache(self, sequences, capacity, slots=None):
        return KVCache(
            {"prologue": [], "block": [], "epilogue": []}, capacity, capacity, self.program.depths, None, {}
        )

    def prologue(self, ids, lanes, cache):
        self.now += ENTER
        return np.zeros((1, ids.shape[1], self.program.width), np.float32)

    def block(self, state, lanes, cache):
        self.now += self._block[len(lanes.depth) - 1]
        return np.zeros_like(state) + lanes.depth[:, None, None].astype(np.float32)

    def epilogue(self, state, rows, lanes, cache):
        self.now += HEAD + HEAD // 2 * (len(rows) - 1)
        return state.reshape(-1, state.shape[-1])[rows, :1]


def follow(maker, monkeypatch, block, right: Callable[[int], tuple[float, ...]]):
    """Nanoseconds pipelined ÷ sequential, and the controller, for TOKENS tokens; ``right``: position → acceptance."""
    program = maker.program((Segment(layers=1, repeats=3),), context_length=TOKENS + 8)
    engine = Clocked(program, block)
    clock = SimpleNamespace(perf_counter_ns=lambda: engine.now)
    for module in (pipeline, pass_runner):
        monkeypatch.setattr(module, "perf_counter_ns", clock.perf_counter_ns)
    luck = np.random.default_rng(1).random(TOKENS + 16)

    def draft(logits, history, position):
        depth = int(logits[0])
        return int(luck[position] >= right(position)[depth]) if depth < 2 else 0

    loop = SequentialDecoder(engine, engine.new_cache(1, TOKENS + 8))
    controller = DraftController(3)
    decoder = Pipeline(loop, draft, controller)
    loop.prompt(np.zeros(3, np.int64))
    decoder.begin(np.zeros(3, np.int64))
    start = engine.now
    for _ in range(TOKENS):
        decoder.step(0)
    sequential = TOKENS * (ENTER + 3 * block[0] + HEAD)
    return (engine.now - start) / sequential, controller


PATTERNS = {
    "never": lambda p: (0.0, 0.0),
    "seldom": lambda p: (0.3, 0.4),
    "half": lambda p: (0.5, 0.6),
    "mostly": lambda p: (0.8, 0.9),
    "nearly always": lambda p: (0.95, 0.98),
    "always": lambda p: (1.0, 1.0),
    "a judge only": lambda p: (0.0, 1.0),
    "until the middle": lambda p: (0.95, 0.98) if p < TOKENS // 2 else (0.0, 0.0),
    "from the middle": lambda p: (0.0, 0.0) if p < TOKENS // 2 else (0.95, 0.98),
    "in turns": lambda p: (0.95, 0.98) if p // 200 % 2 else (0.0, 0.0),
    "in quick turns": lambda p: (1.0, 1.0) if p // 24 % 2 else (0.0, 0.0),
    "in slow turns": lambda p: (0.9, 0.9) if p // 900 % 2 else (0.1, 0.1),
}


@pytest.mark.parametrize("block", BLOCK.values(), ids=BLOCK)
@pytest.mark.parametrize("right", PATTERNS.values(), ids=PATTERNS)
def test_never_much_slower(maker, monkeypatch, right, block):
    found, _ = follow(maker, monkeypatch, block, right)
    assert found <= 1.05


@pytest.mark.parametrize(
    ("pattern", "block", "at_most"),
    [
        ("always", "measured", 0.72),
        ("nearly always", "measured", 0.8),
        ("mostly", "cheap", 0.75),
        ("until the middle", "measured", 0.92),
        ("from the middle", "measured", 0.96),
    ],
)
def test_faster_where_it_pays(maker, monkeypatch, pattern, block, at_most):
    found, _ = follow(maker, monkeypatch, BLOCK[block], PATTERNS[pattern])
    assert found <= at_most


def test_the_first_look_is_short(maker, monkeypatch):
    """The price of finding out that nothing is right, in tokens."""
    monkeypatch.setitem(globals(), "TOKENS", 40)
    found, controller = follow(maker, monkeypatch, BLOCK["dear"], PATTERNS["never"])
    assert controller.plan == controller.sequential
    assert (found - 1) * 40 <= 5


def test_an_outlier_does_not_decide():
    time = draft_control.Time()
    for sample in (90_000, 100, 100, 50_000, 100, 100):
        time.add(sample)
    assert time.value < 150


def test_the_plan_follows_acceptance_and_clocks():
    for right, plan in ((True, DraftPlan(0)), (False, DraftPlan(2))):
        controller = DraftController(3)
        for _ in range(60):
            controller.saw(0, right)
            controller.saw(1, right)
            for lanes, ns in ((1, 100), (2, 115), (3, 160)):
                controller.passed(lanes, ns, min(lanes, 2), 50, ns + 60)
            controller.token()
        assert controller.plan.depth == plan.depth
        assert (controller.cost(DraftPlan(0)) < controller.cost(controller.sequential)) == right


def test_whole_tokens_are_compared():
    """Tokens that take 80 or 130 instead of 100 when they are drafted."""
    for drafted, share in ((80, 0.9), (130, 0.06)):
        controller, seen = WholeTokenController(3), 0
        for _ in range(600):
            if controller.plan == controller.sequential:
                controller.alone(100)
            else:
                controller.took(drafted)
                seen += 1
            controller.token()
        assert (seen > 600 * share) == (drafted < 100)
