"""A session's context in a file: what is written, and what is asked of a file before a session goes on from it.

Everything of the file is compared with what the bundle, its policy and the engine's caches have, before an array is
read: names, types, shapes and the numbers of the header. So a file can make a session's text worse, and nothing else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from math import inf, isfinite
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from ..bundle.folder import Bundle
from ..decode.policy import Policy
from ..decode.sampling import SamplingOptions
from ..decode.sequence import SequenceState
from ..decode.skipped_kv import Waiting
from ..engines.backend import I64
from ..engines.kv import KVCache
from ..errors import ContextError, UsageError
from ..model.program import Program
from ..model.sizes import kept_sizes
from ..version import VERSION
from .arrays_file import ArraysReader, ArraysWriter, Shape, reading, writing

FORMAT = 1
_NUMBERS = {2: "F16"}
"""The type in which rows are stored, by the bytes that the engine has for a number; F32 for others."""
_BITS = {"F16": 16, "F32": 32}


@dataclass(kw_only=True)
class Contents:
    """What a session remembers beside K and V.

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


class _Last(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The rows that ops with memory (``Shift``) keep of a slot's newest token, after ``tokens``: ``sizes`` numbers
    each."""

    stage: str
    slot: int
    tokens: int
    sizes: tuple[int, ...]


class _Sampling(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Sampling options in JSON, which has no infinity and no numbers as keys. A bias of None bans a token."""

    numbers: dict[str, int | float]
    bias: tuple[tuple[int | str, float | None], ...]

    @staticmethod
    def of(options: SamplingOptions) -> _Sampling:
        """Return ``options`` in that form."""
        numbers = {f.name: getattr(options, f.name) for f in fields(options) if f.name != "logit_bias"}
        bias = options.logit_bias.items()
        return _Sampling(numbers, tuple((t, value if isfinite(value) else None) for t, value in bias))

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


class _Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
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
    last: tuple[_Last, ...]
    answer: int | None
    end: int
    sampling: _Sampling
    messages: list[dict[str, Any]]
    turns: int
    said: int


def identity(bundle: Bundle) -> str:
    """Return a hash of all that K and V and the tokens of ``bundle`` depend on: its program, weights and tokenizer.

    Not of its heads and calibrated exits, which a later calibration writes.
    """
    manifest = bundle.manifest
    files = {name: file for name, file in manifest.files.items() if name != manifest.heads}
    parts = (manifest.program, manifest.quantization, dict(sorted(files.items())))
    return hashlib.sha256(b"\n".join(map(msgspec.json.encode, parts))).hexdigest()


def write(path: Path, bundle: Bundle, policy: Policy, contents: Contents, cache: KVCache) -> None:
    """Write ``contents`` and the rows of sequence 0 of ``cache`` to ``path``, all or nothing.

    SessionError when the file cannot be written.
    """
    program = bundle.program
    state = contents.state
    slots = cache.held(0, state.cached, state.filled)
    last = [(stage, slot, n, cache.read_last(stage, slot, n)) for stage, slot, n in slots]
    header = _Header(
        format=FORMAT,
        edgeloop=VERSION,
        model=bundle.folder.name.encode(errors="replace").decode(),
        owner=Owner.of(bundle, policy),
        tokens=len(contents.ids),
        cached=state.cached,
        filled=state.filled,
        waiting=tuple(tuple((w.first, len(w.states)) for w in waiting) for waiting in state.waiting),
        held=bool(state.held),
        last=tuple(_Last(stage, slot, n, tuple(map(len, rows))) for stage, slot, n, rows in last if rows),
        answer=contents.answer,
        end=contents.end,
        sampling=_Sampling.of(contents.sampling),
        messages=contents.messages,
        turns=contents.turns,
        said=contents.said,
    )
    with writing(path) as file:
        out = ArraysWriter(file, msgspec.json.encode(header), dict(_shapes(header, program, cache)))
        out.put(contents.ids)
        for held in state.held:
            out.put(held)
        for waiting in state.waiting:
            for part in waiting:
                out.put(part.states)
        for *_, rows in last:
            for row in rows:
                out.put(row)
        for stage, slot, n in slots:
            for pair in cache.read_rows(stage, slot, 0, cache.rows_in(n)):
                for side in pair:
                    out.put(side)
        out.finish()


@contextmanager
def opened(path: Path) -> Iterator[SavedSession]:
    """Yield what ``write`` wrote to ``path``, to be looked at and then read; SessionError when it is something else."""
    with reading(path) as reader:
        try:
            found = msgspec.json.decode(reader.text, type=dict[str, msgspec.Raw]).get("format", b"none")
            if bytes(found) != str(FORMAT).encode():
                what = bytes(found)[:20].decode(errors="replace")
                raise reader.refusal(f"a saved session of format {what}, this edgeloop reads {FORMAT}")
            header = msgspec.json.decode(reader.text, type=_Header)
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            raise reader.refusal(f"its header cannot be read ({error})") from error
        yield SavedSession(reader, header)


class SavedSession:
    """A saved session that is open: whose it is, how many tokens it has, and the messages that they are, if any."""

    def __init__(self, reader: ArraysReader, header: _Header) -> None:
        self._reader, self._header = reader, header
        self.owner, self.tokens, self.messages = header.owner, header.tokens, header.messages

    def check_bundle(self, bundle: Bundle) -> None:
        """Raise SessionError, one line, unless it is of ``bundle``."""
        if self.owner.bundle != (own := identity(bundle)):
            raise self._reader.refusal(
                f"saved of another bundle ({self._header.model}, {self.owner.bundle[:12]}; this one is "
                f"{bundle.folder.name}, {own[:12]})",
                "open it with that one",
            )
        if self.owner.depths != len(self._header.filled):
            raise self._reader.refusal(f"{len(self._header.filled)} depths of {self.owner.depths}")

    def check(self, bundle: Bundle, policy: Policy, context: int) -> None:
        """Raise SessionError, one line, unless it is of ``bundle`` under ``policy``; ContextError unless a ``context``
        has room for it."""
        self.check_bundle(bundle)
        theirs, owner = self.owner, Owner.of(bundle, policy)
        for name in ("depths", "exit", "skipped_kv", "kv"):
            found, wanted = getattr(theirs, name), getattr(owner, name)
            if found != wanted:
                flag = {"depths": "depth", "skipped_kv": "skipped-kv"}.get(name, name)
                raise self._reader.refusal(
                    f"saved with --{flag} {found}, this session has {wanted}",
                    f"open the bundle with --{flag} {found}",
                )
        if self.tokens > context + 1:  # the last token of an answer need not be run
            raise ContextError(
                f"{self._reader.path} holds {self.tokens} tokens, the context {context}; "
                "open the bundle with a longer context"
            )

    def read(self, program: Program, cache: KVCache) -> Contents:
        """Return its contents; the rows go into sequence 0 of ``cache``, which has room for them.

        SessionError when anything is not as ``program`` and ``cache`` have it, and when the file is damaged: what the
        cache holds then is nothing to go on from.
        """
        header, reader = self._header, self._reader
        if problem := next(_problems(header, program), None):
            raise reader.refusal(f"{problem}, which no session has")
        try:
            sampling = header.sampling.options()
        except (UsageError, OverflowError) as error:
            raise reader.refusal(str(error)) from error
        wanted = dict(_shapes(header, program, cache))
        if reader.shapes != wanted:
            raise reader.refusal(*_strange(reader.shapes, wanted))
        ids = reader.take().astype(np.int64)
        if ids.min(initial=0) < 0 or ids.max(initial=0) >= program.vocab_size:
            raise reader.refusal("it has tokens that are not in the vocabulary")
        held = tuple(reader.take().astype(np.int64) for _ in header.filled if header.held)
        if any((np.diff(h, prepend=-1) < 1).any() or (h >= header.cached).any() for h in held):
            raise reader.refusal("its rows are of no tokens in order")
        waiting = tuple(
            tuple(Waiting(first, reader.take()) for first, _ in parts) for parts in header.waiting
        )
        last = [(entry, [reader.take() for _ in entry.sizes]) for entry in header.last]
        for stage, slot, _ in cache.held(0, header.cached, header.filled):
            sides = [reader.take().astype(np.float32) for _ in range(2 * len(program.caches(stage)))]
            cache.write_rows(stage, slot, 0, list(zip(sides[::2], sides[1::2], strict=True)))
            cache.write_last(stage, slot, 0, [])
        for entry, rows in last:
            cache.write_last(entry.stage, entry.slot, entry.tokens, rows)
        reader.finish()
        return Contents(
            ids=ids,
            state=SequenceState(header.cached, header.filled, waiting, held),
            answer=header.answer,
            end=header.end,
            messages=header.messages,
            turns=header.turns,
            said=header.said,
            sampling=sampling,
        )


def _shapes(header: _Header, program: Program, cache: KVCache) -> Iterator[tuple[str, tuple[str, Shape]]]:
    """Yield name, type and shape of every array of a file with ``header``, of which ``cache`` holds the rows."""
    yield "ids", ("I32", (header.tokens,))
    for depth, count in enumerate(header.filled if header.held else ()):
        yield f"held.{depth}", ("I32", (count,))
    for depth, parts in enumerate(header.waiting):
        for i, (_, count) in enumerate(parts):
            yield f"waiting.{depth}.{i}", ("F32", (count, program.width))
    for entry in header.last:
        for i, size in enumerate(entry.sizes):
            yield f"last.{entry.stage}.{entry.slot}.{i}", ("F32", (size,))
    number = _NUMBERS.get(cache.number_bytes, "F32")
    for stage, slot, tokens in cache.held(0, header.cached, header.filled):
        for layer, shape in enumerate(program.caches(stage)):
            for side in ("key", "value"):
                rows = shape.kv_heads, cache.rows_in(tokens), shape.head_dim
                yield f"{stage}.{slot}.{layer}.{side}", (number, rows)


def _strange(
    found: Mapping[str, tuple[str, Shape]], wanted: Mapping[str, tuple[str, Shape]]
) -> tuple[str, str]:
    """Return what is strange about the arrays ``found`` where others are ``wanted``, and what can be done."""
    name = next((name for name, array in wanted.items() if found.get(name) != array), "more arrays")
    (kind, shape), (own, own_shape) = found.get(name, ("", ())), wanted.get(name, ("", ()))
    if shape == own_shape and kind in _BITS and own in _BITS:
        return (
            f"K and V in {_BITS[kind]} bits, this engine keeps them in {_BITS[own]}",
            "open it with --kv-bits and an engine as it was saved with",
        )
    return f"{name} is not as this engine's caches have it", "open it with the engine that it was saved with"


def _problems(header: _Header, program: Program) -> Iterator[str]:
    """Yield what is wrong with the numbers of ``header``: those with which an engine would read or write elsewhere."""
    cached, filled, depths = header.cached, header.filled, program.depths
    if not 0 <= cached <= header.tokens:
        yield f"{cached} of {header.tokens} tokens were run"
    if len(filled) != depths or len(header.waiting) != depths:
        yield f"it has {len(filled)} depths"
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
