"""Models in the local Hugging Face cache, found by their name on the Hub: nothing is downloaded.

The cache's layout (huggingface_hub, "Understand caching"): models--OWNER--NAME/refs/main holds a commit, and
snapshots/COMMIT that commit's files.
"""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

from ...runtime.errors import CheckpointError

log = logging.getLogger(__name__)

NAME = re.compile(r"(?!.*(--|\.\.))[A-Za-z0-9_][\w.-]{0,95}(/[A-Za-z0-9_][\w.-]{0,95})?", re.ASCII)
"""A name on the Hub: OWNER/NAME, or NAME alone for the oldest models."""


def cache_folder() -> Path:
    """Return huggingface_hub's cache: HF_HUB_CACHE, or hub in HF_HOME, or in the user's cache folder."""
    home = os.environ.get("HF_HOME") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.join("~", ".cache"), "huggingface"
    )
    cache = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    return Path(os.path.expanduser(os.path.expandvars(cache or os.path.join(home, "hub"))))


def find_model(name: str) -> Path | None:
    """Return the snapshot of the model ``name`` in the cache; None if ``name`` is no name, or there is no such
    model."""
    repository = cache_folder() / f"models--{name.replace('/', '--')}"
    if not NAME.fullmatch(name) or not (repository / "snapshots").is_dir():
        return None
    return snapshot(repository)


def is_repository(folder: Path) -> bool:
    """Return whether it is a model's folder of the cache, which holds snapshots of it."""
    return folder.absolute().name.startswith("models--") and (folder / "snapshots").is_dir()


def snapshot(repository: Path) -> Path:
    """Return the snapshot of refs/main, or the only one there is; CheckpointError lists those that there are."""
    main = repository / "refs" / "main"
    commit = main.read_text(encoding="utf-8", errors="replace").strip() if main.is_file() else ""
    there = sorted(path for path in (repository / "snapshots").iterdir() if path.is_dir())
    chosen = [path for path in there if path.name == commit] or there
    if len(chosen) != 1:
        listed = ", ".join(str(path) for path in chosen[:5]) or "none"
        raise CheckpointError(
            f"{repository} is a repository of the Hugging Face cache whose refs/main names no snapshot; give one of "
            f"its snapshots ({listed})"
        )
    log.info("reading %s", chosen[0])
    return chosen[0]


def not_there(name: str) -> str | None:
    """Return what to do about a name that looks like one of the Hub and is not in the cache; None for other names."""
    if "/" not in name or not NAME.fullmatch(name):
        return None
    return (
        f"{name} is no folder here, and no model in the Hugging Face cache ({cache_folder()}); if it is a name on the "
        f"Hub, download it: hf download {name}"
    )
