"""``edgeloop bench BUNDLE``: reading and writing over lengths of prompts and contexts, and where the time goes."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

from ...runtime.errors import UsageError
from ..console import Console
from ..machine import usable_threads
from ..quantities import bundle_bytes
from .efforts import effort_of
from .interval import Estimate, estimate
from .limit import ENGINES, Limit, Limits, Loads
from .outcome import Outcome
from .record import Measure
from .roofs import measured_roofs
from .runner import Opened, Runner, Setup, Wrote
from .setups import setup_of
from .stages import stage_measures
from .startup import startup_measures
from .turns import Turns, disturbed, take_turns

Key = tuple[str, str, int, int]
"""Kind (text, depth or exit), its name, tokens of the prompt, tokens before it."""
STAGE_ROUNDS, FRESH_ROUNDS = 20, 3
"""Rounds of stages, and of fresh processes of each kind, at most."""


def measure_speed(args: argparse.Namespace, console: Console) -> Outcome:
    """Measure what ``args`` describes; UsageError where it does not fit the context."""
    setup = setup_of(args)
    prompts, contexts, tokens = args.prompt_tokens, args.contexts, args.tokens
    opened = Opened.of(setup)
    program = opened.bundle.program
    wanted, capacity = max(prompts) + max(contexts) + tokens, args.context or program.context_length
    if not wanted <= capacity <= program.context_length:
        raise UsageError(
            f"{wanted} tokens in a context of {capacity}, and the model's is {program.context_length}: "
            "choose fewer --prompt-tokens and --tokens, or another --context"
        )
    runners = _runners(args, opened, setup, capacity)
    turns: dict[Key, Callable[[], Wrote]] = {}
    for (kind, name), runner in runners.items():
        every = kind == "text"
        for behind in contexts if every else contexts[:1]:
            for prompt in prompts if every else prompts[:1]:
                turns[kind, name, prompt, behind] = partial(
                    runner.run, runner.text(prompt), tokens, runner.text(behind, 1)
                )
    with console.progress() as progress:
        progress("starting fresh processes", 0.0)
        fresh, series, started = startup_measures(
            setup, prompts[0], tokens, effort_of(args, FRESH_ROUNDS, warm=0)
        )
        found = take_turns(
            turns,
            lambda wrote: wrote.token_ms,
            effort_of(args),
            lambda step, part: progress(step, 0.1 + 0.8 * part),
        )
        progress("stage by stage", 0.9)
        stages, staged = stage_measures(opened, setup, prompts[0], effort_of(args, STAGE_ROUNDS))
        progress("the limits of this machine", 0.98)
        limit = _limit(opened, setup, runners["text", ""], prompts[0], tokens, found, staged)
    first = found["text", "", prompts[0], contexts[0]]
    energy, note = _energy(first, runners["text", ""])
    measures = [
        *_rates(found, tokens), *_tokens(first), *_depths(first), *stages, *_policies(found),
        *_quality(args, opened), *fresh, *energy, *limit.measures,
    ]  # fmt: skip
    return Outcome(
        opened.backend.name,
        {
            **_numbers(first, prompts[0], tokens, opened, fresh),
            "engine": opened.backend.name,
            "limit": limit.shares,
        },
        measures,
        series=series,
        settings={
            "prompt-tokens": ",".join(map(str, prompts)),
            "tokens": str(tokens),
            "contexts": ",".join(map(str, contexts)),
            **setup.settings,
        },
        turns=disturbed([*found.values(), staged, started]),
        notes=[*([note] if note else []), *limit.notes],
    )


def _limit(
    opened: Opened, setup: Setup, runner: Runner, prompt: int, tokens: int,
    found: Mapping[Key, Turns[Wrote]], staged: Turns[dict[str, float]],
) -> Limit:  # fmt: skip
    """How far each length of text, and each stage behind ``prompt`` tokens, is from what this machine could do."""
    if opened.backend.name not in ENGINES:
        return Limit({}, [], [])
    loads = Loads(opened.bundle, setup.kv_bits)
    texts = [(length, behind, turns) for (kind, _, length, behind), turns in found.items() if kind == "text"]
    sizes = [size for length, behind, _ in texts for size in loads.turns(length + behind + tokens / 2)]
    roofs = measured_roofs(sizes, setup.threads or len(setup.cpus) or usable_threads(), setup.cpus)
    limits, seen = Limits(loads, runner, roofs), set[int]()
    for length, behind, turns in texts:
        limits.prefill(length, behind, turns)
    for length, behind, turns in texts:
        if length + behind not in seen:
            limits.decode(tokens, length + behind, turns)
        seen.add(length + behind)
    limits.stages(prompt, staged)
    return limits.found()


def _runners(
    args: argparse.Namespace, opened: Opened, setup: Setup, capacity: int
) -> dict[tuple[str, str], Runner]:
    """What takes turns: the setup itself, and with ``--depths`` and ``--exits`` others of its policies."""
    found = {("text", ""): Runner(opened, setup, capacity)}
    if args.depths:
        rules = [("depth", f"depth:{depth}") for depth in range(1, opened.bundle.program.depths)]
        found |= {("depth", rule): Runner(opened, replace(setup, exit=rule), capacity) for _, rule in rules}
        found["depth", "never"] = Runner(opened, replace(setup, exit="never"), capacity)
    if args.exits:
        exits = opened.bundle.manifest.exits
        if not exits:
            raise UsageError(
                f"{opened.bundle.folder} has no calibrated exit rules; `edgeloop calibrate` writes them, or leave "
                "--exits out"
            )
        found |= {("exit", rule): Runner(opened, replace(setup, exit=rule), capacity) for rule in exits}
        found.setdefault(("exit", "never"), Runner(opened, replace(setup, exit="never"), capacity))
    return found


def _rates(found: Mapping[Key, Turns[Wrote]], tokens: int) -> list[Measure]:
    """Tokens a second of prompts and of what is written behind them."""
    texts = {key: turns for key, turns in found.items() if key[0] == "text"}
    prefill = [
        Measure(
            f"prefill, {prompt} tokens{f' behind {behind}' if behind else ''}", "prefill", "tokens/s", "more",
            turns.estimate(_prefill(prompt)),
            at=prompt,
        )
        for (_, _, prompt, behind), turns in texts.items()
    ]  # fmt: skip
    decode = [
        Measure(
            f"decode, {tokens} tokens behind {prompt + behind}", "decode", "tokens/s", "more",
            turns.estimate(_decode),
            at=prompt + behind,
        )
        for (_, _, prompt, behind), turns in texts.items()
    ]  # fmt: skip
    unique = {measure.name: measure for measure in [*prefill, *decode]}
    return list(unique.values())


def _tokens(turns: Turns[Wrote]) -> list[Measure]:
    """A token: the median, and what 99 of 100 are within."""
    return [
        Measure(
            "a token",
            "a token, ms",
            "ms",
            "less",
            turns.estimate(lambda wrote: estimate(wrote.tokens).median),
        ),
        Measure(
            "a token, 99 of 100 within", "a token, ms", "ms", "less", turns.estimate(lambda w: _p99(w.tokens))
        ),
    ]


def _p99(values: tuple[float, ...]) -> float:
    every = sorted(values)
    return every[min(len(every) - 1, len(every) * 99 // 100)]


def _depths(turns: Turns[Wrote]) -> list[Measure]:
    """The block at each depth that was run, by the engine's own clock, and the host's loop."""
    ran = [depth for depth, ms in enumerate(turns.values[0].per_depth) if ms]
    found = [
        Measure(
            f"block at depth {depth + 1}", "each depth, ms", "ms", "less",
            turns.estimate(_depth(depth)), at=depth + 1,
        )
        for depth in ran
    ]  # fmt: skip
    host = turns.estimate(lambda wrote: wrote.host_per_depth)
    return [
        *found,
        Measure("the host's loop, a depth", "each depth, ms", "ms", "less", host, at=len(found) + 1),
    ]


def _policies(found: Mapping[Key, Turns[Wrote]]) -> list[Measure]:
    """Of ``--depths`` and ``--exits``: milliseconds a token, mean depths, and how many tokens ran how deep."""
    measures = []
    for (kind, rule, _, _), turns in found.items():
        depths = sum((wrote.depths for wrote in turns.values), Counter[int]())
        mean = turns.estimate(lambda wrote: wrote.mean_depth)
        if kind != "text":
            ms = turns.estimate(lambda wrote: wrote.token_ms)
            measures.append(Measure(f"a token, exit {rule}", f"{kind}, ms", "ms", "less", ms, at=mean.median))
        if kind == "exit" or (kind == "text" and len(depths) > 1):
            name = f"exit {rule}" if rule else "tokens"
            measures += [
                Measure(
                    f"{name}: depth {depth}", "tokens by depth", "tokens", "neither", _once(count), at=depth
                )
                for depth, count in sorted(depths.items())
            ]
            measures.append(Measure(f"{name}: mean depth", "mean depth", "", "neither", mean))
    return measures


def _quality(args: argparse.Namespace, opened: Opened) -> list[Measure]:
    """Of ``--exits``: perplexities that `edgeloop calibrate` measured, which no clock touches."""
    exits = opened.bundle.manifest.exits if args.exits else {}
    found = {f"exit {rule}": said.perplexity for rule, said in exits.items()}
    for said in exits.values():
        found["exit never"] = said.full_perplexity
    group = "perplexity, as calibrated"
    return [
        Measure(f"{name}: perplexity", group, "", "neither", _once(value)) for name, value in found.items()
    ]


def _prefill(prompt: int) -> Callable[[Wrote], float]:
    return lambda wrote: 1000 * prompt / wrote.prefill


def _decode(wrote: Wrote) -> float:
    return 1000 / wrote.token_ms


def _depth(depth: int) -> Callable[[Wrote], float]:
    return lambda wrote: wrote.per_depth[depth]


def _once(value: float) -> Estimate:
    return estimate([value])


def _energy(turns: Turns[Wrote], runner: Runner) -> tuple[list[Measure], str]:
    """Joules a token, or why there are none."""
    if any(wrote.joules is None for wrote in turns.kept):
        return (
            [],
            f"energy {runner.energy.why or 'unavailable: a turn was too short for the battery, or it was charged'}",
        )
    joules = turns.estimate(lambda wrote: (wrote.joules or 0.0) / len(wrote.tokens))
    return [Measure(f"energy of a token, {runner.energy.what}", "energy", "J", "less", joules)], ""


def _numbers(
    turns: Turns[Wrote], prompt: int, tokens: int, opened: Opened, fresh: list[Measure]
) -> dict[str, object]:
    """The main numbers by themselves, for scripts."""
    starts = {measure.name: measure.value.median for measure in fresh}
    every = [ms for wrote in turns.values for ms in wrote.tokens]
    return {
        "prompt_tokens": prompt,
        "tokens": tokens,
        "prefill_tokens_per_s": turns.estimate(_prefill(prompt)).median,
        "prefill_tokens_per_s_runs": [1000 * prompt / wrote.prefill for wrote in turns.values],
        "decode_tokens_per_s": turns.estimate(_decode).median,
        "decode_tokens_per_s_runs": [1000 / wrote.token_ms for wrote in turns.values],
        "token_ms_median": estimate(every).median,
        "token_ms_p99": _p99(tuple(every)),
        "ms_per_depth": [
            turns.estimate(_depth(depth)).median for depth in range(len(turns.values[0].per_depth))
        ],
        "host_ms_per_depth": turns.estimate(lambda wrote: wrote.host_per_depth).median,
        "bundle_bytes": bundle_bytes(opened.bundle.manifest),
        "start_to_first_token_ms": starts["time to first token, process cold"],
        "run_peak_rss_bytes": starts.get("peak"),
    }
