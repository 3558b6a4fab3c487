"""Text that comes from outside: words of the command line, files, stdin. It is UTF-8, or one line says what it is."""

from __future__ import annotations

import argparse
import codecs
import json
import os
import sys
from pathlib import Path
from typing import Any

from ..runtime.errors import UsageError

MARKS = (
    (b"\xff\xfe\x00\x00", "UTF-32"),
    (b"\x00\x00\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)
"""How texts begin that Windows writes, and of which encoding they are."""
UTF8_MARK = b"\xef\xbb\xbf"


def decoded(data: bytes, name: str, whole: bool = True) -> str:
    """``data`` as text, without a byte order mark; UsageError, which calls it ``name``, when it is not UTF-8.

    Unless it is the ``whole`` text, it may end within a character, which is left away.
    """
    for mark, encoding in MARKS:
        if data.startswith(mark):
            raise UsageError(f"{name} is {encoding} text, wanted UTF-8; save or convert it as UTF-8")
    data = data.removeprefix(UTF8_MARK)
    try:
        return codecs.getincrementaldecoder("utf-8")().decode(data, whole)
    except UnicodeDecodeError as error:
        found = f"byte {error.start} is 0x{data[error.start]:02X}"
        raise UsageError(f"{name} is not UTF-8 text ({found}); save or convert it as UTF-8") from error


def said(text: str, name: str) -> str:
    """``text``, which Python has decoded, if it is text; UsageError, which calls it ``name``, for broken bytes.

    Under a locale that knows no UTF-8 (``LC_ALL=C``) Python hands its bytes on as surrogates.
    """
    try:
        text.encode("utf-8")
        return text
    except UnicodeEncodeError as error:
        try:
            return os.fsencode(text).decode("utf-8")
        except UnicodeError:
            found = ord(text[error.start])
            what = f"the byte 0x{found - 0xDC00:02X}" if 0xDC80 <= found <= 0xDCFF else "half of a pair"
            raise UsageError(
                f"{name} is not UTF-8 text: character {error.start + 1} is {what}; give it as UTF-8"
            ) from error


def word(text: str) -> str:
    """An argparse type: text."""
    try:
        return said(text, "this")
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def read_text(source: str, most_bytes: int = -1) -> str:
    """The UTF-8 text of the file ``source``, or of stdin for ``-``; UsageError when it is something else.

    ``most_bytes``: only the beginning, of so many bytes; -1: all of it.
    """
    name = "stdin" if source == "-" else source
    try:
        if source != "-":
            with Path(source).open("rb") as file:
                return decoded(file.read(most_bytes), name, whole=most_bytes < 0)
        if sys.stdin is None:  # closed by whoever started this
            raise UsageError("stdin is closed, so there is no text to read; give a file or a pipe")
        return decoded(sys.stdin.buffer.read(most_bytes), name, whole=most_bytes < 0)
    except OSError as error:
        raise UsageError(f"cannot read {name}: {error.strerror}") from error


def read_objects(what: str, source: str | None) -> list[dict[str, Any]] | None:
    """The JSON list of objects in the file ``source``; UsageError when it holds something else."""
    if source is None:
        return None
    from ..runtime.text.template import checked

    try:
        return checked(what, json.loads(read_text(source)))
    except UsageError as error:
        raise UsageError(f"--{what} {source}: {error}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--{what} {source} is not JSON: {error}") from error


def prompt_text(prompt: str) -> str:
    """The prompt itself, or stdin for ``-``. A file's or echo's last newline is not part of it."""
    if prompt != "-":
        return said(prompt, "the prompt")
    return without_newline(read_text(prompt))


def without_newline(line: str) -> str:
    """``line`` without the newline at its end, Unix's or Windows'."""
    return line.removesuffix("\n").removesuffix("\r") if line.endswith("\n") else line
