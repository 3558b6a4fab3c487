"""Programs interpreted in numpy: what every other engine is compared with."""

from ..capabilities import Capabilities

CAPABILITIES = Capabilities(
    packed=True, any_depth=True, whole_prompt=False, host_rows=True, free_rows=True, row_exact=False
)
