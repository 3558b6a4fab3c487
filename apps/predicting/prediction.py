"""A prediction: tokens a second, time to the first token and memory of a model on a device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from ...runtime.errors import UsageError
from .costs import Fitted, lane_engine
from .device import Device
from .speed import CHUNK, Machine, Seconds, Speed
from .subject import Subject

PROMPT, CONTEXT = 128, 512
"""Tokens that are read, and that are behind a written one, where nobody says: less where a model has room for less."""
WORKING_BYTES = 6_000_000
"""What the engine has beside file and K/V: 6 MB of mor-360m-r3 (docs/lane-engine.md, All numbers)."""
_WORDS = {"read": "reading", "products": "multiplying", "attention": "attention", "rest": "the rest"}


@dataclass(frozen=True)
class Wanted:
    """What to predict: ``prompt`` tokens are read, and a token is written behind ``context`` of them.

    ``shares``: of tokens that leave after each depth, none: all run every depth. ``reads``: whether the logits are
    looked at after each depth. ``acceptance``: of pipelined drafts.
    """

    threads: int | None = None
    prompt: int = PROMPT
    context: int = CONTEXT
    kv_bits: int = 32
    shares: tuple[float, ...] = ()
    reads: bool = False
    acceptance: float | None = None


@dataclass(frozen=True)
class Prediction:
    """Seconds of each phase, bytes, and what a cache keeps. ``exits``, ``drafts``: where they were asked for."""

    threads: int
    prompt: Seconds
    prompt_tokens: int
    token: Seconds
    exits: Seconds | None
    mean_depth: float
    drafts: Seconds | None
    unrolled: Seconds | None
    token_bytes: float
    token_operations: float
    block_bytes: float
    block_kv_bytes: float
    block_kept: float
    kept: float
    memory_bytes: float
    kv_bytes: float

    @property
    def fastest(self) -> Seconds:
        """A token as asked for: with drafts, or exits, or neither."""
        return self.drafts or self.exits or self.token

    @property
    def first_s(self) -> float:
        """Seconds until the first token, of a file that is open and in memory."""
        return self.prompt.total

    def data(self) -> dict[str, Any]:
        """It as JSON has it."""
        phases = {name: getattr(self, name) for name in ("prompt", "token", "exits", "drafts", "unrolled")}
        plain = {each.name: getattr(self, each.name) for each in fields(self) if each.name not in phases}
        return {
            "prefill_tokens_per_s": self.prompt_tokens / self.prompt.total,
            "decode_tokens_per_s": 1 / self.fastest.total,
            "first_token_s": self.first_s,
            **plain,
            "seconds": {name: asdict(value) for name, value in phases.items() if value is not None},
        }


def predict(subject: Subject, device: Device, wanted: Wanted, fitted: Fitted | None = None) -> Prediction:
    """Return what ``subject`` will do on ``device``; UsageError where the request does not fit the model."""
    program, threads = subject.program, wanted.threads or device.cores
    if max(wanted.context, wanted.prompt) > program.context_length:
        raise UsageError(
            f"{max(wanted.context, wanted.prompt)} tokens, and {subject.name} has a context of "
            f"{program.context_length}; ask for less"
        )
    shares = checked_shares(wanted.shares, program.depths)
    if wanted.acceptance is not None and program.depths == 1:
        raise UsageError(f"{subject.name} has one depth: there is nothing to draft between")
    machine = Machine(device, threads, fitted or lane_engine().fitted, wanted.kv_bits)
    speed = Speed(program, subject.stored, machine)
    repeats = program.depths > len(program.loop.blocks)
    apart = Speed(program, subject.stored, machine, unrolled=True) if repeats else None
    once, again = speed.kept(wanted.context)
    kv = (
        program.kv_bytes_per_token
        * wanted.kv_bits
        / 32
        * min(wanted.context, program.window or wanted.context)
    )
    widest = max(each.numbers for each in (speed.prologue, *speed.blocks, speed.epilogue))
    return Prediction(
        threads=threads,
        prompt=speed.prompt(wanted.prompt),
        prompt_tokens=wanted.prompt,
        token=speed.token(wanted.context),
        exits=speed.token(wanted.context, shares, float(wanted.reads)) if shares else None,
        mean_depth=sum(n * share for n, share in enumerate(shares, 1)) if shares else float(program.depths),
        drafts=None if wanted.acceptance is None else speed.drafted(wanted.context, wanted.acceptance),
        unrolled=apart.token(wanted.context) if apart else None,
        token_bytes=speed.token_bytes + speed.kv_bytes(wanted.context),
        token_operations=2 * speed.row_products,
        block_bytes=speed.block_bytes,
        block_kv_bytes=speed.blocks[-1].kv_numbers(wanted.context) * wanted.kv_bits / 8,
        block_kept=again,
        kept=once,
        memory_bytes=subject.file_bytes + kv + WORKING_BYTES + 4 * min(widest, 1 << 14) * CHUNK,
        kv_bytes=kv,
    )


def checked_shares(shares: Sequence[float], depths: int) -> tuple[float, ...]:
    """Return the shares of tokens that leave after each of ``depths`` depths; UsageError unless they add up to 1."""
    if not shares:
        return ()
    if len(shares) != depths or min(shares) < 0 or abs(sum(shares) - 1) > 0.01:
        said = ",".join(f"{share:g}" for share in shares)
        raise UsageError(
            f"exit shares are {said:.80}; wanted {depths} that add up to 1: of tokens that leave after each depth"
        )
    return tuple(share / sum(shares) for share in shares)


def shares_of(mean: float, depths: int) -> tuple[float, ...]:
    """Return shares with the mean depth ``mean``: all tokens leave after one of the two depths around it."""
    low = min(int(mean), depths - 1)
    later = min(max(mean - low, 0.0), 1.0)
    found = [0.0] * depths
    found[max(low, 1) - 1] += 1 - later
    found[low] += later
    return tuple(found)


def bound(phase: Seconds) -> str:
    """Return where most of the time goes, in words."""
    name = max(_WORDS, key=lambda part: getattr(phase, part))
    return f"{_WORDS[name]}, {getattr(phase, name) / phase.total:.0%}"
