"""The text section of an export: the bundle's tokenizer, and what else an app's host needs of a model.

In ``model.lanes``, where it is written again when exits are calibrated; or for another engine in a file of its own.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from ....runtime.bundle.folder import sha256_of
from ....runtime.bundle.heads import HEADS
from ....runtime.bundle.manifest import Exit
from ....runtime.engines.native.format import ALIGNMENT, HEADER, filled_up
from ....runtime.engines.native.records import about_record, exits_record, turns_record
from ....runtime.engines.native.text_format import Tag, section, tables
from ....runtime.errors import ExportError
from ....runtime.model.program import Program
from ....runtime.model.stored import read_tensors
from ....runtime.text.template import DEFAULT
from ...target import Job
from ...text.compile_turns import TurnsError, compile_turns
from .text.section import text_section

log = logging.getLogger(__name__)


def text_of(job: Job, target: str, more: Mapping[int, bytes] | None = None) -> tuple[bytes, bool]:
    """Return the text section for hosts of ``target``, with the tables ``more``, and whether it has the tokenizer.

    Not that, and a warning, where the bundle's is one that the native text does not read.
    """
    found = text_tables(job, target) | dict(more or {})
    if job.tokenizer is None:
        return section(found), False
    try:
        return text_section(job.tokenizer, job.text.split_special_tokens, found), True
    except ExportError as error:
        log.warning(
            "target %s takes token ids only in C and C++ hosts: of the tokenizer, %s; Python hosts read it",
            target,
            error,
        )
        return section(found), False


def text_tables(job: Job, target: str) -> dict[int, bytes]:
    """Return the tables of ``job``'s model: who it is, and the turns of its chat template, by their tags.

    Without turns where it has no default template; and with a warning where turns cannot say what that writes.
    """
    found: dict[int, bytes] = {Tag.ABOUT: about_record(job.program, job.name, identity(job))}
    template = job.text.chat_templates.get(DEFAULT)
    if template is not None and job.tokenizer is not None:
        try:
            found[Tag.TURNS] = turns_record(compile_turns(template, job.text.special_tokens))
        except TurnsError as why:
            log.warning(
                "target %s takes no conversations in C and C++ hosts, whose turns cannot say what the chat "
                "template writes: %s; Python hosts are not affected",
                target,
                why,
            )
    return found


def exit_tables(job: Job) -> dict[int, bytes]:
    """Return the table of ``job``'s exits, by its tag: what of them the lane engine decides itself."""
    path = job.folder / HEADS
    stored = read_tensors(path) if path.exists() else {}
    heads = {name: np.asarray(head, np.float32) for name, head in stored.items()}
    return {Tag.EXITS: exits_record(job.program, heads, {})}


def identity(job: Job) -> str:
    """Return a hash of all that K/V and tokens depend on, by which saved sessions know their model."""
    parts = [msgspec.json.encode(job.program), sha256_of(job.weights).encode()]
    parts += [sha256_of(job.tokenizer).encode()] if job.tokenizer is not None else []
    return hashlib.sha256(b"\n".join(parts)).hexdigest()


def replace_exits(
    path: Path, program: Program, heads: Mapping[str, npt.NDArray[np.float32]], exits: Mapping[str, Exit]
) -> None:
    """Write the exits of the ``model.lanes`` at ``path`` anew: a new file takes its place."""
    with path.open("rb") as file:
        head = np.frombuffer(file.read(HEADER.itemsize), HEADER, 1)[0].copy()
        end = int(head["text"]) if head["text_bytes"] else filled_up(int(head["file_bytes"]), ALIGNMENT)
        file.seek(end)
        old = file.read()
        kept: dict[int, bytes] = {tag: old[a:b] for tag, (a, b) in tables(old).items()} if old else {}
        text = section(kept | {Tag.EXITS: exits_record(program, heads, exits)})
        head["text"], head["text_bytes"], head["file_bytes"] = end, len(text), end + len(text)
        file.seek(HEADER.itemsize)
        rest = file.read(int(head["data_start"]) - HEADER.itemsize)
        head["checksum"] = 0
        head["checksum"] = zlib.crc32(rest, zlib.crc32(head.tobytes()))
        fresh = path.with_name(f"{path.name}.new")
        with fresh.open("wb") as out:
            out.write(head.tobytes() + rest)
            shutil.copyfileobj(file, out)
            out.truncate(end)
            out.seek(end)
            out.write(text)
    fresh.replace(path)
