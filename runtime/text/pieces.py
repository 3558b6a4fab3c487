"""What each token of a tokenizer writes by itself, in bytes: for stop strings, logit bias and streams of text."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ..errors import UsageError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Engine

BEFORE = "abcdef"
"""A text to put a token behind: what it writes there is what it writes anywhere but at the beginning."""


class Pieces:
    """The bytes that each token writes, special ones as they are named. Computed when first used, and kept."""

    def __init__(
        self,
        engine: Engine,
        encode: Callable[[str, bool], list[int]],
        decode: Callable[[Sequence[int], bool], str],
    ) -> None:
        """``encode`` and ``decode``: those of the ``Tokenizer`` around ``engine``, which name its errors."""
        self._engine, self._encode, self._decode = engine, encode, decode
        self._kinds = set(_types(_state(engine.decoder)))
        added = engine.get_added_tokens_decoder()
        self._special = {i: token.content for i, token in added.items() if token.special}
        self._found: dict[int, bytes] = {}
        self._silent: dict[int, bool] = {}
        self._values: dict[int, int | None] = {}

    def __getitem__(self, token: int) -> bytes:
        """Return what ``token`` writes behind other text, perhaps half a character; b'' for an unknown id."""
        piece = self._found.get(token)
        if piece is None:
            piece = self._found[token] = self._piece(token)
        return piece

    def silent(self, token: int) -> bool:
        """Return whether ``token`` is left out of texts, as special tokens and unknown ids are."""
        silent = self._silent.get(token)
        if silent is None:
            unknown = self._engine.id_to_token(token) is None
            silent = self._silent[token] = unknown or token in self._special
        return silent

    def byte(self, token: int) -> int | None:
        """Return the byte that ``token`` stands for where the decoder falls back to bytes (``<0x0A>``), else None."""
        if token not in self._values:
            name = self._engine.id_to_token(token) if "ByteFallback" in self._kinds else None
            self._values[token] = _value(name or "")
        return self._values[token]

    def can_write(self, text: str) -> bool:
        """Return whether there is a sequence of tokens whose bytes contain ``text``."""
        wanted = text.encode()
        with suppress(UsageError):  # the tokenizer has no tokens for it as it stands
            if wanted in b"".join(self[i] for i in self._encode(text, False)):
                return True  # nearly always: the rest goes through the whole vocabulary
        if any(wanted in piece for piece in self._all):
            return True
        # From one place in it to the next by a token: first by the end of one, last by the beginning of one.
        last, longest = len(wanted), max(map(len, self._all), default=0)
        begins = [wanted[:at] for at in range(1, min(longest, last - 1) + 1)]
        ends = [wanted[last - size :] for size in range(1, min(longest, last - 1) + 1)]
        reached: set[int] = set()
        left: set[int] = set()
        for piece in self._all:
            reached.update(len(part) for part in begins[: len(piece)] if piece.endswith(part))
            left.update(last - len(part) for part in ends[: len(piece)] if piece.startswith(part))
        for at in range(1, last):
            if at in reached:
                if at in left:
                    return True
                steps = range(at + 1, min(at + longest, last - 1) + 1)
                reached.update(end for end in steps if wanted[at:end] in self._all)
        return False

    def writers(self, text: str) -> list[int]:
        """Return the tokens that write exactly ``text`` behind other text, ascending, and the special one so named."""
        found = self._by_piece.get(text.encode(errors="surrogatepass"), [])
        named = [token for token, name in self._special.items() if name == text]
        return sorted({*found, *named})

    @property
    def _all(self) -> Set[bytes]:
        return self._by_piece.keys()

    @cached_property
    def _by_piece(self) -> dict[bytes, list[int]]:
        """Every token of the vocabulary that writes something, by what it writes."""
        found: dict[bytes, list[int]] = {}
        for token in sorted(set(self._engine.get_vocab(with_added_tokens=True).values())):
            if piece := self[token]:
                found.setdefault(piece, []).append(token)
        return found

    def _piece(self, token: int) -> bytes:
        name = self._engine.id_to_token(token)
        if name is None:
            return b""
        value = self.byte(token)
        if value is not None:
            return bytes([value])
        if "ByteLevel" in self._kinds and "ByteFallback" not in self._kinds:
            values = [BYTE_LEVEL.get(character) for character in name]
            if None not in values:
                return bytes(value for value in values if value is not None)
        ids, before = self._before
        after = self._decode([*ids, token], True)
        shared = len(before) if after.startswith(before) else 0
        return after[shared:].encode()

    @cached_property
    def _before(self) -> tuple[list[int], str]:
        """Tokens to put another one behind, and their text."""
        ids: list[int] = []
        with suppress(UsageError):  # the tokenizer has no tokens for it
            ids = self._encode(BEFORE, False)
        return ids, self._decode(ids, True)


def _byte_level() -> Iterator[tuple[str, int]]:
    """Yield the characters in which byte-level vocabularies are written, as GPT-2 chose them, and their bytes."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = 0
    for byte in range(256):
        if byte in printable:
            yield chr(byte), byte
        else:
            yield chr(256 + others), byte
            others += 1


BYTE_LEVEL = dict(_byte_level())


def _value(name: str) -> int | None:
    if len(name) == 6 and name.startswith("<0x") and name.endswith(">"):
        digits = name[3:5]
        if all(digit in "0123456789abcdefABCDEF" for digit in digits):
            return int(digits, 16)
    return None


def _state(decoder: Any) -> Any:
    """Return a decoder's own JSON; None without one."""
    return None if decoder is None else json.loads(decoder.__getstate__())


def _types(state: Any) -> Iterator[str]:
    """Yield the types of a decoder and of those that it consists of."""
    if isinstance(state, dict):
        if isinstance(kind := state.get("type"), str):
            yield kind
        state = list(state.values())
    if isinstance(state, list):
        for part in state:
            yield from _types(part)
