"""A lock that knows of forks: the copy of a process has none of its threads, and waits for none of them."""

from __future__ import annotations

import os
from threading import Lock

from ...errors import EngineError


class Alone:
    """Held in a ``with``: by one thread at a time."""

    def __init__(self) -> None:
        self._lock, self._process = Lock(), 0

    def __enter__(self) -> None:
        """EngineError in a process that was forked while another thread held it."""
        process = os.getpid()
        if self._process not in (0, process):
            raise EngineError(
                "engine native was computing in another thread when this process was forked; open the bundle again"
            )
        self._lock.acquire()
        self._process = process

    def __exit__(self, *failure: object) -> None:
        """Let go of it."""
        self._process = 0
        self._lock.release()
