"""Turns what the tokenizers library raises into errors of one line: exceptions, and panics, which are no ``Exception``.

The library is Rust. A bug or a hostile file makes it panic; that arrives as a BaseException, after a report on stderr
that Python cannot switch off.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from ..errors import EdgeloopError
from ..wording import reason

_one_at_a_time = threading.Lock()


def library_error(error: BaseException, kind: type[EdgeloopError], message: str) -> EdgeloopError:
    """Return an error of ``kind`` with ``message``, whose ``{reason}`` is the error or panic of the library.

    Raises ``error`` itself where it is neither: an interrupt, a MemoryError, an EdgeloopError.
    """
    is_panic = type(error).__name__ == "PanicException"  # pyo3 makes the class anew in every library
    if isinstance(error, EdgeloopError | MemoryError) or not (is_panic or isinstance(error, Exception)):
        raise error
    return kind(message.replace("{reason}", reason(error)))


@contextmanager
def stderr_held_back() -> Iterator[None]:
    """Hold back what a panic writes to stderr within the block, and drop it when an EdgeloopError leaves the block.

    The process has one stderr, so this is for opening a file, not for every call.
    """
    with _one_at_a_time, ExitStack() as stack:
        try:
            held = stack.enter_context(tempfile.TemporaryFile())
            real = os.dup(2)
        except OSError:  # no stderr, as in a service, or nowhere to keep it: then nothing is held back
            held = None
        if held is None:
            yield
            return
        os.dup2(held.fileno(), 2)
        try:
            yield
        except EdgeloopError:
            held.truncate(0)
            raise
        finally:
            os.dup2(real, 2)
            os.close(real)
            held.seek(0)
            if rest := held.read():
                os.write(2, rest)
