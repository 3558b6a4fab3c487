"""The section of a ``model.lanes`` file that turns text into tokens and back, as src/text/format.h describes it.

A test compares this file with that one, name by name; what the fields mean is said there.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from enum import IntEnum, IntFlag

import numpy as np

from ...errors import BundleError
from .format import ALIGNMENT, filled_up

MAGIC = b"EDGETEXT"
VERSION = 1
NONE = 0xFFFFFFFF
MAX_TABLES = 256
MAX_TOKENS = (1 << 24) - 1
MAX_PROBES = 1024
MAX_PIECE = 1 << 14
MAX_STEPS = 256
MAX_CODE = 1 << 20
CODE_POINTS = 0x110000
BLOCK = 256
HASH = 0x811C9DC5


class Tag(IntEnum):
    """Tables."""

    RULES = 1
    STEPS = 2
    STRINGS = 3
    PIECE_ENDS = 4
    PIECES = 5
    SLOTS = 6
    MERGES = 7
    BYTE_TOKENS = 8
    SCORES = 9
    BLOCKS = 10
    CLASSES = 11
    MASKS = 12
    CODE = 13
    ADDED = 14
    ADDED_SLOTS = 15
    BEFORE = 16
    AFTER = 17
    MAPS = 18
    REORDER = 19
    COMPOSE = 20
    CHARSMAP = 21
    TURNS = 32
    ABOUT = 33
    EXITS = 34


class ModelKind(IntEnum):
    """How words become tokens."""

    BPE = 0
    UNIGRAM = 1
    WORDPIECE = 2
    WORDLEVEL = 3


class Flag(IntFlag):
    """Of the rules."""

    RAW_BYTES = 1
    BYTE_FALLBACK = 2
    FUSE_UNKNOWN = 4
    IGNORE_MERGES = 8
    SPLIT_SPECIAL = 16


class AddedFlag(IntFlag):
    """Of added tokens."""

    SPECIAL = 1
    NORMALIZED = 2
    SINGLE_WORD = 4
    LEFT = 8
    RIGHT = 16


class Stage(IntEnum):
    """Of steps."""

    NORMALIZE = 0
    SPLIT = 1
    DECODE = 2


class Kind(IntEnum):
    """Of steps."""

    MAP = 1
    COMPOSED = 2
    REPLACE = 3
    PREPEND = 4
    STRIP = 5
    CLUSTERS = 6
    PATTERN = 16
    METASPACE = 17
    SPACED = 18
    BYTES = 32
    FALLBACK = 33
    FUSE = 34
    STRIP_TOKEN = 35
    WORDPIECES = 36
    SUFFIX = 37
    JOINED = 38


class Behavior(IntFlag):
    """What becomes of what a pattern matches."""

    REMOVED = 0
    ISOLATED = 1
    WITH_PREVIOUS = 2
    WITH_NEXT = 3
    CONTIGUOUS = 4
    INVERTED = 8


class Code(IntEnum):
    """Instructions of patterns."""

    MATCH = 0
    SET = 1
    SPAN = 2
    EITHER = 3
    GO = 4
    AHEAD = 5
    BEHIND = 6
    ALL = 7


U32, U64 = "<u4", "<u8"
HEADER = np.dtype(
    [
        ("magic", "S8"),
        ("version", U32),
        ("records", U32),
        ("bytes", U64),
        ("checksum", U32),
        ("unused", U32, 9),
    ]
)
RECORD = np.dtype([("tag", U32), ("unused", U32), ("offset", U64), ("bytes", U64)])
STRING = np.dtype([("offset", U32), ("bytes", U32)])
TABLE = np.dtype([("homes", U32), ("probes", U32)])
RULES = np.dtype(
    [
        ("model", U32),
        ("flags", U32),
        ("tokens", U32),
        ("unknown", U32),
        ("slots", TABLE),
        ("merges", TABLE),
        ("added", TABLE),
        ("prefix", STRING),
        ("suffix", STRING),
        ("longest", U32),
        ("longest_added", U32),
        ("most_characters", U32),
        ("space", U32),
        ("word", U32),
        ("unused", U32, 7),
        ("unknown_score", "<f8"),
    ]
)
MERGE = np.dtype([("words", U32, 3)])
ADDED = np.dtype([("id", U32), ("flags", U32), ("text", STRING), ("written", STRING)])
STEP = np.dtype(
    [
        ("stage", U32),
        ("kind", U32),
        ("flags", U32),
        ("pattern", U32),
        ("set", U32),
        ("first", U32),
        ("count", U32),
        ("more", U32),
        ("a", STRING),
        ("b", STRING),
    ]
)
MAPPED = np.dtype([("code_point", U32), ("offset", U32), ("bytes", U32)])
COMPOSED = np.dtype([("first", U32), ("second", U32), ("made", U32)])


def section(tables: Mapping[int, bytes]) -> bytes:
    """The section of ``tables`` by their tags; empty ones are left out."""
    found = {tag: tables[tag] for tag in sorted(tables) if tables[tag]}
    records = np.zeros(len(found), RECORD)
    end = filled_up(HEADER.itemsize + records.nbytes, ALIGNMENT)
    for record, (tag, data) in zip(records, found.items(), strict=True):
        record["tag"], record["offset"], record["bytes"] = tag, end, len(data)
        end += filled_up(len(data), ALIGNMENT)
    header = np.zeros((), HEADER)
    header["magic"], header["version"], header["records"], header["bytes"] = MAGIC, VERSION, len(found), end
    header["checksum"] = zlib.crc32(header.tobytes() + records.tobytes())
    parts = [header.tobytes() + records.tobytes(), *found.values()]
    return b"".join(part.ljust(filled_up(len(part), ALIGNMENT), b"\0") for part in parts)


def tables(data: bytes | memoryview) -> dict[int, tuple[int, int]]:
    """Where each table lies in the section ``data``, by its tag: the first byte and the one behind the last.

    BundleError for what is no section, one of another version, or one whose tables are not where ``section`` puts them.
    """
    if len(data) < HEADER.itemsize or bytes(data[:8]) != MAGIC:
        raise BundleError("no text section")
    header = np.frombuffer(data, HEADER, 1)[0].copy()
    if header["version"] != VERSION:
        raise BundleError(f"a text section of version {header['version']}, wanted {VERSION}")
    count = int(header["records"])
    if header["bytes"] != len(data) or count > MAX_TABLES:
        raise BundleError(f"a text section of {header['bytes']} bytes, and {len(data)} are there")
    if len(data) < HEADER.itemsize + count * RECORD.itemsize:
        raise BundleError(f"a text section with {count} tables in {len(data)} bytes")
    records = np.frombuffer(data, RECORD, count, HEADER.itemsize)
    wanted, header["checksum"] = int(header["checksum"]), 0
    if zlib.crc32(header.tobytes() + records.tobytes()) != wanted or header["unused"].any():
        raise BundleError("a text section whose tables have another checksum")
    found, end, last = {}, filled_up(HEADER.itemsize + records.nbytes, ALIGNMENT), 0
    for record in records:
        tag, offset, size = (int(record[name]) for name in ("tag", "offset", "bytes"))
        if tag <= last or offset != end or not size or record["unused"] or offset + size > len(data):
            raise BundleError(f"a text section whose table {tag} is misplaced")
        found[tag], last = (offset, offset + size), tag
        end = offset + filled_up(size, ALIGNMENT)
    if end != len(data):
        raise BundleError(f"a text section of {end} bytes, and {len(data)} are there")
    return found
