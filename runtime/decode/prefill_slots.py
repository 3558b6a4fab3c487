"""A slot a depth for a prompt, where fewer serve all depths afterwards (``kv_layout.LastDepth``)."""

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

    In its block ``sequence`` has the ``number``; the other stages are those of ``cache``. In the end the rows of
    all tokens that were run stay in ``cache`` as the last depths made them, in the slots of its ``cache_sequence``.
    """
    if new == 1 or cache.slots == backend.program.kv_slots:
        yield None
        return
    end = sequence.cached + new
    wide = backend.new_cache(number + 1, end)
    depths = range(wide.slots)
    own, kept = (
        [each.slot("block", place, depth) for depth in depths]
        for each, place in ((wide, number), (cache, cache_sequence))
    )
    for slot, source in zip(own, kept, strict=True):
        wide.copy_rows("block", slot, cache, source, 0, sequence.cached)
    cache.reserve(end)
    try:
        yield cache.with_block_of(wide)
    finally:
        for depth in depths[-cache.slots :]:
            cache.copy_rows("block", kept[depth], wide, own[depth], 0, sequence.cached)
