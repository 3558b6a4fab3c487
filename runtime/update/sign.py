"""Signs an update that is there."""

from __future__ import annotations

import shutil
from pathlib import Path

from ..bundle.signature import SigningKey
from ..errors import UpdateError
from .format import SIGNATURE, read_update


def sign_update(path: Path, key: SigningKey) -> None:
    """Put the signature of ``key`` into the update ``path``, in place of the present one; UpdateError for no update."""
    update = read_update(path)
    fresh = path.with_name(f"{path.name}.new")
    try:
        with path.open("rb") as old, fresh.open("wb") as new:
            old.seek(len(update.tables) + SIGNATURE)
            new.write(update.tables + key.sign(update.tables))
            shutil.copyfileobj(old, new)
        fresh.replace(path)
    except OSError as error:
        fresh.unlink(missing_ok=True)
        raise UpdateError(f"cannot write {path}: {error.strerror or error}") from error
