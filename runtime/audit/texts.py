"""Accounts for JSON files: edgeloop's own must be as it writes them; others have no repeated or unread keys."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from ..bundle.folder import Bundle
from ..bundle.json_text import json_text
from ..bundle.manifest import Manifest
from ..engines.executorch.layout import Layout
from ..errors import BundleError, EdgeloopError
from .ledger import Ledger

_BLANKS = re.compile(rb"[ \t\r\n]{129,}")
"""More blanks than the indentation of any level of a tokenizer.json has."""
_MOST = 100
"""Keys of a kind that are searched for in the file: one is enough to refuse it."""
_OLD_KEYS = frozenset({"add_prefix_space", "str_rep"})
"""Keys of older versions, which the library reads and writes under other names."""


def manifest(ledger: Ledger) -> None:
    """Account for manifest.json."""
    _as_written(ledger, Manifest, "manifest", json_text)


def layout(bundle: Bundle, ledger: Ledger) -> None:
    """Account for layout.json of an ExecuTorch program."""
    _as_written(ledger, Layout, "layout", _indented)


def _indented(value: object) -> bytes:
    """Return ``value`` as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(value), indent=1)


def _as_written(ledger: Ledger, kind: Any, name: str, written: Callable[[object], bytes]) -> None:
    """Account for a file of ``kind``, which must be as edgeloop writes it."""
    data = bytes(ledger.data)
    try:
        msgspec.json.decode(data, type=kind)  # closed: it has no other keys
        wanted = written(msgspec.json.decode(data))
    except (ValueError, RecursionError) as error:
        ledger.refuse(0, len(data), f"no {name}: {str(error)[:200]}")
        return
    _compare(ledger, data, wanted, name)


def _compare(ledger: Ledger, data: bytes, wanted: bytes, name: str) -> None:
    """Refuse the parts of ``data`` that ``wanted`` does not have: blanks, repeated keys, defaults."""
    if data != wanted:
        shorter = min(len(data), len(wanted))
        first = next((i for i in range(shorter) if data[i] != wanted[i]), shorter)
        same = next((i for i in range(shorter - first) if data[-1 - i] != wanted[-1 - i]), shorter - first)
        ledger.refuse(first, max(len(data) - same, first + 1), f"not as edgeloop writes a {name}")
    ledger.take(0, len(data), name)


def tokenizer(bundle: Bundle, ledger: Ledger) -> None:
    """Account for tokenizer.json: no key twice, and none that the tokenizers library does not read."""
    data, repeated = bytes(ledger.data), list[str]()

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        repeated.extend(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        return dict(pairs)

    try:
        found = json.loads(data, object_pairs_hook=once)
        read = json.loads(_reprinted(bundle.path(ledger.file)))
    except (ValueError, RecursionError, EdgeloopError) as error:
        ledger.refuse(0, len(data), f"no tokenizer: {' '.join(str(error).split())[:200]}")
        return
    for key in repeated[:_MOST]:
        at = data.rfind(json.dumps(key, ensure_ascii=False).encode())
        ledger.refuse(at, at + len(key) + 2, f"key {key[:40]!r} more than once in an object")
    for place, value in islice(_unread(found, read, "$"), _MOST):
        at = data.find(json.dumps(place.rpartition(".")[2], ensure_ascii=False).encode())
        size = len(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode())
        ledger.refuse(at, at + size, f"{place[:80]}, which the tokenizers library does not read")
    for blanks in _BLANKS.finditer(data):
        ledger.refuse(*blanks.span(), "blanks")
    ledger.take(0, len(data), "tokenizer")


def _reprinted(path: Path) -> str:
    from ..text.tokenizer import open_engine
    from ..text.tokenizer_file import read_tokenizer_file

    return str(open_engine(read_tokenizer_file(path), path, BundleError).to_str())


def _unread(found: Any, read: Any, place: str) -> Iterator[tuple[str, Any]]:
    """Yield the keys of ``found`` that ``read``, what the library wrote after reading it, does not have."""
    if isinstance(found, dict) and isinstance(read, dict):
        for key, value in found.items():
            if key not in read and key not in _OLD_KEYS:
                if place not in ("$.model.vocab",):
                    yield f"{place}.{key}", value
            elif key in read:
                yield from _unread(value, read[key], f"{place}.{key}")
    elif isinstance(found, list) and isinstance(read, list):
        for i, (one, other) in enumerate(zip(found, read, strict=False)):
            if isinstance(one, dict):
                yield from _unread(one, other, f"{place}[{i}]")
