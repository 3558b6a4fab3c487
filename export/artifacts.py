"""Writes the targets of one export one after another, the quickest first; a failure tells which ones did not fail."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ..runtime.bundle import manifest
from ..runtime.errors import ExportError, ParityError
from .target import Job, Target

Pair = tuple[str, str]
"""A target and its layout, as the command line names them."""
QUICKEST = ("native", "onnx", "coreml", "executorch-flat", "executorch")
"""Seconds, seconds, seconds, a minute, minutes: what is wrong with a checkpoint shows in the first."""


def make_artifacts(chosen: Mapping[Pair, Target], job: Callable[[Target], Job]) -> dict[str, manifest.Target]:
    """Return what each target of ``chosen`` wrote, in that order.

    ExportError or ParityError of one that failed; it says how to export those that succeeded before it by
    themselves.
    """
    done: dict[Pair, manifest.Target] = {}
    for pair, target in sorted(chosen.items(), key=lambda each: _rank(each[1].name)):
        try:
            done[pair] = target.export(job(target))
        except (ExportError, ParityError) as error:
            if not done:
                raise
            names = " and ".join(chosen[p].name for p in done)
            raise type(error)(
                f"{error}; {names} succeeded: to keep that, export with {_options(done)}"
            ) from error
    return {target.name: done[pair] for pair, target in chosen.items()}


def _rank(name: str) -> int:
    return QUICKEST.index(name) if name in QUICKEST else len(QUICKEST)


def _options(pairs: Mapping[Pair, object]) -> str:
    """Return the command line's options for just these."""
    layouts: dict[str, list[str]] = {}
    for target, layout in pairs:
        layouts.setdefault(layout, []).append(target)
    return ", and again with ".join(
        f"--target {','.join(targets)} --layout {layout}" for layout, targets in layouts.items()
    )
