"""Someone at a terminal, for tests of what talks to people."""

from __future__ import annotations

import os
import pty
import re
import select
import time

PATIENCE = 300
"""Seconds."""


class Person:
    """Someone at a terminal in which the command ``words`` runs."""

    def __init__(self, *words: object) -> None:
        self.pid, self.terminal = pty.fork()
        if not self.pid:
            os.execv(str(words[0]), [*map(str, words)])
        self.read = b""

    def waits_for(self, text: str) -> str:
        """What is on the screen up to ``text``, without colours and what the terminal is told."""
        end = time.monotonic() + PATIENCE
        while text not in (shown := self._shown()):
            assert time.monotonic() < end, f"no {text!r} in {shown!r}"
            if select.select([self.terminal], [], [], 1)[0]:
                try:
                    piece = os.read(self.terminal, 4096)
                except OSError:  # Linux says so where the other side is closed
                    piece = b""
                assert piece, f"it ended, and no {text!r} in {shown!r}"
                self.read += piece
        self.read = b""
        return shown

    def _shown(self) -> str:
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", self.read.decode(errors="ignore"))

    def types(self, text: str) -> None:
        """Press keys."""
        os.write(self.terminal, text.encode())

    def ended(self) -> int:
        """The exit code of the command, when it has ended; what it still writes is read."""
        while True:
            try:
                if not os.read(self.terminal, 4096):
                    break
            except OSError:
                break
        os.close(self.terminal)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
