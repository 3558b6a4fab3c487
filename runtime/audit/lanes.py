"""The lane engine's file: header and tables are what the program makes them, and what fills tiles up is zeros."""

from __future__ import annotations

from ..bundle.folder import Bundle
from ..engines.native.file import LanesFile
from ..errors import BundleError
from .ledger import Ledger


def lanes(bundle: Bundle, ledger: Ledger) -> None:
    """Account for a file of the lane engine: every byte follows from the program, but for the numbers of its
    tensors."""
    try:
        file = LanesFile(bundle.path(ledger.file), bundle.manifest.program)
    except BundleError as error:
        ledger.refuse(0, ledger.size, f"no file of the manifest's program: {error}")
        return
    end = len(file.layout.head)
    ledger.take(0, end, "tables")
    for section, same in file.sections():
        ledger.padding(end, section.offset)
        end = section.offset + section.length
        if same:
            ledger.take(section.offset, end, "tensors")
        else:
            ledger.refuse(section.offset, end, f"{section.tensor} has values in what fills it up")
    ledger.padding(end, ledger.size)
