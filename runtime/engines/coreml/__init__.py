"""Core ML packages: on a Mac, and in numpy by an interpreter of what was saved, which checks exports too."""

from ..capabilities import Capabilities

CAPABILITIES = Capabilities(
    packed=False, any_depth=False, whole_prompt=True, host_rows=True, free_rows=False, row_exact=False
)
"""Of Core ML and of the interpreter: depths are functions of the package, and rows are in its states."""
