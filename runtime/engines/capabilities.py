"""What an engine can do that others cannot: declared in its folder, and read before it is opened and while it runs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """``packed``: takes calls with packed lanes, for many sequences at once.

    ``any_depth``: what was exported does not say how often the loop runs.
    ``whole_prompt``: has ``prompt``, which runs tokens through all stages at once.
    ``host_rows``: the host may copy, read and write rows of K/V (``KVCache.copy_rows`` and its like).
    ``free_rows``: a call says into which rows of which slot K/V of its tokens go; else a depth has a slot of its
    own, and a token's row in it is its position.
    ``row_exact``: what a row gets does not depend on the other rows of its call, not in a bit: a context that grew
    in pieces has the numbers of one that was run at once.
    ``whole_tokens``: has ``token_decoder``, which runs tokens through all depths and chooses the next.
    ``kv_bits``: the widths of a number of K/V that it can be opened with.
    ``pinned``: its threads run on processors that may be named.
    """

    packed: bool
    any_depth: bool
    whole_prompt: bool
    host_rows: bool
    free_rows: bool
    row_exact: bool
    whole_tokens: bool = False
    kv_bits: tuple[int, ...] = (32,)
    pinned: bool = False
