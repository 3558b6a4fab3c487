"""``edgeloop bench --decode all`` on an engine that drafts by itself: what drafts are worth, text by text, and why.

Each text is decoded sequentially and pipelined in turn, round by round, so that a machine that is slow for a while is
slow for both; a speed is the median of the rounds' ratios. The first round is a warm-up and not counted; what the
engine learns goes on from text to text, as a session's does. Every token is compared.

Forced acceptance: the benchmark knows the text, and depth 0 is made to predict right and wrong tokens in a seeded
order. What a draft costs is paid all the same.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial

import numpy as np

from ..runtime.bundle.folder import Bundle
from ..runtime.bundle.heads import read_heads
from ..runtime.decode.modes import PIPELINED, Mode, check_mode
from ..runtime.decode.policy_choice import choose_policy
from ..runtime.decode.sampling import SamplingOptions
from ..runtime.decode.sequential import SequentialDecoder
from ..runtime.engines.backend import I64, Backend
from ..runtime.engines.tokens import NO_DRAFTS, Drafting, DraftReport
from ..runtime.timing import Stopwatch
from .bench_decode import FORCED, decode_settings
from .bench_texts import PROMPT, WARM, prompts
from .console import Console
from .measure.efforts import effort_of
from .measure.outcome import Outcome
from .measure.record import Measure
from .measure.turns import Turns, disturbed, take_turns

TEXTS = 12
WHERE_IT_PAYS = Drafting()
GREEDY = SamplingOptions()


@dataclass(frozen=True)
class BothWays:
    """A turn: milliseconds a token sequentially and pipelined, block calls and drafts a token, the share of drafts that
    were right, and the host's share of the time."""

    sequential_ms: float
    pipelined_ms: float
    passes: float
    fed: float
    right: float
    host: float


@dataclass(eq=False)
class DraftText:
    """A prompt [S], how its continuation is chosen and drafted, and what its turns took. ``forced``: the acceptance."""

    name: str
    prompt: I64
    sampling: SamplingOptions
    drafting: Drafting = WHERE_IT_PAYS
    forced: float | None = None
    tokens: I64 = field(default_factory=lambda: np.empty(0, np.int64))
    """The continuation, chosen sequentially."""
    turns: Turns[BothWays] = field(default_factory=Turns)
    other: int = 0
    """Tokens that it would have chosen otherwise, in all rounds."""
    compared: int = 0
    """Tokens that were compared, in all rounds."""

    @property
    def speed(self) -> float:
        """How many times as fast as sequential decoding."""
        return self.median(lambda turn: turn.sequential_ms / turn.pipelined_ms)

    def median(self, figure: Callable[[BothWays], float]) -> float:
        """The median of ``figure`` over the turns that nothing disturbed."""
        return self.turns.estimate(figure).median

    def mean(self, figure: Callable[[BothWays], float]) -> float:
        """Its mean."""
        return self.turns.estimate(figure).mean


def bench_drafts(args: argparse.Namespace, bundle: Bundle, backend: Backend, console: Console) -> Outcome:
    """Measure."""
    policy = choose_policy(bundle.program, read_heads(bundle), bundle.manifest.exits)
    check_mode(Mode(bundle.program, policy, PIPELINED, backend.name, backend.can))
    capacity = max(args.prompt_tokens, PROMPT) + args.tokens
    cache = backend.new_cache(1, capacity)
    decoder = SequentialDecoder(backend, cache, policy, read_heads(bundle))
    texts = [*own_texts(args, bundle), *forced_texts(args, bundle)]
    reports: dict[str, DraftReport] = {}
    with console.progress() as progress:
        found = take_turns(
            {text: partial(run_text, decoder, text, args.tokens, reports) for text in texts},
            lambda turn: turn.sequential_ms / turn.pipelined_ms,
            effort_of(args),
            progress,
        )
    for text, turns in found.items():
        text.turns = turns
    return outcome(args, backend, texts, reports)


def own_texts(args: argparse.Namespace, bundle: Bundle) -> Iterator[DraftText]:
    """The beginnings of paragraphs of ``--text``, or one of random tokens; each greedily and sampled."""
    random = np.random.default_rng(1).integers(0, bundle.program.vocab_size, args.prompt_tokens, np.int64)
    named = prompts(args.text, bundle, TEXTS) if args.text else [("random tokens", random)]
    for sampling in (GREEDY, WARM):
        yield from (DraftText(name, ids, sampling) for name, ids in named)


def forced_texts(args: argparse.Namespace, bundle: Bundle) -> Iterator[DraftText]:
    """A text of random tokens, with each acceptance of ``FORCED``."""
    ids = np.random.default_rng(0).integers(0, bundle.program.vocab_size, args.prompt_tokens, np.int64)
    yield from (DraftText(f"acceptance {share:.1f}", ids, GREEDY, forced=share) for share in FORCED)


def run_text(
    decoder: SequentialDecoder, text: DraftText, tokens: int, reports: dict[str, DraftReport]
) -> BothWays:
    """Decode ``tokens`` tokens once more, sequentially and pipelined; ``reports`` has what the engine has learnt."""
    ms, found = run_once(decoder, text, NO_DRAFTS, tokens)
    if not len(text.tokens):
        text.tokens = found
        text.drafting = forced_drafting(text) if text.forced is not None else WHERE_IT_PAYS
    text.other += int((found != text.tokens).sum())
    pipelined_ms, found = run_once(decoder, text, text.drafting, tokens)
    text.other += int((found != text.tokens).sum())
    text.compared += 2 * tokens
    clock = decoder.clock
    fed, right = clock.drafts, clock.accepted
    once = BothWays(
        ms,
        pipelined_ms,
        clock.block_calls / tokens,
        fed / tokens,
        right / fed if fed else 0.0,
        1 - clock.engine_ns / clock.total_ns,
    )
    if text.forced is None:
        reports["sampled" if text.sampling.temperature else "greedy"] = decoder.drafts()
    return once


def run_once(
    decoder: SequentialDecoder, text: DraftText, drafting: Drafting, tokens: int
) -> tuple[float, I64]:
    """Decode ``tokens`` tokens behind the prompt → milliseconds a token, the tokens."""
    ids = text.prompt
    decoder.reset()
    decoder.prompt(ids[:-1])
    decoder.draft(drafting)
    decoder.choose_by(text.sampling)
    if drafting is not NO_DRAFTS:
        decoder.text(ids)
    found = np.empty(tokens, np.int64)
    token = int(ids[-1])
    decoder.clock.restart()
    watch = Stopwatch()
    for i in range(tokens):
        token = found[i] = decoder.next(token)
    return watch.ms / tokens, found


def forced_drafting(text: DraftText) -> Drafting:
    """Drafts after depth 0, of which the share ``forced`` is right."""
    truth = np.concatenate([text.prompt, text.tokens])
    right = np.random.default_rng(0).permutation(len(truth)) < round((text.forced or 0) * len(truth))
    return Drafting("always", depth=0, known=(truth, ~right))


def summary(text: DraftText) -> dict[str, object]:
    """Return the results of a text for ``--json``."""
    return {
        "text": text.name,
        "temperature": text.sampling.temperature,
        "forced_acceptance": text.forced,
        "acceptance": text.mean(lambda turn: turn.right) if text.mean(lambda turn: turn.fed) else None,
        "drafted": text.mean(lambda turn: turn.fed),
        "passes_per_token": text.mean(lambda turn: turn.passes),
        "sequential_tokens_per_s": 1000 / text.median(lambda turn: turn.sequential_ms),
        "tokens_per_s": 1000 / text.median(lambda turn: turn.pipelined_ms),
        "speed": text.speed,
        "host_share": text.median(lambda turn: turn.host),
        "other_tokens": text.other,
        "tokens": text.compared,
    }


def overall(texts: Sequence[DraftText]) -> dict[str, object]:
    """Return the slowest and the median speed of ``texts``, and how many tokens of how many were others."""
    speeds = [text.speed for text in texts]
    found = [summary(text) for text in texts]
    return {
        "slowest": min(speeds),
        "median": statistics.median(speeds),
        "host_share": statistics.median(text.median(lambda turn: turn.host) for text in texts),
        "other_tokens": sum(text.other for text in texts),
        "tokens": sum(int(str(each["tokens"])) for each in found),
    }


def outcome(
    args: argparse.Namespace, backend: Backend, texts: Sequence[DraftText], reports: Mapping[str, DraftReport]
) -> Outcome:
    """All of it, as data and as tables."""
    kinds = {
        "greedy": [t for t in texts if t.forced is None and not t.sampling.temperature],
        "sampled": [t for t in texts if t.forced is None and t.sampling.temperature],
    }
    measures = []
    for number, text in enumerate(texts):
        name = f"{number + 1}: {text.name}" + (", sampled" if text.sampling.temperature else "")
        rate = text.turns.estimate(lambda turn: 1000 / turn.pipelined_ms)
        speed = text.turns.estimate(lambda turn: turn.sequential_ms / turn.pipelined_ms)
        measures.append(Measure(f"{name}, pipelined", "decoding", "tokens/s", "more", rate))
        measures.append(Measure(f"{name}, pipelined ÷ sequential", "speed", "×", "more", speed))
    return Outcome(
        backend.name,
        {
            "decoding": [summary(text) for text in texts],
            "overall": {kind: overall(chosen) for kind, chosen in kinds.items()},
            "learnt": {kind: asdict(found) for kind, found in reports.items()},
        },
        measures,
        show=lambda console: report(console, texts, kinds, reports),
        settings=decode_settings(args),
        turns=disturbed([text.turns for text in texts]),
    )


def report(
    console: Console,
    texts: Sequence[DraftText],
    kinds: Mapping[str, Sequence[DraftText]],
    reports: Mapping[str, DraftReport],
) -> None:
    """Tables of texts, of calls and of what was learnt."""
    known = reports["greedy"]
    rows = range(1, len(known.costs_ns["block"]) + 1)
    console.table(
        ("µs a call, at best", *(f"#{n} row{'s' * (n > 1)}" for n in rows)),
        [
            (stage, *(f"{ns / 1000:.0f}  {ns / costs[0]:.2f}×" for ns in costs))
            for stage, costs in known.costs_ns.items()
        ]
        + [("threads of the block", *map(str, known.threads))],
    )
    console.table(
        (
            "right, by depth",
            "#in all",
            "#unsure",
            *("#" for _ in range(len(known.by_margin[0]) - 2)),
            "#sure",
        ),
        [
            (f"{kind}: depth {depth + 1}", f"{mean:.2f}", *(f"{odds:.2f}" for odds in margins))
            for kind, found in reports.items()
            for depth, (mean, margins) in enumerate(zip(found.acceptance, found.by_margin, strict=True))
        ],
    )
    console.table(
        ("plan: a draft is fed", "#where it is right in at least"),
        [
            (
                f"behind a token that has run {ran} depths" if ran else "looked up, beside the token before",
                f"{least:.0%}",
            )
            for ran, least in enumerate(known.least)
        ],
    )
    columns = ("#acceptance", "#drafted", "#passes a token", "#tokens/s", "#speed", "#host", "#other tokens")
    for kind, chosen in (*kinds.items(), ("random tokens", [t for t in texts if t.forced is not None])):
        total = overall(chosen)
        last = (
            "slowest, median", "", "", "", "", f"{total['slowest']:.2f}× {total['median']:.2f}×",
            f"{total['host_share']:.0%}", f"{total['other_tokens']} of {total['tokens']}",
        )  # fmt: skip
        console.table((kind, *columns), [*(_line(summary(text)) for text in chosen), last])


def _line(found: dict[str, object]) -> tuple[str, ...]:
    return (
        str(found["text"]),
        "–" if found["acceptance"] is None else f"{found['acceptance']:.2f}",
        f"{found['drafted']:.0%}",
        f"{found['passes_per_token']:.2f}",
        f"{found['tokens_per_s']:.0f}",
        f"{found['speed']:.2f}×",
        f"{found['host_share']:.0%}",
        f"{found['other_tokens']} of {found['tokens']}",
    )
