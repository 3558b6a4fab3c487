"""The options of target executorch in layout staged."""

from __future__ import annotations

from dataclasses import dataclass

from ....runtime.errors import UsageError
from ...options import ExportRequest, Options, option


@dataclass(frozen=True)
class ExecutorchOptions(Options):
    """``split_weights``: weights go into files beside the program, those of the deltas into one of their own."""

    split_weights: bool = option(
        False,
        "target executorch: base.ptd and deltas.ptd beside the .pte, so that an app can update deltas alone",
    )

    def check(self, request: ExportRequest) -> None:
        """Raise UsageError unless there is a program whose weights can be split from it."""
        if self.split_weights and not ("executorch" in request.targets and "staged" in request.layouts):
            raise UsageError(
                f"--split-weights is for target executorch in layout staged, found {', '.join(request.targets)} in "
                f"{', '.join(request.layouts)}; add --target executorch"
            )
