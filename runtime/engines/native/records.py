"""What an app's host needs of a model beside its tokenizer, as tables of the file's text section: who the model is,
exit rules with the numbers that they read, and its chat template's turns.

src/context/ reads them: ``App``, ``Exits``, ``Turns``. Numbers are uint32 and float32, little-endian;
a text is the number of its bytes, and these.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ...bundle.manifest import Exit
from ...decode.routing import half_way
from ...decode.whole_tokens import RULES
from ...model.program import Program
from ...text.turns import Table, Turns
from ...version import VERSION
from .decoder_structs import Rule, Skipped, Squash
from .format import HEADER
from .text_format import Tag, tables

F32 = npt.NDArray[np.float32]


def about_record(program: Program, name: str, identity: str) -> bytes:
    """Who the model is: its ``name``, the hash by which saved sessions know it (``bundle.identity``), and what ends a
    text."""
    ends = [token for token in program.eos_token_ids if token < program.vocab_size]
    short = name.encode(errors="replace")[:200].decode(errors="ignore")
    return b"".join((*map(_text, (short, identity, VERSION)), _numbers(len(ends), *ends)))


def identity_of(path: Path) -> str | None:
    """The identity that the ``model.lanes`` at ``path`` says; None for one that says none.

    BundleError for a damaged one.
    """
    with path.open("rb") as file:
        data = file.read(HEADER.itemsize)
        head = np.frombuffer(data, HEADER, 1)[0] if len(data) == HEADER.itemsize else None
        if head is None or not head["text_bytes"]:
            return None
        file.seek(int(head["text"]))
        text = file.read(int(head["text_bytes"]))
    first, last = tables(text).get(Tag.ABOUT, (0, 0))
    if first == last:
        return None
    name = int.from_bytes(text[first : first + 4], "little")
    size = int.from_bytes(text[first + 4 + name : first + 8 + name], "little")
    return text[first + 8 + name : min(first + 8 + name + size, last)].decode(errors="replace")


def exits_record(program: Program, heads: Mapping[str, F32], exits: Mapping[str, Exit]) -> bytes:
    """Exit rules that were calibrated, of those that run without logits of every depth, and ``heads``: gate, router,
    probes."""
    routing = program.routing
    kind = {None: 0, "expert": Rule.EXPERT, "token": Rule.TOKEN}[None if routing is None else routing.kind]
    squash = Squash.SIGMOID if routing is None else Squash[routing.squash.upper()]
    parts = [_numbers(program.depths, program.loop.carries[0].width, kind, squash)]
    if routing is None:
        parts += [_numbers(0, 0), _floats([1, 1, 0.5])]
    else:
        parts += [_numbers(routing.gated, bool(routing.auxiliary))]
        parts += [_floats([routing.temperature, routing.alpha, half_way(routing)])]
        parts += [_floats(routing.capacity)] if routing.kind == "expert" else []
    rules = {name: rule for name, rule in exits.items() if name in RULES}
    parts.append(_numbers(len(rules)))
    for name, rule in rules.items():
        skipped = getattr(Skipped, rule.skipped_kv.upper(), Skipped.NONE)
        parts += [_text(name), _numbers(skipped), _floats(rule.thresholds)]
    parts.append(_numbers(len(heads)))
    for name, head in heads.items():
        parts += [_text(name), _numbers(head.ndim, *head.shape), _floats(head.reshape(-1))]
    return b"".join(parts)


def turns_record(turns: Turns) -> bytes:
    """A chat template's turns."""
    texts = sorted({*turns.refused, *(text for table in turns.tables for text in table.between.values())})
    number = {text: i for i, text in enumerate(texts)}
    parts = [_numbers(turns.order, turns.system, turns.late, turns.blank, len(texts)), *map(_text, texts)]
    parts += [_numbers(len(turns.refused), *(number[text] for text in turns.refused))]
    parts += [_numbers(len(turns.tables)), *(_table(table, number) for table in turns.tables)]
    return b"".join(parts)


def _table(table: Table, number: Mapping[str, int]) -> bytes:
    places = [x for key, text in table.between.items() for x in (_key(key), number[text])]
    contents = [
        x
        for key, rule in table.contents.items()
        for x in (_key(key), _key((rule.left, rule.right, rule.thought, rule.cut)))
    ]
    return _numbers(len(table.between), *places, len(table.contents), *contents)


def _key(parts: Sequence[int]) -> int:
    """Return some bytes as a number, the first the lowest."""
    return int.from_bytes(bytes(parts), "little")


def _numbers(*numbers: int) -> bytes:
    return struct.pack(f"<{len(numbers)}I", *numbers)


def _floats(numbers: Iterable[float] | F32) -> bytes:
    return np.asarray([*numbers], "<f4").tobytes()


def _text(text: str) -> bytes:
    data = text.encode()
    return _numbers(len(data)) + data
