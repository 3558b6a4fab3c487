"""Wheels of what is installed here, for tests that have no network: the files that pip's record lists, in one again."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from zipfile import ZIP_STORED, ZipFile


def wheel_of(package: str, folder: Path) -> Path:
    """Write the wheel of an installed package into ``folder``."""
    found = importlib.metadata.distribution(package)
    tags = [
        line.partition(":")[2].strip()
        for line in (found.read_text("WHEEL") or "").splitlines()
        if "Tag:" in line
    ]
    python, abi = tags[0].split("-")[:2]
    platforms = ".".join(dict.fromkeys(tag.split("-")[2] for tag in tags))
    path = folder / f"{package}-{found.version}-{python}-{abi}-{platforms}.whl"
    with ZipFile(path, "w", ZIP_STORED) as file:
        for each in found.files or ():
            if ".." not in each.parts and "__pycache__" not in each.parts:
                file.write(each.locate(), str(each))
    return path
