"""``edgeloop bench --decode all``: what a call with several depths costs, and what pipelined decoding makes of it.

Every way of decoding writes the same texts, token by token, and each step's own choice is compared with the text.
All of them take turns, round by round, so that a machine that is slow for a while is slow for all; a speed is the
median of the rounds' ratios to sequential decoding. The first round is a warm-up and not counted; a run's draft
controller goes on from round to round as a session's does.

Forced acceptance: the benchmark knows the text, and hands the decoder right and wrong drafts in a seeded order. What a
draft costs is paid all the same.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from ..runtime.bundle.folder import Bundle
from ..runtime.bundle.heads import read_heads
from ..runtime.decode.draft_control import DraftController
from ..runtime.decode.modes import PIPELINED, Mode, check_mode
from ..runtime.decode.pipeline import Pipeline
from ..runtime.decode.policy_choice import choose_policy
from ..runtime.decode.sampling import Choose
from ..runtime.decode.sequential import SequentialDecoder
from ..runtime.engines.backend import I64, Backend, Lanes
from ..runtime.engines.kv import KVCache
from ..runtime.timing import Stopwatch
from .bench_texts import PROMPT, Continuation, write_all
from .console import Console, Progress
from .measure.efforts import effort_of
from .measure.interval import Estimate
from .measure.outcome import Outcome
from .measure.record import Measure
from .measure.turns import Effort, Turns, disturbed, take_turns

FORCED = (0.0, 0.5, 0.7, 0.9, 1.0)
REPEATS = 6
"""Calls of a stage in each round."""


@dataclass(frozen=True, eq=False)
class DecodeRun:
    """One way to decode one continuation. Without ``controller`` it is sequential."""

    continuation: Continuation
    name: str
    controller: DraftController | None = None
    draft: Choose | None = None
    forced: float | None = None


@dataclass(frozen=True, eq=False)
class Call:
    """A stage's call with ``rows`` rows."""

    stage: str
    rows: int
    run: Callable[[], object]


@dataclass(frozen=True)
class Once:
    """A turn: milliseconds of a token or a call, and of a way to decode its tokens and drafts.

    ``flips`` are tokens that it would have chosen otherwise.
    """

    ms: float
    tokens: int = 0
    calls: int = 0
    drafts: int = 0
    accepted: int = 0
    flips: int = 0


Found = dict[DecodeRun | Call, Turns[Once]]


def bench_decoding(args: argparse.Namespace, bundle: Bundle, backend: Backend, console: Console) -> Outcome:
    """Measure; UsageError for a model that is not decoded pipelined."""
    program = bundle.program
    policy = choose_policy(program, read_heads(bundle), bundle.manifest.exits)
    check_mode(Mode(program, policy, PIPELINED, backend.name, backend.can))
    capacity = max(args.prompt_tokens, PROMPT) + args.tokens
    decoder = SequentialDecoder(backend, backend.new_cache(1, capacity))
    with console.progress() as progress:
        progress("writing the texts", 0.0)
        known, texts = write_all(args, bundle, decoder)
        rows = [
            row
            for continuation in (known, *texts)
            for row in runs_of(continuation, program.depths, forced=continuation is known)
        ]
        calls = stage_calls(backend, decoder.cache, args.prompt_tokens)
        found = run_rounds(decoder, rows, calls, effort_of(args), progress)
    return outcome(args, backend, rows, calls, found)


def runs_of(continuation: Continuation, depths: int, forced: bool) -> list[DecodeRun]:
    """Sequential, and pipelined with drafts of its own or with forced ones."""
    rows = [DecodeRun(continuation, "sequential")]
    if not forced:
        return [
            *rows,
            DecodeRun(continuation, "pipelined", DraftController(depths), continuation.sampler.choose),
        ]
    for share in FORCED:
        name = f"pipelined, forced acceptance {share:.1f}"
        rows.append(
            DecodeRun(continuation, name, DraftController(depths), forced_draft(continuation, share), share)
        )
    return rows


def forced_draft(continuation: Continuation, share: float) -> Choose:
    """Drafts of which ``share`` are right."""
    ids, choose = continuation.ids, continuation.sampler.choose
    right = np.random.default_rng(0).permutation(len(ids)) < round(share * len(ids))

    def draft(logits: np.ndarray, history: np.ndarray, position: int) -> int:
        token = choose(logits, history, position)
        if position >= len(ids):
            return token
        return int(ids[position]) if right[position] else int(ids[position] + 1) % len(logits)

    return draft


def stage_calls(backend: Backend, cache: KVCache, cached: int) -> list[Call]:
    """The block with 1 … R lanes, a depth each, and the stages around it with 1 and 2 rows."""
    program, random = backend.program, np.random.default_rng(0)
    made = []
    for n in range(1, program.depths + 1):
        state = random.standard_normal((n, 1, program.width)).astype(np.float32)
        if program.shares_kv:  # depth 0 first, then the deeper tokens as one lane
            lanes = [Lanes.single(0, cached, 1, 0), *([Lanes.single(1, cached, n - 1, 0)] if n > 1 else [])]
            states = [state[:1], np.ascontiguousarray(state[None, 1:, 0])]
        else:
            ones, at = np.ones(n, np.int32), np.full(n, cached)
            lanes, states = [Lanes(np.arange(n), at, ones, at[:, None])], [state]

        def block(lanes: list[Lanes] = lanes, states: list[np.ndarray] = states) -> None:
            for lane, state in zip(lanes, states, strict=False):
                backend.block(state, lane, cache)

        made.append(Call("block", n, block))
    for n in (1, 2):
        lane, rows, ids = Lanes.single(0, cached, n, 0), np.arange(n), np.ones((1, n), np.int64)
        last = Lanes.single(program.depths - 1, cached, n, 0)
        state = random.standard_normal((1, n, program.width)).astype(np.float32)

        def prologue(ids: I64 = ids, lane: Lanes = lane) -> None:
            backend.prologue(ids, lane, cache)

        def epilogue(state: np.ndarray = state, rows: I64 = rows, lane: Lanes = last) -> None:
            backend.epilogue(state, rows, lane, cache)

        made += [Call("prologue", n, prologue), Call("epilogue", n, epilogue)]
    return sorted(made, key=lambda call: ("prologue", "block", "epilogue").index(call.stage))


def run_rounds(
    decoder: SequentialDecoder, rows: list[DecodeRun], calls: list[Call], effort: Effort, progress: Progress
) -> Found:
    """All of them in turn."""
    first = rows[1]
    assert first.draft is not None
    assert first.controller is not None
    pipeline = Pipeline(decoder, first.draft, first.controller)
    turns: dict[DecodeRun | Call, Callable[[], Once]] = {call: partial(run_call, call) for call in calls}
    turns |= {row: partial(run_row, decoder, pipeline, row) for row in rows}
    return take_turns(turns, ms_of_turn, effort, progress)


def ms_of_turn(once: Once) -> float:
    """Its milliseconds."""
    return once.ms


def run_call(call: Call) -> Once:
    """Make the call ``REPEATS`` times."""
    watch = Stopwatch()
    for _ in range(REPEATS):
        call.run()
    return Once(watch.ms / REPEATS)


def run_row(decoder: SequentialDecoder, pipeline: Pipeline, row: DecodeRun) -> Once:
    """Decode the run's continuation once more."""
    ids, first = row.continuation.ids, row.continuation.prompt
    choose: Choose = row.continuation.sampler.choose
    pipeline.cancel()
    decoder.reset()
    decoder.prompt(ids[:first])
    if row.controller is not None and row.draft is not None:
        pipeline.controller, pipeline.draft = row.controller, row.draft
        pipeline.begin(ids[:first])
        choose = row.controller.timed(choose)
    decoder.clock.restart()
    flips, watch = 0, Stopwatch()
    for position in range(first, len(ids) - 1):
        token, after = int(ids[position]), position + 1
        logits = pipeline.step(token) if row.controller else decoder.prompt(ids[position:after])
        flips += choose(logits[-1], ids[:after], after) != int(ids[after])
    ms, clock, tokens = watch.ms, decoder.clock, len(ids) - 1 - first
    return Once(ms / tokens, tokens, clock.block_calls, clock.drafts, clock.accepted, flips)


def summary(row: DecodeRun, base: DecodeRun, found: Found) -> dict[str, object]:
    """Return the results of a run for ``--json``; ``base`` is the sequential run of its continuation."""
    turns = found[row]
    tokens, calls, drafts, accepted, flips = (
        sum(getattr(once, name) for once in turns.values)
        for name in ("tokens", "calls", "drafts", "accepted", "flips")
    )
    speed: Estimate = found[base].over(turns, ms_of_turn)
    return {
        "text": row.continuation.name,
        "decode": "sequential" if row.controller is None else "pipelined",
        "forced_acceptance": row.forced,
        "acceptance": accepted / drafts if drafts else None,
        "drafted": drafts / tokens,
        "passes_per_token": calls / tokens,
        "tokens_per_s": 1000 / turns.estimate(ms_of_turn).median,
        "speed": speed.median,
        "speed_interval": [speed.low, speed.high],
        "flips": flips / len(turns.values),
        "tokens": tokens // len(turns.values),
    }


def outcome(
    args: argparse.Namespace, backend: Backend, rows: list[DecodeRun], calls: list[Call], turns: Found
) -> Outcome:
    """All of it, as data and as tables."""
    found, base, measures = [], rows[0], []
    for row in rows:
        base = row if row.controller is None else base
        found.append(summary(row, base, turns))
        name = f"{row.continuation.name}: {row.name}"
        rate = turns[row].estimate(lambda once: 1000 / once.ms)
        measures.append(Measure(name, "decoding", "tokens/s", "more", rate))
        if row is not base:
            speed = turns[base].over(turns[row], ms_of_turn)
            measures.append(Measure(f"{name} ÷ sequential", "speed", "×", "more", speed))
    ms = {(call.stage, call.rows): turns[call].estimate(ms_of_turn).median for call in calls}
    measures += [
        Measure(f"{c.stage}, {c.rows} rows", "a call", "ms", "less", turns[c].estimate(ms_of_turn), at=c.rows)
        for c in calls
    ]
    stages = [{"stage": s, "rows": n, "ms": value, "ratio": value / ms[s, 1]} for (s, n), value in ms.items()]
    return Outcome(
        backend.name,
        {"calls": stages, "decoding": found},
        measures,
        show=lambda console: report(console, rows, ms, found),
        settings=decode_settings(args),
        turns=disturbed(list(turns.values())),
    )


def decode_settings(args: argparse.Namespace) -> dict[str, str]:
    """What a record of ``--decode all`` says of its flags."""
    given = {"prompt-tokens": args.prompt_tokens, "tokens": args.tokens, "threads": args.threads}
    return {name: str(value) for name, value in given.items() if value} | (
        {"text": Path(args.text).name} if args.text else {}
    )


def report(
    console: Console, rows: list[DecodeRun], ms: dict[tuple[str, int], float], found: list[dict[str, object]]
) -> None:
    """Two or three tables."""
    most = max(n for _, n in ms)
    console.table(
        ("ms a call", *(f"#{n} row{'s' * (n > 1)}" for n in range(1, most + 1))),
        [
            (s, *(_cost(ms.get((s, n)), ms[s, 1]) for n in range(1, most + 1)))
            for s in ("prologue", "block", "epilogue")
        ],
    )
    columns = ("#acceptance", "#drafted", "#passes a token", "#tokens/s", "#speed", "#other tokens")
    forced = [r for r in rows if r.continuation is rows[0].continuation]
    named = [(row.name, row, one) for row, one in zip(rows, found, strict=True)]
    console.table(("random tokens", *columns), [_line(n, one) for n, _, one in named[: len(forced)]])
    texts = [
        (f"{row.continuation.name}: {n}" if row.controller is None else f"  {n}", one)
        for n, row, one in named[len(forced) :]
    ]
    if texts:
        console.table(("texts", *columns), [_line(n, one) for n, one in texts])


def _cost(ms: float | None, one: float) -> str:
    return "" if ms is None else f"{ms:.3f}  {ms / one:.2f}×"


def _line(name: str, found: dict[str, object]) -> tuple[str, ...]:
    drafts = found["acceptance"] is not None
    return (
        name,
        f"{found['acceptance']:.2f}" if drafts else "–",
        f"{found['drafted']:.0%}" if drafts else "–",
        f"{found['passes_per_token']:.2f}",
        f"{found['tokens_per_s']:.0f}",
        f"{found['speed']:.2f}×",
        f"{found['flips']:.0f} of {found['tokens']}",
    )
