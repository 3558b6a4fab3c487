"""How far a training run is: a bar with an estimate on a terminal, a line for each row of the log anywhere."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from .recipe import Watch


@contextmanager
def progress(steps: int) -> Iterator[Watch]:
    """A function to call at every step."""
    columns = (
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
    )
    with Progress(*columns, TimeRemainingColumn()) as bar:
        task = bar.add_task("training", total=steps)

        def watch(step: int, row: dict[str, Any] | None) -> None:
            bar.update(task, completed=step)
            if row is not None:
                left = row["minutes"] * (steps - step) / step
                bar.console.print(
                    f"{json.dumps(row)}  about {left:.1f} minutes left", highlight=False, soft_wrap=True
                )

        yield watch
