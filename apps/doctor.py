"""``edgeloop doctor``: what is installed here, what this computer offers, and what to install for the rest."""

from __future__ import annotations

import argparse
import platform

from ..runtime.version import VERSION
from .console import Console
from .hugepages import SWITCH, huge_pages_status
from .machine import memory_bytes, processor, processor_features, usable_threads
from .quantities import byte_count

EXAMPLES = """\
examples:
  edgeloop doctor
  edgeloop doctor --json
"""
_HUGE_PAGES = {
    "madvise": f"used by run, chat, eval, bench, demo ({SWITCH}=0 switches it off)",
    "always": f"used by run, chat, eval, bench, demo ({SWITCH}=0 switches it off)",
    "never": "switched off in the kernel: echo madvise > /sys/kernel/mm/transparent_hugepage/enabled",
}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Set the description: there are no flags of its own."""
    parser.description = (
        "What is installed here, what this computer offers, and what to install for the rest."
    )
    parser.usage = "edgeloop doctor [options]"
    parser.epilog = EXAMPLES


def main(args: argparse.Namespace, console: Console) -> None:
    """Print this computer, the engines and targets, and what would install those that are missing."""
    from ..export.targets import TARGETS
    from ..runtime.engines.table import ENGINES, available

    engines = available()
    huge_pages = huge_pages_status()
    if console.json:
        console.result(
            {
                "edgeloop": VERSION,
                "python": platform.python_version(),
                "system": platform.platform(),
                "processor": processor(),
                "features": processor_features(),
                "threads": usable_threads(),
                "memory_bytes": memory_bytes(),
                "huge_pages": huge_pages,
                "engines": {
                    e.name: {"version": e.version, "install": e.install, "described": e.described}
                    for e in engines
                },
                "targets": {
                    name: {"available": t.available, "missing": t.missing, "install": _install(t.extra)}
                    for name, t in TARGETS.items()
                },
            }
        )
        return
    memory = memory_bytes()
    rows = [
        ("edgeloop", f"{VERSION}, Python {platform.python_version()}"),
        ("system", platform.platform()),
        ("processor", processor()),
        ("features", ", ".join(processor_features()) or "none that the engines look for"),
        ("threads", str(usable_threads())),
        ("memory", byte_count(memory) if memory else "unknown"),
        ("huge pages", f"{huge_pages}; {_HUGE_PAGES.get(huge_pages, 'not used')}"),
    ]
    for engine in engines:
        found = f"{ENGINES[engine.name].package} {engine.version}" if engine.version else engine.install
        if engine.described:
            found += f", {engine.described}"
        rows.append((f"engine {engine.name}", found))
    for name, target in TARGETS.items():
        found = (
            f"without {', '.join(target.missing)}: {_install(target.extra)}"
            if target.missing
            else "without its engine"
            if target.unavailable_reason()
            else "ready"
        )
        rows.append((f"target {name}", found))
    console.facts(rows)


def _install(extra: str) -> str:
    return f"pip install 'edgeloop[{extra}]'"
