"""What a mode of ``edgeloop bench`` hands back; showing, saving and drawing it is the same for all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ...runtime.errors import EdgeloopError
from ..console import Console
from .record import Measure, Series


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
