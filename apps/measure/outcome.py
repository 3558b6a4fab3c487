"""What a mode of ``edgeloop bench`` hands back; showing, saving and drawing it is the same for all."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from ...runtime.errors import EdgeloopError
from ...runtime.version import VERSION
from ..console import Console
from .record import Measure, Record, Series, now, subject, this_machine, versions


@dataclass(frozen=True)
class Outcome:
    """``data`` is what ``--json`` prints beside the record; ``show`` prints it for people (None: the record's own
    tables). ``settings`` go into the record beside those of the mode. ``fault``: what was measured is an error, raised
    once it has been shown."""

    engine: str
    data: Mapping[str, object]
    measures: Sequence[Measure]
    show: Callable[[Console], None] | None = None
    series: Sequence[Series] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    turns: tuple[int, int] = (0, 0)
    notes: Sequence[str] = ()
    bundle: str | Path | None = None
    """The one that the record names, where it is not the command's."""
    fault: EdgeloopError | None = None


def recorded(
    mode: str,
    bundle: str | Path,
    outcome: Outcome,
    foreign: float | None,
    depth: int | None = None,
    name: str | None = None,
) -> Record:
    """The record of a run of ``mode`` on this machine, now. ``depth``: as the bundle was opened; ``name``: in the place
    of its folder's."""
    from ...runtime.bundle.folder import Bundle

    measured = subject(Bundle.open(bundle, verify=False).at_depth(depth))
    return Record(
        mode=mode,
        date=now(),
        edgeloop=VERSION,
        python=platform.python_version(),
        versions=versions(),
        machine=this_machine(),
        bundle=measured if name is None else msgspec.structs.replace(measured, name=name),
        engine=outcome.engine,
        settings=dict(outcome.settings),
        foreign=foreign,
        disturbed=outcome.turns[0],
        turns=outcome.turns[1],
        measures=tuple(outcome.measures),
        series=tuple(outcome.series),
        notes=tuple(outcome.notes),
    )
