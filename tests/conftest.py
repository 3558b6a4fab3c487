"""Fixtures for all tests, and the folder of the tests on the path, for ``tiny`` and ``forward``."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

# Tiny models: threads cost more than they bring, most of all on a machine that is busy.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# --import-mode=importlib leaves sys.path alone; the helpers beside this file are imported by their names.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def parity_folder() -> Path:
    """Tiny checkpoints with their authors' logits; see the README there."""
    return Path(__file__).parent / "fixtures" / "parity"


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[[str], Path]:
    """``tiny("mor-lora")`` writes that tiny checkpoint into the test's own folder and returns its path."""
    import tiny as module

    return lambda kind: module.make(kind, tmp_path / kind)


@pytest.fixture(scope="session")
def tiny_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """As ``tiny``, but made once and shared: only for tests that leave the folder as it is."""
    import tiny as module

    made: dict[str, Path] = {}
    root = tmp_path_factory.mktemp("tiny")

    def get(kind: str) -> Path:
        if kind not in made:
            made[kind] = module.make(kind, root / kind)
        return made[kind]

    return get
