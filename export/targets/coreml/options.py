"""The options of target coreml."""

from __future__ import annotations

from dataclasses import dataclass

from ....quant.recipe import Recipe
from ....runtime.errors import UsageError
from ...options import ExportRequest, Options, option


@dataclass(frozen=True)
class CoremlOptions(Options):
    """``coreml_ane``: the package gets palettized weights, the Neural Engine's format, made from the checkpoint's."""

    coreml_ane: bool = option(False, "target coreml: 4-bit weights in tables, for the Neural Engine")

    def check(self, request: ExportRequest) -> None:
        """Raise UsageError unless the request is for a package with 4 bits."""
        if not self.coreml_ane:
            return
        if "coreml" not in request.targets:
            raise UsageError(
                f"--coreml-ane, but the target is {', '.join(request.targets)}; add --target coreml"
            )
        if request.quant != "int4":
            raise UsageError(
                f"--coreml-ane stores weights as 4-bit indices into tables, not as {request.quant}; "
                "wanted --quant int4; a recipe or codes of tables say so without it"
            )

    def recipe(self, asked: Recipe) -> Recipe:
        """Return tables, another format of the same bits, where the option is set."""
        return Recipe.palettes() if self.coreml_ane else asked
