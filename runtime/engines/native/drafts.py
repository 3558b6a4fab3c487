"""What the library takes and tells of drafts: the structs of src/edgeloop_tokens.h, and what they are in Python."""

from __future__ import annotations

from collections.abc import Callable
from ctypes import byref, c_double, c_uint32, c_uint64, c_void_p
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from ...model.program import STAGES
from ..tokens import Drafting, DraftReport, DraftsFed
from .library import Struct

COST_ROWS = 8
"""EL_COST_ROWS."""
MARGINS = 7
"""EL_MARGINS."""


class Drafts(IntEnum):
    """Whether to draft."""

    AUTO = 0
    NEVER = 1
    ALWAYS = 2


class DraftingStruct(Struct):
    """el_drafting."""

    _fields_ = (
        ("struct_bytes", c_uint32),
        ("kind", c_uint32),
        ("depth", c_uint32),
        ("judges", c_uint32),
        ("lookups", c_uint32),
        ("known", c_uint32),
        ("truth", c_void_p),
        ("wrong", c_void_p),
    )


class ReportStruct(Struct):
    """el_draft_report."""

    _fields_ = (
        ("struct_bytes", c_uint32),
        ("depths", c_uint32),
        ("sampled", c_uint32),
        ("unused", c_uint32),
        ("tokens", c_uint64),
        ("passes", c_uint64),
        ("reads", c_uint64),
        ("looked_up", c_uint64),
        ("looked_up_right", c_uint64),
        ("predicted", c_uint64),
        ("predicted_right", c_uint64),
        ("saved", c_double),
        ("costs", c_void_p),
        ("threads", c_void_p),
        ("least", c_void_p),
        ("acceptance", c_void_p),
    )


STRUCTS = {"el_drafting": DraftingStruct, "el_draft_report": ReportStruct}

Call = Callable[..., None]
"""Calls a function of the library by its name, with the decoder and what is given."""


def draft(call: Call, drafting: Drafting) -> None:
    """Draft as ``drafting`` says."""
    known = drafting.known
    truth = np.ascontiguousarray(() if known is None else known[0], np.int64)
    wrong = np.ascontiguousarray(() if known is None else known[1], np.uint8)
    given = DraftingStruct(
        kind=Drafts[drafting.kind.upper()],
        depth=drafting.depth,
        judges=drafting.judges,
        lookups=drafting.lookups,
        known=len(truth),
        truth=truth.ctypes.data,
        wrong=wrong.ctypes.data,
    )
    call("el_decoder_draft", byref(given))


def text(call: Call, ids: npt.ArrayLike) -> None:
    """Look drafts up in ids [S], of which the decoder has run the first."""
    given = np.ascontiguousarray(ids, np.int64)
    call("el_decoder_text", given.ctypes.data, len(given))


def report(call: Call, depths: int) -> DraftReport:
    """Return what became of drafts."""
    acceptance, costs = np.zeros((depths - 1, MARGINS + 1)), np.zeros((len(STAGES), COST_ROWS))
    least, threads = np.zeros(depths), np.zeros(COST_ROWS, np.uint32)
    found = ReportStruct(
        depths=depths,
        acceptance=acceptance.ctypes.data,
        costs=costs.ctypes.data,
        threads=threads.ctypes.data,
        least=least.ctypes.data,
    )
    call("el_decoder_drafts", byref(found))
    return DraftReport(
        tokens=found.tokens,
        passes=found.passes,
        reads=found.reads,
        looked_up=DraftsFed(found.looked_up, found.looked_up_right),
        predicted=DraftsFed(found.predicted, found.predicted_right),
        saved_ns=found.saved,
        costs_ns=dict(zip(STAGES, map(tuple, costs.tolist()), strict=True)),
        threads=tuple(threads.tolist()),
        least=tuple(least.tolist()),
        acceptance=tuple(acceptance[:, -1].tolist()),
        by_margin=tuple(tuple(row) for row in acceptance[:, :-1].tolist()),
    )
