"""The C interface of updates (edgeloop_update.h) by ctypes: no part of Python calls it, apps do."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from ctypes import POINTER, byref, c_char_p, c_double, c_int, c_size_t, c_uint8, c_uint32, c_uint64, c_void_p
from pathlib import Path

from edgeloop.runtime.engines.native.library import ERROR_SIZE, Code

VERIFY = ctypes.CFUNCTYPE(c_int, c_void_p, POINTER(c_uint8), POINTER(c_uint8), c_size_t, POINTER(c_uint8))
PROGRESS = ctypes.CFUNCTYPE(c_int, c_void_p, c_double)


class Trust(ctypes.Structure):
    """el_trust."""

    _fields_ = (
        ("struct_bytes", c_uint32),
        ("unused", c_uint32),
        ("key", c_char_p),
        ("verify", VERIFY),
        ("user", c_void_p),
    )


class UpdateInfo(ctypes.Structure):
    """el_update_info."""

    _fields_ = (
        ("struct_bytes", c_uint32),
        ("already", c_uint32),
        ("update_bytes", c_uint64),
        ("bundle_bytes", c_uint64),
        ("written_bytes", c_uint64),
    )


class CallError(Exception):
    """What a function returned, and its line."""

    def __init__(self, code: Code, line: str) -> None:
        super().__init__(line)
        self.code = code


class Calls:
    """The functions of the library at ``path``."""

    def __init__(self, path: Path) -> None:
        self.library = ctypes.CDLL(str(path))

    def _call(self, name: str, *given: object) -> None:
        error = ctypes.create_string_buffer(ERROR_SIZE)
        code = getattr(self.library, name)(*given, error)
        if code:
            line = error.value.decode(errors="replace")
            assert line
            assert "\n" not in line
            raise CallError(Code(code), line)
        assert error.value == b""

    def verify(self, update: Path, trust: Trust | None = None) -> UpdateInfo:
        info = UpdateInfo(ctypes.sizeof(UpdateInfo))
        self._call("el_update_verify", bytes(update), trust and byref(trust), byref(info))
        return info

    def apply(
        self,
        bundle: Path,
        update: Path,
        trust: Trust | None = None,
        progress: Callable[[float], bool] = lambda share: False,
    ) -> UpdateInfo:
        info = UpdateInfo(ctypes.sizeof(UpdateInfo))
        called = PROGRESS(lambda user, share: int(progress(share)))
        self._call(
            "el_update_apply", bytes(bundle), bytes(update), trust and byref(trust), called, None, byref(info)
        )
        return info

    def back(self, bundle: Path, trust: Trust | None = None) -> None:
        self._call("el_update_back", bytes(bundle), trust and byref(trust))

    def settle(self, bundle: Path) -> None:
        self._call("el_update_settle", bytes(bundle))

    def check(self, bundle: Path, trust: Trust | None) -> None:
        self._call("el_bundle_verify", bytes(bundle), trust and byref(trust))
