"""A slot a depth for a prompt, where one slot serves all depths afterwards (``kv_layout.LastDepth``)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..engines.backend import Backend
from ..engines.kv import KVCache
from .sequence import TokenSequence


@contextmanager
def slot_for_each_depth(
    backend: Backend, cache: KVCache, cache_sequence: int, sequence: TokenSequence, new: int, number: int
) -> Iterator[KVCache | None]:
    """Yield a cache with a slot a depth, for as long as a prompt of ``new`` tokens runs; None where ``cache`` has them.

    In its block ``sequence`` has the ``number``; the other stages are those of ``cache``. In the end the last depth's
    rows of all tokens that were run stay in ``cache``, in the slot of its ``cache_sequence``.
    """
    if new == 1 or cache.slots == backend.program.kv_slots:
        yield None
        return
    end = sequence.cached + new
    wide = backend.new_cache(number + 1, end)
    own = range(wide.slot("block", number, 0), wide.slot("block", number + 1, 0))
    for slot in own:
        wide.copy_rows("block", slot, cache, cache_sequence, 0, sequence.cached)
    cache.reserve(end)
    try:
        yield cache.with_block_of(wide)
    finally:
        cache.copy_rows("block", cache_sequence, wide, own[-1], 0, sequence.cached)
