"""The lane engine: our own kernels in C++ over one file that is mapped and run, the same bits in any company."""

from ..capabilities import Capabilities

CAPABILITIES = Capabilities(
    packed=True,
    any_depth=True,
    whole_prompt=True,
    free_rows=True,
    host_rows=True,
    row_exact=True,
    kv_bits=(32, 16),
)
