"""The library as Python calls it: src/edgeloop.h through ctypes, which lets go of the GIL during a call.

It is the file that the package's build puts beside this one (``build.py``), loaded once a process.
"""

from __future__ import annotations

import ctypes
import os
from ctypes import POINTER, c_char, c_char_p, c_int, c_int64, c_size_t, c_uint32, c_uint64, c_void_p
from enum import IntEnum
from functools import cache
from typing import Any

from ...errors import BundleError, EdgeloopError, EngineError, UsageError
from .build import ADVICE, LIBRARY

ABI = 2
ERROR_SIZE = 256


class Code(IntEnum):
    """What a function returns."""

    OK = 0
    FILE = 1
    FORMAT = 2
    USAGE = 3
    MEMORY = 4
    STOPPED = 5


class Stage(IntEnum):
    """Stages that have caches."""

    PROLOGUE = 0
    BLOCK = 1
    EPILOGUE = 2


class Kv(IntEnum):
    """How K/V are kept."""

    F32 = 0
    F16 = 1
    I8 = 2
    I4 = 3


class Activations(IntEnum):
    """What becomes of the inputs of quantized matrices."""

    INT8 = 0
    FLOAT = 1


class Struct(ctypes.Structure):
    """The first field of every struct is its size: a library that knows more fields knows which are given."""

    def __init__(self, **fields: Any) -> None:
        super().__init__(struct_bytes=ctypes.sizeof(self), **fields)


class OpenOptions(Struct):
    """el_open_options."""

    _fields_ = (
        ("struct_bytes", c_uint32),
        ("activations", c_uint32),
        ("threads", c_uint32),
        ("pinned", c_uint32),
        ("cpus", c_void_p),
        ("kernels", c_char_p),
    )


class Info(Struct):
    """el_info."""

    _fields_ = (
        ("struct_bytes", c_uint32),
        ("depths", c_uint32),
        ("any_depth", c_uint32),
        ("width", c_uint32),
        ("output", c_uint32),
        ("vocab_size", c_uint32),
        ("context_length", c_uint32),
        ("token_types", c_uint32),
        ("shares_kv", c_uint32),
        ("kept_rows", c_uint32),
        ("threads", c_uint32),
        ("activations", c_uint32),
        ("file_bytes", c_uint64),
        ("kernels", c_char_p),
    )


class SessionOptions(Struct):
    """el_session_options."""

    _fields_ = (
        ("struct_bytes", c_uint32),
        ("sequences", c_uint32),
        ("capacity", c_uint32),
        ("slots", c_uint32),
        ("kv", c_uint32),
    )


class LaneArrays(Struct):
    """el_lanes."""

    _fields_ = (
        ("struct_bytes", c_uint32),
        ("count", c_uint32),
        ("stride", c_uint32),
        ("padded", c_uint32),
        ("first_slot", c_uint32),
        ("unused", c_uint32),
        ("depth", c_void_p),
        ("cached", c_void_p),
        ("tokens", c_void_p),
        ("positions", c_void_p),
        ("slots", c_void_p),
    )


class Stats(Struct):
    """el_stats."""

    _fields_ = (
        ("struct_bytes", c_uint32),
        ("threads", c_uint32),
        ("calls", c_uint64),
        ("rows", c_uint64),
        ("kv_bytes", c_uint64),
        ("shared_bytes", c_uint64),
        ("scratch_bytes", c_uint64),
    )


class NodeTime(ctypes.Structure):
    """el_node_time."""

    _fields_ = (
        ("call", c_uint32),
        ("role", c_uint32),
        ("kind", c_uint32),
        ("outputs", c_uint32),
        ("nanoseconds", c_uint64),
    )


STRUCTS: dict[str, type[ctypes.Structure]] = {
    "el_open_options": OpenOptions,
    "el_info": Info,
    "el_session_options": SessionOptions,
    "el_lanes": LaneArrays,
    "el_stats": Stats,
    "el_node_time": NodeTime,
}

_ERROR = POINTER(c_char)
_LANES = POINTER(LaneArrays)
FUNCTIONS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "el_abi": (c_uint32, ()),
    "el_kernels": (c_char_p, ()),
    "el_open": (c_int, (c_char_p, POINTER(OpenOptions), POINTER(c_void_p), _ERROR)),
    "el_close": (None, (c_void_p,)),
    "el_model_info": (c_int, (c_void_p, POINTER(Info), _ERROR)),
    "el_session_new": (c_int, (c_void_p, POINTER(SessionOptions), POINTER(c_void_p), _ERROR)),
    "el_session_free": (None, (c_void_p,)),
    "el_stop": (None, (c_void_p,)),
    "el_prologue": (c_int, (c_void_p, _LANES, c_void_p, c_void_p, c_void_p, _ERROR)),
    "el_block": (c_int, (c_void_p, _LANES, c_void_p, c_void_p, _ERROR)),
    "el_fill": (c_int, (c_void_p, _LANES, c_void_p, _ERROR)),
    "el_epilogue": (c_int, (c_void_p, _LANES, c_void_p, c_void_p, c_uint32, c_void_p, _ERROR)),
    "el_prompt": (c_int, (c_void_p, _LANES, c_void_p, c_uint32, c_void_p, _ERROR)),
    "el_decoder_new": (c_int, (c_void_p, c_uint32, c_void_p, POINTER(c_void_p), _ERROR)),
    "el_decoder_free": (None, (c_void_p,)),
    "el_decoder_sample": (c_int, (c_void_p, c_void_p, _ERROR)),
    "el_decoder_next": (
        c_int,
        (c_void_p, c_int64, c_void_p, c_uint32, c_uint32, c_void_p, c_void_p, c_void_p, _ERROR),
    ),
    "el_decoder_logits": (c_int, (c_void_p, c_void_p, _ERROR)),
    "el_choose": (c_int, (c_void_p, c_void_p, c_uint32, c_uint64, c_void_p, _ERROR)),
    "el_decoder_read": (c_int, (c_void_p, c_void_p, _ERROR)),
    "el_decoder_write": (c_int, (c_void_p, c_void_p, _ERROR)),
    "el_decoder_truncate": (c_int, (c_void_p, c_uint32, _ERROR)),
    "el_decoder_counts": (c_int, (c_void_p, c_void_p, _ERROR)),
    "el_batch_new": (c_int, (c_void_p, POINTER(c_void_p), _ERROR)),
    "el_batch_free": (None, (c_void_p,)),
    "el_batch_next": (c_int, (c_void_p, c_void_p, c_uint32, c_void_p, c_void_p, _ERROR)),
    "el_decoder_draft": (c_int, (c_void_p, c_void_p, _ERROR)),
    "el_decoder_text": (c_int, (c_void_p, c_void_p, c_uint32, _ERROR)),
    "el_decoder_drafts": (c_int, (c_void_p, c_void_p, _ERROR)),
    "el_text_open": (c_int, (c_void_p, POINTER(c_void_p), _ERROR)),
    "el_text_read": (c_int, (c_char_p, POINTER(c_void_p), _ERROR)),
    "el_text_close": (None, (c_void_p,)),
    "el_text_render": (
        c_int,
        (c_void_p, c_void_p, c_uint32, c_uint32, c_void_p, c_size_t, POINTER(c_size_t), _ERROR),
    ),
    "el_text_ends": (c_int, (c_void_p, c_void_p, c_size_t, POINTER(c_size_t), _ERROR)),
    "el_encode": (
        c_int,
        (c_void_p, c_char_p, c_size_t, c_uint32, c_void_p, c_size_t, POINTER(c_size_t), _ERROR),
    ),
    "el_decode": (
        c_int,
        (c_void_p, c_void_p, c_size_t, c_uint32, c_void_p, c_size_t, POINTER(c_size_t), _ERROR),
    ),
    "el_writer_new": (
        c_int,
        (c_void_p, c_void_p, c_size_t, c_void_p, c_uint32, POINTER(c_void_p), _ERROR),
    ),
    "el_writer_free": (None, (c_void_p,)),
    "el_writer_push": (
        c_int,
        (c_void_p, c_int64, POINTER(c_void_p), POINTER(c_size_t), POINTER(c_uint32), _ERROR),
    ),
    "el_writer_end": (c_int, (c_void_p, POINTER(c_void_p), POINTER(c_size_t), _ERROR)),
    "el_can_truncate": (c_int, (c_void_p, c_uint32, c_uint32)),
    "el_trim": (c_int, (c_void_p, c_uint32, c_uint32, c_uint32, _ERROR)),
    "el_copy": (
        c_int,
        (c_void_p, c_uint32, c_uint32, c_uint32, c_void_p, c_uint32, c_uint32, c_uint32, _ERROR),
    ),
    "el_row_bytes": (c_size_t, (c_void_p, c_uint32)),
    "el_read_rows": (c_int, (c_void_p, c_uint32, c_uint32, c_uint32, c_uint32, c_void_p, _ERROR)),
    "el_write_rows": (c_int, (c_void_p, c_uint32, c_uint32, c_uint32, c_uint32, c_void_p, _ERROR)),
    "el_kept_floats": (c_size_t, (c_void_p, c_uint32)),
    "el_read_kept": (c_int, (c_void_p, c_uint32, c_uint32, POINTER(c_uint32), c_void_p, _ERROR)),
    "el_write_kept": (c_int, (c_void_p, c_uint32, c_uint32, c_uint32, c_void_p, _ERROR)),
    "el_session_stats": (c_int, (c_void_p, POINTER(Stats), _ERROR)),
    "el_profile": (c_int, (c_void_p, c_uint32, _ERROR)),
    "el_profile_read": (c_int, (c_void_p, c_void_p, c_uint64, POINTER(c_uint64), _ERROR)),
    "el_node_name": (c_char_p, (c_uint32,)),
}
"""What each function returns and takes."""


def unavailable_reason() -> str:
    """Return why the lane engine cannot run here, or nothing where it can."""
    try:
        kernels()
    except EngineError as error:
        return str(error).removeprefix("engine native ")
    return ""


def kernels() -> str:
    """Return the name of the kernels that run here; EngineError without a library or with a name that there is not."""
    found: bytes | None = library().el_kernels()
    if found is None:
        named = os.environ.get("EDGELOOP_KERNELS")
        raise EngineError(
            f"engine native has no kernels {named!r} for this processor; unset EDGELOOP_KERNELS"
        )
    return found.decode()


@cache
def library() -> ctypes.CDLL:
    """The loaded library; EngineError when it is missing, does not load, or is of other sources."""
    if not LIBRARY.is_file():
        raise EngineError(f"engine native has no library here: {ADVICE}")
    try:
        loaded = ctypes.CDLL(str(LIBRARY))
        loaded.el_abi.restype, loaded.el_abi.argtypes = FUNCTIONS["el_abi"]
        if (found := loaded.el_abi()) != ABI:
            raise EngineError(
                f"engine native has a library of another version ({found}, wanted {ABI}): {ADVICE}"
            )
        for name, (returned, taken) in FUNCTIONS.items():
            function = getattr(loaded, name)
            function.restype, function.argtypes = returned, taken
    except (OSError, AttributeError) as error:
        reason = str(error).removeprefix(f"{LIBRARY}: ")
        raise EngineError(f"engine native cannot load {LIBRARY.name} ({reason}): {ADVICE}") from error
    return loaded


class Calls:
    """Calls that fail with a line of text, which becomes an error. Not for two threads at a time."""

    def __init__(self) -> None:
        self.functions = library()
        self._error = ctypes.create_string_buffer(ERROR_SIZE)

    def __call__(self, name: str, *arguments: Any) -> None:
        """Call ``name`` with ``arguments`` and the buffer for what went wrong."""
        if code := getattr(self.functions, name)(*arguments, self._error):
            raise failure(code, self._error.value.decode(errors="replace"))


def failure(code: int, text: str) -> EdgeloopError:
    """The error that a function returned as ``code``, with its line of ``text``."""
    if code in (Code.FILE, Code.FORMAT):
        return BundleError(f"{text}; copy the bundle again or export it again")
    return UsageError(text) if code == Code.USAGE else EngineError(f"engine native: {text}")
