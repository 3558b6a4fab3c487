"""The header of a saved session: whose it is, how far each depth has come, and all that is no array; and its checks."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from math import inf, isfinite
from typing import Any

import msgspec

from ..bundle.folder import Bundle
from ..decode.policy import Policy
from ..decode.sampling import SamplingOptions
from ..decode.sequence import SequenceState
from ..engines.backend import I64
from ..engines.native.records import identity_of
from ..errors import UsageError
from ..model.program import Program
from ..model.sizes import kept_sizes


@dataclass(kw_only=True)
class Contents:
    """What a session remembers beside K/V.

    ``ids`` [n] of all tokens, of which ``state`` says how many were run. ``answer``, ``end``: where the last answer
    begins and ends in them. ``messages``: the conversation, where they are one; its first ``turns`` are the first
    ``said`` tokens. ``sampling``: of the last answer.
    """

    ids: I64
    state: SequenceState
    answer: int | None = None
    end: int = 0
    messages: list[dict[str, Any]] = field(default_factory=list)
    turns: int = 0
    said: int = 0
    sampling: SamplingOptions = field(default_factory=SamplingOptions)


class Owner(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Bundle and policy of a saved session; others refuse it. ``bundle`` is a hash (``identity``)."""

    bundle: str
    depths: int
    exit: str
    skipped_kv: str
    kv: str

    @staticmethod
    def of(bundle: Bundle, policy: Policy) -> Owner:
        """Return the owner of sessions of ``bundle`` under ``policy``."""
        return Owner(
            bundle=identity(bundle),
            depths=bundle.program.depths,
            exit=policy.exit,
            skipped_kv=policy.skipped_kv,
            kv=policy.kv,
        )


class LastRows(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The rows that ops with memory (``Shift``) keep of a slot's newest token, after ``tokens``: ``sizes`` numbers
    each."""

    stage: str
    slot: int
    tokens: int
    sizes: tuple[int, ...]


class SavedSampling(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Sampling options in JSON, which has no infinity and no numbers as keys. A bias of None bans a token."""

    numbers: dict[str, int | float]
    bias: tuple[tuple[int | str, float | None], ...]

    @staticmethod
    def of(options: SamplingOptions) -> SavedSampling:
        """Return ``options`` in that form."""
        numbers = {f.name: getattr(options, f.name) for f in fields(options) if f.name != "logit_bias"}
        bias = options.logit_bias.items()
        return SavedSampling(numbers, tuple((t, value if isfinite(value) else None) for t, value in bias))

    def options(self) -> SamplingOptions:
        """Return the options; UsageError for names or values that there are not."""
        usual = {f.name: f.default for f in fields(SamplingOptions) if f.name != "logit_bias"}
        if self.numbers.keys() != usual.keys():
            raise UsageError(f"sampling options {', '.join(sorted(self.numbers.keys() ^ usual.keys()))}")
        bias = {token: -inf if value is None else value for token, value in self.bias}
        numbers: dict[str, Any] = {
            name: float(value) if isinstance(usual[name], float) else value
            for name, value in self.numbers.items()
        }
        return SamplingOptions(**numbers, logit_bias=bias)


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The text of the file. ``waiting``: by depth, (first position, number of states) of each piece that waits."""

    format: int
    edgeloop: str
    model: str
    owner: Owner
    tokens: int
    cached: int
    filled: tuple[int, ...]
    waiting: tuple[tuple[tuple[int, int], ...], ...]
    held: bool
    last: tuple[LastRows, ...]
    answer: int | None
    end: int
    sampling: SavedSampling
    messages: list[dict[str, Any]]
    turns: int
    said: int
    prefix: int = 0
    """How many of the first tokens see each other."""


def identity(bundle: Bundle) -> str:
    """Return a hash of all that K/V and the tokens of ``bundle`` depend on: its program, weights and tokenizer.

    Not of its heads and calibrated exits, which a later calibration writes. The lane engine's file says it, if there is
    one, because hosts in C know no more of a bundle.
    """
    manifest = bundle.manifest
    native = manifest.targets.get("native")
    if native is not None and (said := identity_of(bundle.path(native.weights))) is not None:
        return said
    files = {name: file for name, file in manifest.files.items() if name != manifest.heads}
    parts = (manifest.program, manifest.quantization, dict(sorted(files.items())))
    return hashlib.sha256(b"\n".join(map(msgspec.json.encode, parts))).hexdigest()


def problems(header: Header, program: Program) -> Iterator[str]:
    """Yield what is wrong with the numbers of ``header``: those with which an engine would read or write elsewhere."""
    cached, filled, depths = header.cached, header.filled, program.depths
    if not 0 <= cached <= header.tokens:
        yield f"{cached} of {header.tokens} tokens were run"
    if len(filled) != depths or len(header.waiting) != depths:
        yield f"it has {len(filled)} depths"
    if not 0 <= header.prefix <= (cached if program.prefix_lm else 0):
        yield f"{header.prefix} of {cached} tokens see each other"
    if any(not 0 <= n <= cached for n in filled):
        yield f"depths hold {filled} of {cached} tokens"
    for depth, parts in enumerate(header.waiting):
        end = filled[depth]
        for first, count in parts:
            if first != end or count < 1:
                yield f"tokens from {first} on wait behind {end}"
            end += count
        if not header.held and end not in (cached, *filled[:depth]):
            yield f"depth {depth} lacks tokens from {end} on"
        if header.held and parts:
            yield "tokens wait for depths that they skip"
    answer = header.end if header.answer is None else header.answer
    if not 0 <= answer <= header.tokens or not 0 <= header.end <= header.tokens:
        yield f"an answer from token {answer} to {header.end}"
    if not (0 <= header.said <= header.tokens and 0 <= header.turns <= len(header.messages)):
        yield f"{header.turns} of {len(header.messages)} messages are {header.said} of {header.tokens} tokens"
    kept = {(entry.stage, entry.slot) for entry in header.last}
    slots = {("prologue", 0), ("epilogue", 0), *(("block", slot) for slot in range(depths))}
    if len(kept) != len(header.last) or not kept <= slots:
        yield "rows of slots that are none"
    for entry in header.last:
        if not 0 <= entry.tokens <= cached or entry.sizes != tuple(kept_sizes(program, entry.stage)):
            yield f"rows of {entry.sizes} that are kept of {entry.tokens} tokens"
