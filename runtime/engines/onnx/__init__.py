"""ONNX Runtime, with a graph for each stage."""

from ..capabilities import Capabilities

CAPABILITIES = Capabilities(
    packed=True, any_depth=True, whole_prompt=False, host_rows=True, free_rows=True, row_exact=False
)
