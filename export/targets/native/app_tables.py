"""What an app's host needs of a model beside its text, as tables of the text section of ``model.lanes``.

They are written again when exits are calibrated.
"""

from __future__ import annotations

import hashlib
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
from ....runtime.engines.native.records import about_record, exits_record
from ....runtime.engines.native.text_format import Tag, section, tables
from ....runtime.model.program import Program
from ....runtime.model.stored import read_tensors
from ...target import Job


def app_tables(job: Job) -> dict[int, bytes]:
    """Return the tables of ``job``'s model, by their tags: who it is, and what of its exits the lane engine decides."""
    path = job.folder / HEADS
    stored = read_tensors(path) if path.exists() else {}
    heads = {name: np.asarray(head, np.float32) for name, head in stored.items()}
    return {
        Tag.ABOUT: about_record(job.program, job.name, identity(job)),
        Tag.EXITS: exits_record(job.program, heads, {}),
    }


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
