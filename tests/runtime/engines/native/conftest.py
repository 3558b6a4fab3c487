"""What tests of whole tokens share: an engine on a model, by its name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from mode_models import model, random_tensors
from token_modes import Opened

from edgeloop.runtime.engines.native.engine import NativeBackend
from edgeloop.runtime.engines.native.file import NAME, write_lanes
from edgeloop.runtime.engines.native.library import Activations


@pytest.fixture
def opened(lane_engine: Path, tmp_path: Path) -> Iterator[Opened]:
    """Open models of ``mode_models`` with random weights and float activations; all are closed at the end."""
    engines: list[NativeBackend] = []

    def get(name: str, threads: int = 1) -> NativeBackend:
        program = model(name)
        path = tmp_path / f"{len(engines)}-{NAME}"
        write_lanes(path, program, random_tensors(program), 0)
        engines.append(NativeBackend(program, path, threads=threads, activations=Activations.FLOAT))
        return engines[-1]

    yield get
    for engine in engines:
        engine.close()
