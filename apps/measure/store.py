"""Records in files: one a run, never written over."""

from __future__ import annotations

import os
import re
import secrets
from contextlib import suppress
from pathlib import Path

import msgspec

from ...runtime.errors import EdgeloopError, UsageError
from .record import FORMAT, Record

MOST_BYTES = 16 << 20
"""Of a record; a real one has some tens of thousands."""


class RecordError(EdgeloopError):
    """A record that is missing, damaged, or of another version."""


class _Head(msgspec.Struct):
    format: int


def check_folder(folder: Path) -> None:
    """Make ``folder`` if need be; UsageError where no record can be written there: before minutes are measured."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".edgeloop-{secrets.token_hex(4)}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UsageError(
            f"no record can be written into {folder}: {error.strerror}; give --save another folder"
        ) from error


def save(folder: Path, record: Record) -> Path:
    """Write ``record`` as a new file of ``folder``; return its path. What cannot be written leaves nothing."""
    stamp = re.sub(r"[^\dTZ]", "", record.date)
    name = re.sub(r"[^\w.-]+", "-", f"{stamp}-{record.mode}-{record.bundle.name}-{record.engine}")
    path = folder / f"{name[:120]}-{secrets.token_hex(4)}.json"
    hidden = path.with_name(f".{path.name}")
    try:
        with hidden.open("xb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(record), indent=1) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        hidden.rename(path)
    except BaseException:
        with suppress(OSError):
            hidden.unlink()
        raise
    return path


def read(path: Path) -> Record:
    """Read one record; RecordError, one line, for what is none."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise RecordError(
                f"{path} has more than {MOST_BYTES >> 20} MB, so it is no record; give another file"
            )
        data = path.read_bytes()
    except OSError as error:
        raise RecordError(
            f"{path} cannot be read: {error.strerror}; give a record that --save wrote"
        ) from error
    try:
        version = msgspec.json.decode(data, type=_Head).format
        if version != FORMAT:
            raise RecordError(
                f"{path} is a record of format {version}, and this edgeloop reads format {FORMAT}; measure again"
            )
        return msgspec.json.decode(data, type=Record)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RecordError(f"{path} is no record: {error}; give one that --save wrote") from error


def read_newest(place: Path) -> dict[tuple[str, ...], Record]:
    """The records of a file, or of a folder: of each kind the newest. RecordError where there is none."""
    if not place.is_dir():
        record = read(place)
        return {record.kind: record}
    found: dict[tuple[str, ...], Record] = {}
    for path in sorted(place.glob("*.json")):
        record = read(path)
        if record.kind not in found or record.date >= found[record.kind].date:
            found[record.kind] = record
    if not found:
        raise RecordError(f"{place} has no records (*.json); `edgeloop bench --save {place}` writes them")
    return found
