"""The text of a bundle for hosts without Python: its tokenizer and turns, as the lane engine's library reads them.

Target native has them in ``model.lanes``; hosts of other engines have ``text.lanes``, a file of its own in the bundle.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from ..runtime.bundle.manifest import Text
from ..runtime.engines.native.records import about_record, turns_record
from ..runtime.engines.native.text_format import Tag, section
from ..runtime.errors import ExportError
from ..runtime.model.program import Program
from ..runtime.text.template import DEFAULT
from .targets.native.text.section import tokenizer_tables
from .text.compile_turns import TurnsError, compile_turns

log = logging.getLogger(__name__)

NAME = "text.lanes"


def text_tables(tokenizer: Path | None, text: Text) -> dict[int, bytes]:
    """Return the tables of the bundle's tokenizer, and of the turns of its default chat template, by their tags.

    None without a tokenizer. With a warning, not those of one that the library does not read, and no turns where they
    cannot say what the template writes.
    """
    found: dict[int, bytes] = {}
    if tokenizer is None:
        return found
    try:
        found |= tokenizer_tables(tokenizer, text.split_special_tokens)
    except ExportError as error:
        log.warning(
            "hosts in C and C++ take token ids only: of the tokenizer, %s; Python hosts read it", error
        )
    if (template := text.chat_templates.get(DEFAULT)) is not None:
        try:
            found[Tag.TURNS] = turns_record(compile_turns(template, text.special_tokens))
        except TurnsError as why:
            log.warning(
                "hosts in C and C++ take no conversations, because their turns cannot say what the chat template "
                "writes: %s; Python hosts are not affected",
                why,
            )
    return found


def write_text(folder: Path, program: Program, tables: Mapping[int, bytes]) -> str | None:
    """Write ``text.lanes`` of the ``tables`` to ``folder`` and return its name; None where they have no tokenizer.

    It says what ends a text, and nothing that other weights or another name of the checkpoint change.
    """
    if Tag.RULES not in tables:
        return None
    (folder / NAME).write_bytes(section({**tables, Tag.ABOUT: about_record(program, "", "")}))
    return NAME
