"""How much memory K/V of all sequences may take, and what of it is spoken for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..checks import whole_number
from ..engines.kv import KVCache
from ..errors import UsageError

Use = tuple[int, int]
"""Tokens that a sequence holds at every depth, and how many it may come to hold."""


@dataclass(frozen=True)
class KvBudget:
    """``limit``: bytes of K/V in ``cache``, or None.

    A request is let in when what is taken now and all that requests may still come to need fit together. So none that
    runs can be without memory later. What several sequences share is taken once.
    """

    cache: KVCache
    limit: int | None = None

    def __post_init__(self) -> None:
        """UsageError for a limit that does not hold what the engine takes at once."""
        if self.limit is None:
            return
        whole_number(self.limit, "kv_limit", 1)
        if (taken := self.cache.nbytes) > self.limit:
            raise UsageError(
                f"this engine takes {taken} bytes for K/V at once, and kv_limit is {self.limit}; open it with "
                "fewer sequences or a smaller context, or raise the limit"
            )

    def check(self, tokens: int) -> None:
        """UsageError for a request of ``tokens`` tokens that would not fit if it were the only one."""
        if self.limit is not None and (wanted := self.cache.bytes_of(tokens)) > self.limit:
            raise UsageError(
                f"prompt and answer may have {tokens} tokens, {wanted} bytes of K/V, and kv_limit is {self.limit}; "
                "ask for fewer tokens, or open the engine with a higher limit"
            )

    def fits(self, uses: Iterable[Use]) -> bool:
        """Return whether sequences can go on to ``uses`` beside what the cache holds now."""
        if self.limit is None or not self.cache.grows:
            return True
        return self.cache.nbytes + sum(self._growth(*use) for use in uses) <= self.limit

    def _growth(self, held: int, most: int) -> int:
        """Bytes at most that a sequence of ``held`` tokens takes until it has ``most``. A block that is not full may be
        shared, and is another one then."""
        return self.cache.bytes_of(most) - self.cache.bytes_of_whole(held)
