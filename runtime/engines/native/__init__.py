"""The lane engine: our own kernels in C++ over one mapped file; a row has the same bits whatever else is in a call."""

from ..capabilities import Capabilities

CAPABILITIES = Capabilities(
    packed=True,
    any_depth=True,
    whole_prompt=True,
    whole_tokens=True,
    free_rows=True,
    host_rows=True,
    row_exact=True,
    kv_bits=(32, 16, 8, 4),
    pinned=True,
)
