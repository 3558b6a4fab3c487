"""The lane engine's file: header and tables are what the program makes them, and what fills tiles up is zeros."""

from __future__ import annotations

from ..bundle.folder import Bundle
from ..engines.native.file import LanesFile
from ..engines.native.text_format import HEADER, RECORD, Tag, tables
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
    text = file.layout.text
    ledger.padding(end, text)
    if text < ledger.size:
        _text(file.text, text, ledger)


def text(bundle: Bundle, ledger: Ledger) -> None:
    """Account for a text section that is a file of its own, for hosts of other engines."""
    _text(bytes(ledger.data[:]), 0, ledger)


def _text(section: bytes, start: int, ledger: Ledger) -> None:
    """Account for the text section at byte ``start``: its tables by their names, and zeros between them."""
    try:
        found = tables(section)
        names = {tag: Tag(tag).name.lower() for tag in found}
    except (BundleError, ValueError) as error:
        ledger.refuse(start, ledger.size, f"no text section that is known: {error}")
        return
    end = HEADER.itemsize + len(found) * RECORD.itemsize
    ledger.take(start, start + end, "text")
    for tag, (first, last) in found.items():
        ledger.padding(start + end, start + first)
        ledger.take(start + first, start + last, f"text {names[tag]}")
        end = last
    ledger.padding(start + end, ledger.size)
