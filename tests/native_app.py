"""The C interface for apps (src/edgeloop_context.h) as ctypes has it: what an app written in C calls, for tests."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from ctypes import POINTER, byref, c_char_p, c_double, c_int, c_int64, c_size_t, c_uint32, c_uint64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

from edgeloop.runtime.engines.native.library import library

ERROR = 256
OK, FILE, FORMAT, USAGE = 0, 1, 2, 3
WHY = ("eos", "stop", "length", "context", "stopped")
ANSWER, THINK, NO_THINK, ENDLESS = 1, 2, 4, 1


class _Struct(ctypes.Structure):
    def __init__(self, **values: Any) -> None:
        super().__init__(struct_bytes=ctypes.sizeof(type(self)), **values)


class OpenOptions(_Struct):
    _fields_ = (
        ("struct_bytes", c_uint32),
        ("activations", c_uint32),
        ("threads", c_uint32),
        ("pinned", c_uint32),
        ("cpus", c_void_p),
        ("kernels", c_char_p),
    )


class About(_Struct):
    _fields_ = (
        ("struct_bytes", c_uint32),
        ("turns", c_uint32),
        ("system", c_uint32),
        ("thinking", c_uint32),
        ("ends_count", c_uint32),
        ("exits_count", c_uint32),
        ("ends", POINTER(c_int64)),
        ("exits", POINTER(c_char_p)),
        ("name", c_char_p),
    )


class Message(ctypes.Structure):
    _fields_ = (("role", c_char_p), ("content", c_char_p))


class ContextOptions(_Struct):
    _fields_ = (
        ("struct_bytes", c_uint32),
        ("capacity", c_uint32),
        ("kv", c_uint32),
        ("drafts", c_uint32),
        ("think", c_uint32),
        ("answer_room", c_uint32),
        ("exit", c_char_p),
        ("skipped_kv", c_char_p),
    )


class Piece(_Struct):
    _fields_ = (
        ("struct_bytes", c_uint32),
        ("depth", c_uint32),
        ("token", c_int64),
        ("utf8", c_void_p),
        ("bytes", c_size_t),
        ("nanoseconds", c_uint64),
    )


class Sampling(_Struct):
    _fields_ = (
        ("struct_bytes", c_uint32),
        ("top_k", c_uint32),
        ("temperature", c_double),
        ("top_p", c_double),
        ("min_p", c_double),
        ("seed", c_uint64),
    )


class AnswerOptions(_Struct):
    _fields_ = (
        ("struct_bytes", c_uint32),
        ("max_tokens", c_uint32),
        ("flags", c_uint32),
        ("stops_count", c_uint32),
        ("stops", POINTER(c_char_p)),
        ("sampling", POINTER(Sampling)),
    )


class Answer(_Struct):
    _fields_ = (
        ("struct_bytes", c_uint32),
        ("why", c_uint32),
        ("tokens", c_uint32),
        ("prompt_tokens", c_uint32),
        ("forgotten", c_uint32),
        ("unused", c_uint32),
        ("prompt_nanoseconds", c_uint64),
        ("first_nanoseconds", c_uint64),
        ("nanoseconds", c_uint64),
    )


class ContextStats(_Struct):
    _fields_ = (
        ("struct_bytes", c_uint32),
        ("depths", c_uint32),
        ("tokens", c_uint64),
        ("cached", c_uint64),
        ("kv_bytes", c_uint64),
        ("shared_bytes", c_uint64),
        ("generated", c_uint64),
        ("drafts", c_uint64),
        ("drafts_right", c_uint64),
        ("exits", POINTER(c_uint64)),
    )


ON_PIECE = ctypes.CFUNCTYPE(c_int, c_void_p, POINTER(Piece))
STRUCTS = {
    "el_about": About,
    "el_message": Message,
    "el_context_options": ContextOptions,
    "el_piece": Piece,
    "el_answer_options": AnswerOptions,
    "el_answer": Answer,
    "el_context_stats": ContextStats,
}
_VOID = ("el_close", "el_text_close", "el_context_free", "el_context_stop")


@cache
def _library() -> ctypes.CDLL:
    """The library with functions of its own: what is set on those that the engine has would be set for it as well."""
    return ctypes.CDLL(library()._name)


class CodeError(Exception):
    """A code that is not EL_OK, and its line."""

    def __init__(self, code: int, line: str) -> None:
        super().__init__(line)
        self.code = code


def call(name: str, *arguments: Any) -> None:
    """Call ``name`` of the library, which says what goes wrong in a line; CodeError with it."""
    error = ctypes.create_string_buffer(ERROR)
    function = getattr(_library(), name)
    function.argtypes, function.restype = None, c_int
    if code := function(*arguments, error):
        raise CodeError(code, error.value.decode(errors="replace"))


def _free(name: str, pointer: c_void_p) -> None:
    function = getattr(_library(), name)
    function.argtypes, function.restype = None, None
    function(pointer)


def _messages(messages: Sequence[tuple[str, str]]) -> Any:
    return (Message * max(len(messages), 1))(
        *(Message(role.encode(), text.encode()) for role, text in messages)
    )


class App:
    """A model and its text."""

    def __init__(self, path: Path, *, text: bool = True, threads: int = 1) -> None:
        self.model, self.text = c_void_p(), c_void_p()
        call("el_open", str(path).encode(), byref(OpenOptions(threads=threads)), byref(self.model))
        if text:
            call("el_text_open", self.model, byref(self.text))

    def about(self) -> About:
        """What the model is."""
        found = About()
        call("el_model_about", self.model, byref(found))
        return found

    def render(self, messages: Sequence[tuple[str, str]], flags: int = ANSWER) -> str:
        """The text of a conversation."""
        given, count = _messages(messages), c_size_t()
        call("el_render", self.model, given, len(messages), flags, None, c_size_t(0), byref(count))
        room = ctypes.create_string_buffer(count.value + 1)
        call("el_render", self.model, given, len(messages), flags, room, count, byref(count))
        return room.raw[: count.value].decode()

    def context(self, **options: Any) -> AppContext:
        """A new context."""
        made = c_void_p()
        call("el_context_new", self.model, self.text, byref(ContextOptions(**options)), byref(made))
        return AppContext(made)

    def close(self) -> None:
        """Close both."""
        _free("el_text_close", self.text)
        _free("el_close", self.model)


class AppContext:
    """A context."""

    def __init__(self, pointer: c_void_p) -> None:
        self.pointer = pointer
        self.told = Answer()

    def append(self, ids: Sequence[int]) -> None:
        """Ids behind it."""
        call("el_context_append", self.pointer, (c_int64 * max(len(ids), 1))(*ids), c_size_t(len(ids)))

    def write(self, text: str | bytes) -> None:
        """A text behind it."""
        data = text.encode() if isinstance(text, str) else text
        call("el_context_text", self.pointer, data, c_size_t(len(data)))

    def say(self, role: str, content: str) -> None:
        """A message behind it."""
        call("el_context_say", self.pointer, role.encode(), content.encode())

    def chat(self, messages: Sequence[tuple[str, str]]) -> None:
        """The whole conversation."""
        call("el_context_chat", self.pointer, _messages(messages), len(messages))

    def answer(
        self,
        max_tokens: int = 0,
        *,
        stops: Sequence[str] = (),
        sampling: Sampling | None = None,
        flags: int = 0,
        on_piece: Callable[[int, str, int], int] = lambda token, text, depth: 0,
    ) -> list[tuple[int, str, int]]:
        """Tokens, the text that each completes, and depths that ran; ``told`` says more."""
        steps: list[tuple[int, str, int]] = []

        def took(_: Any, piece: Any) -> int:
            found = piece.contents
            text = ctypes.string_at(found.utf8, found.bytes).decode() if found.bytes else ""
            steps.append((found.token, text, found.depth))
            return on_piece(*steps[-1])

        given = (c_char_p * max(len(stops), 1))(*(stop.encode() for stop in stops))
        options = AnswerOptions(max_tokens=max_tokens, flags=flags, stops_count=len(stops), stops=given)
        if sampling is not None:
            options.sampling = ctypes.pointer(sampling)
        self.told = Answer()
        call("el_context_answer", self.pointer, byref(options), ON_PIECE(took), None, byref(self.told))
        return steps

    @property
    def why(self) -> str:
        """Why the last answer ended."""
        return WHY[self.told.why]

    @property
    def ids(self) -> list[int]:
        """Its tokens."""
        count = c_size_t()
        call("el_context_ids", self.pointer, None, c_size_t(0), byref(count))
        ids = (c_int64 * max(count.value, 1))()
        call("el_context_ids", self.pointer, ids, count, byref(count))
        return list(ids)[: count.value]

    @property
    def messages(self) -> list[tuple[str, str]]:
        """Its messages."""
        tokens, count, found = c_size_t(), c_size_t(), []
        call("el_context_length", self.pointer, byref(tokens), byref(count))
        for number in range(count.value):
            message = Message()
            call("el_context_message", self.pointer, c_size_t(number), byref(message))
            found.append((message.role.decode(), message.content.decode()))
        return found

    def seek(self, tokens: int) -> None:
        """Back to its first tokens."""
        call("el_context_seek", self.pointer, c_size_t(tokens))

    def again(self) -> None:
        """Back to the last answer."""
        call("el_context_again", self.pointer)

    def fork(self) -> AppContext:
        """Another one that goes on from here."""
        made = c_void_p()
        call("el_context_fork", self.pointer, byref(made))
        return AppContext(made)

    def save(self, path: Path) -> None:
        """Into a file."""
        call("el_context_save", self.pointer, str(path).encode())

    def load(self, path: Path) -> None:
        """From a file."""
        call("el_context_load", self.pointer, str(path).encode())

    def stop(self) -> None:
        """End the answer."""
        _free("el_context_stop", self.pointer)

    def stats(self, depths: int) -> tuple[ContextStats, list[int]]:
        """What it took, and tokens by depths."""
        exits = (c_uint64 * depths)()
        found = ContextStats(depths=depths, exits=exits)
        call("el_context_stats_read", self.pointer, byref(found))
        return found, list(exits)

    def free(self) -> None:
        """End it."""
        _free("el_context_free", self.pointer)
