"""The file that the lane engine maps and runs, as src/format.h describes it: its records as numpy has them.

A test compares this file with that one, name by name; what the fields mean is said there.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Any

import numpy as np

MAGIC = b"EDGELANE"
VERSION = 1
NONE = 0xFFFFFFFF
ALIGNMENT = 64
TILE = 16
COLUMNS = 16
"""Codes of a row are filled up to a multiple of these."""


class TableNumber(IntEnum):
    """The tables of a file, in the order of its header."""

    STAGES = 0
    OPS = 1
    OPERANDS = 2
    VALUES = 3
    SCHEDULE = 4
    CARRIES = 5
    CACHES = 6
    KEPT = 7
    MATRICES = 8
    PARTS = 9
    VECTORS = 10
    ROTATIONS = 11
    FREQUENCIES = 12
    NAMES = 13


class Host(IntEnum):
    """What the caller gives a prologue."""

    IDS = 0
    POSITIONS = 1
    TYPES = 2


class OpKind(IntEnum):
    """The ops, by the names of ``runtime/model/ops.py``."""

    EMBED = 0
    NORM = 1
    LINEAR = 2
    ROTATE = 3
    ATTEND = 4
    ATTEND_TWICE = 5
    ATTEND_LEARNED = 6
    ACT = 7
    ADD = 8
    MUL = 9
    SCALE = 10
    SOFTCAP = 11
    CONCAT = 12
    SLICE = 13
    SHIFT = 14
    EXPERTS = 15


class Norm(IntEnum):
    """Kinds of norms."""

    RMS = 0
    LAYER = 1


class Mask(IntEnum):
    """What a row sees."""

    CAUSAL = 0
    BOTH = 1
    PREFIX = 2


class Function(IntEnum):
    """Elementwise functions."""

    SILU = 0
    GELU = 1
    GELU_TANH = 2
    RELU2 = 3
    SIGMOID = 4
    TANH = 5
    SOFTPLUS = 6
    EXP = 7
    RELU = 8


class Flag(IntFlag):
    """Of an op."""

    PAIRS = 1
    FIRST_SLOT = 2
    GATED = 4
    RENORMALISED = 8


class Storage(IntEnum):
    """Of the numbers of a matrix."""

    F32 = 0
    F16 = 1
    I8 = 2
    I4 = 3


U32, U64, F32, F64 = "<u4", "<u8", "<f4", "<f8"


TABLE = np.dtype([("offset", U64), ("count", U64)])
RANGE = np.dtype([("first", U32), ("count", U32)])
HEADER = np.dtype(
    [
        ("magic", "S8"),
        ("version", U32),
        ("header_bytes", U32),
        ("file_bytes", U64),
        ("data_start", U64),
        ("checksum", U32),
        ("vocab_size", U32),
        ("context_length", U32),
        ("token_types", U32),
        ("prologue", U32),
        ("epilogue", U32),
        ("head", U32),
        ("deeper", U32),
        ("shares_kv", U32),
        ("unused", U32, 3),
        ("caches", RANGE, 3),
        ("kept", RANGE, 3),
        ("tables", TABLE, len(TableNumber)),
        ("text", U64),
        ("text_bytes", U64),
        ("more", "u1", 512 - 96 - 16 * 3 - 16 * len(TableNumber)),
    ]
)
STAGE = np.dtype(
    [
        ("first_op", U32),
        ("ops", U32),
        ("first_value", U32),
        ("values", U32),
        ("inputs", U32),
        ("first_host", U32),
        ("first_output", U32),
        ("outputs", U32),
    ]
)
DEPTH = np.dtype([("block", U32), ("fill", U32)])
CACHE = np.dtype([("kv_heads", U32), ("head_dim", U32), ("window", U32), ("unused", U32)])
OP = np.dtype(
    [
        ("kind", U32),
        ("function", U32),
        ("flags", U32),
        ("at", U32),
        ("first_operand", U32),
        ("reads", U32),
        ("writes", U32),
        ("weights", U32, 3),
        ("numbers", U32, 6),
        ("factors", F32, 2),
        ("unused", U32, 2),
    ]
)
MATRIX = np.dtype(
    [
        ("name", U32),
        ("storage", U32),
        ("columns", U32),
        ("group", U32),
        ("copies", U32),
        ("depths", U32),
        ("first_part", U32),
        ("parts", U32),
        ("data", U64),
        ("scales", U64),
        ("bias", U64),
        ("unused", U64),
    ]
)
PART = np.dtype(
    [
        ("name", U32),
        ("rows", U32),
        ("rank", U32),
        ("storage", U32),
        ("a", U64),
        ("b", U64),
        ("scale", U64),
    ]
)
VECTOR = np.dtype([("name", U32), ("size", U32), ("rows", U32), ("unused", U32), ("data", U64)])
ROTATION = np.dtype([("dims", U32), ("first_frequency", U32), ("amplitude", F64)])

RECORDS: dict[TableNumber, np.dtype[Any]] = {
    TableNumber.STAGES: STAGE,
    TableNumber.OPS: OP,
    TableNumber.OPERANDS: np.dtype(U32),
    TableNumber.VALUES: np.dtype(U32),
    TableNumber.SCHEDULE: DEPTH,
    TableNumber.CARRIES: np.dtype(U32),
    TableNumber.CACHES: CACHE,
    TableNumber.KEPT: np.dtype(U32),
    TableNumber.MATRICES: MATRIX,
    TableNumber.PARTS: PART,
    TableNumber.VECTORS: VECTOR,
    TableNumber.ROTATIONS: ROTATION,
    TableNumber.FREQUENCIES: np.dtype(F64),
    TableNumber.NAMES: np.dtype("u1"),
}
"""What each table is an array of."""


def filled_up(count: int, step: int) -> int:
    """``count`` or the next multiple of ``step``."""
    return -(-count // step) * step
