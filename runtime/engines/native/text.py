"""The native tokenizer (src/edgeloop_text.h) as Python sees it: for what compares it with the tokenizers library.

Python hosts read tokenizer.json with that library; this one is of hosts in C, C++ and on phones.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from ctypes import byref, c_char_p, c_int64, c_size_t, c_uint32, c_void_p
from pathlib import Path

import numpy as np

from .library import Calls


class _Message(ctypes.Structure):
    _fields_ = (("role", c_char_p), ("content", c_char_p))


class NativeText:
    """The tokenizer of a ``model.lanes`` file, or of one that is a text section ``alone``."""

    def __init__(self, path: Path, alone: bool = False) -> None:
        """BundleError for a file that is none; UsageError for one without a text section."""
        self._calls = Calls()
        self._model, self._text = c_void_p(), c_void_p()
        if alone:
            self._calls("el_text_read", str(path).encode(), byref(self._text))
            return
        self._calls("el_open", str(path).encode(), None, byref(self._model))
        try:
            self._calls("el_text_open", self._model, byref(self._text))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of the file."""
        self._calls.functions.el_text_close(self._text)
        self._calls.functions.el_close(self._model)
        self._text, self._model = c_void_p(), c_void_p()

    def encode(self, text: str | bytes, special: bool = True) -> list[int]:
        """The tokens of ``text``; with ``special`` also those that stand around a text. UsageError for no UTF-8."""
        data = text.encode() if isinstance(text, str) else text
        ids, count = np.empty(len(data) + 64, np.int64), c_size_t()

        def encode() -> None:
            self._calls(
                "el_encode",
                self._text,
                data,
                len(data),
                int(special),
                ids.ctypes.data,
                len(ids),
                byref(count),
            )

        encode()
        if count.value > len(ids):  # normalizers may make more of it
            ids = np.empty(count.value, np.int64)
            encode()
        return [int(x) for x in ids[: count.value]]

    def decode(self, ids: Sequence[int], special: bool = False) -> str:
        """The text of ``ids``; special tokens give no text unless ``special``."""
        wanted, count = np.array(ids, np.int64), c_size_t()
        room = 16 * len(ids) + 64
        for _ in range(2):
            text = ctypes.create_string_buffer(room)
            self._calls(
                "el_decode",
                self._text,
                wanted.ctypes.data,
                len(wanted),
                int(not special),
                text,
                room,
                byref(count),
            )
            if count.value <= room:
                break
            room = count.value
        return text.raw[: count.value].decode()

    def ends(self) -> list[int]:
        """The tokens that end a text."""
        count = c_size_t()
        self._calls("el_text_ends", self._text, None, 0, byref(count))
        ids = np.empty(count.value, np.int64)
        self._calls("el_text_ends", self._text, ids.ctypes.data, len(ids), byref(count))
        return [int(x) for x in ids]

    def render(self, messages: Sequence[Mapping[str, str]], flags: int = 0) -> str:
        """The text of a conversation as the model's turns write it; ``flags``: el_render_flag. UsageError for what they
        do not say."""
        given = (_Message * len(messages))(
            *(_Message(m["role"].encode(), m["content"].encode()) for m in messages)
        )
        count = c_size_t()
        asked = "el_text_render", self._text, given, len(messages), flags
        self._calls(*asked, None, 0, byref(count))
        text = ctypes.create_string_buffer(count.value + 1)
        self._calls(*asked, text, count.value, byref(count))
        return text.raw[: count.value].decode()

    def writer(self, prompt: Sequence[int] = (), stops: Sequence[str] = ()) -> NativeWriter:
        """A stream of the text that follows the tokens ``prompt``, ended by the first of ``stops``."""
        return NativeWriter(self._text, prompt, stops)


class NativeWriter:
    """An answer that comes token by token."""

    def __init__(self, text: c_void_p, prompt: Sequence[int], stops: Sequence[str]) -> None:
        self._calls = Calls()
        self._writer = c_void_p()
        before = np.array(prompt, np.int64)
        strings = (c_char_p * len(stops))(*(stop.encode() for stop in stops))
        self._calls(
            "el_writer_new", text, before.ctypes.data, len(before), strings, len(stops), byref(self._writer)
        )
        self.stopped = False
        """A stop string has come."""

    def push(self, token: int) -> str:
        """Return the text that, now that ``token`` has come, is certain to stand before any stop string."""
        data, size, stopped = c_void_p(), c_size_t(), c_uint32()
        self._calls("el_writer_push", self._writer, c_int64(token), byref(data), byref(size), byref(stopped))
        self.stopped = bool(stopped.value)
        return _text(data, size)

    def flush(self) -> str:
        """Return what was held back, at the end of an answer."""
        data, size = c_void_p(), c_size_t()
        self._calls("el_writer_end", self._writer, byref(data), byref(size))
        return _text(data, size)

    def close(self) -> None:
        """Free it."""
        self._calls.functions.el_writer_free(self._writer)
        self._writer = c_void_p()


def _text(data: c_void_p, size: c_size_t) -> str:
    return ctypes.string_at(data, size.value).decode() if size.value else ""
