"""What an engine can do that others cannot: declared in its folder, asked before it is opened and while it runs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """``packed``: takes calls with packed lanes, for many sequences at once.

    ``any_depth``: what was exported does not say how often the loop runs.
    ``whole_prompt``: has ``prompt``, which runs tokens through all stages at once.
    ``host_rows``: the host may copy, read and write rows of K and V (``KVCache.copy_rows`` and its like).
    """

    packed: bool
    any_depth: bool
    whole_prompt: bool
    host_rows: bool
