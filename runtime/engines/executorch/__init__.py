"""ExecuTorch's programs for XNNPACK, behind a bridge of our own."""

from ..capabilities import Capabilities

CAPABILITIES = Capabilities(
    packed=True, any_depth=True, whole_prompt=False, host_rows=True, free_rows=True, row_exact=False
)
