"""A session's context in a file: what is written, and what a file is checked for before a session goes on from it.

Everything of the file is compared with what the bundle, its policy and the engine's caches have, before an array is
read: names, types, shapes and the numbers of the header. So a file can make a session's text worse, and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import msgspec
import numpy as np

from ..bundle.folder import Bundle
from ..decode.policy import Policy
from ..decode.sequence import SequenceState
from ..decode.skipped_kv import Waiting
from ..engines.kv import KVCache, int4_sizes
from ..errors import ContextError, UsageError
from ..model.program import CacheShape, Program
from ..version import VERSION
from .arrays_file import ArraysReader, ArraysWriter, Shape, reading, writing
from .saved_header import Contents, Header, LastRows, Owner, SavedSampling, identity, problems

FORMAT = 1
_KINDS = {32: "F32", 16: "F16", 8: "I8", 4: "U8"}
_SIDES = {bits: {"key": kind, "value": kind} for bits, kind in _KINDS.items()}
_SIDES[8] |= {"key_scales": "F32", "value_scales": "F32"}
_SIDES[4] |= {"key_scales": "F16", "value_scales": "F16"}
"""The arrays of a layer's rows and their types, by the bits that the engine has for a number."""
_BITS = {kind: bits for bits, kind in _KINDS.items()}


def write(path: Path, bundle: Bundle, policy: Policy, contents: Contents, cache: KVCache) -> None:
    """Write ``contents`` and the rows of sequence 0 of ``cache`` to ``path``, all or nothing.

    SessionError when the file cannot be written.
    """
    program = bundle.program
    state = contents.state
    slots = cache.held(0, state.cached, state.filled)
    last = [(stage, slot, n, cache.read_last(stage, slot, n)) for stage, slot, n in slots]
    header = Header(
        format=FORMAT,
        edgeloop=VERSION,
        model=bundle.folder.name.encode(errors="replace").decode(),
        owner=Owner.of(bundle, policy),
        tokens=len(contents.ids),
        cached=state.cached,
        filled=state.filled,
        waiting=tuple(tuple((w.first, len(w.states)) for w in waiting) for waiting in state.waiting),
        held=bool(state.held),
        last=tuple(LastRows(stage, slot, n, tuple(map(len, rows))) for stage, slot, n, rows in last if rows),
        answer=contents.answer,
        end=contents.end,
        sampling=SavedSampling.of(contents.sampling),
        messages=contents.messages,
        turns=contents.turns,
        said=contents.said,
        prefix=state.prefix,
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
            for layer in cache.read_rows(stage, slot, 0, cache.rows_in(n)):
                for side in layer:
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
            header = msgspec.json.decode(reader.text, type=Header)
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            raise reader.refusal(f"its header cannot be read ({error})") from error
        yield SavedSession(reader, header)


class SavedSession:
    """A saved session that is open: whose it is, how many tokens it has, and the messages that they are, if any."""

    def __init__(self, reader: ArraysReader, header: Header) -> None:
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
        if problem := next(problems(header, program), None):
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
            sides = _SIDES[cache.number_bits]
            layers = [tuple(reader.take() for _ in sides) for _ in program.caches(stage)]
            cache.write_rows(stage, slot, 0, layers)
            cache.write_last(stage, slot, 0, [])
        for entry, rows in last:
            cache.write_last(entry.stage, entry.slot, entry.tokens, rows)
        reader.finish()
        return Contents(
            ids=ids,
            state=SequenceState(header.cached, header.filled, waiting, held, header.prefix),
            answer=header.answer,
            end=header.end,
            messages=header.messages,
            turns=header.turns,
            said=header.said,
            sampling=sampling,
        )


def _shapes(header: Header, program: Program, cache: KVCache) -> Iterator[tuple[str, tuple[str, Shape]]]:
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
    for stage, slot, tokens in cache.held(0, header.cached, header.filled):
        for layer, shape in enumerate(program.caches(stage)):
            rows = shape.kv_heads, cache.rows_in(tokens)
            for side, kind in _SIDES[cache.number_bits].items():
                yield (
                    f"{stage}.{slot}.{layer}.{side}",
                    (kind, (*rows, *_of_row(cache.number_bits, side, shape))),
                )


def _of_row(bits: int, side: str, shape: CacheShape) -> Shape:
    """Return the sizes of a side of one row and head."""
    codes, scales = int4_sizes(shape.head_dim)
    if side.endswith("scales"):
        return (scales,) if bits == 4 else ()
    return (codes,) if bits == 4 else (shape.head_dim,)


def _strange(
    found: Mapping[str, tuple[str, Shape]], wanted: Mapping[str, tuple[str, Shape]]
) -> tuple[str, str]:
    """Return what is strange about the arrays ``found`` where others are ``wanted``, and what can be done."""
    name = next((name for name, array in wanted.items() if found.get(name) != array), "more arrays")
    (kind, shape), (own, own_shape) = found.get(name, ("", ())), wanted.get(name, ("", ()))
    if len(shape) == len(own_shape) and kind != own and kind in _BITS and own in _BITS:
        return (
            f"K/V in {_BITS[kind]} bits, this engine keeps them in {_BITS[own]}",
            "open it with --kv-bits and an engine as it was saved with",
        )
    return f"{name} is not as this engine's caches have it", "open it with the engine that it was saved with"
