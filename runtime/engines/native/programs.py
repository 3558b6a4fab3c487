"""The host in C++, ``edgeloop-run``: the lane engine and its command line in one file, which wants nothing beside it.

``python -m edgeloop.runtime.engines.native.programs`` makes it, ``host`` for another system.
"""

from __future__ import annotations

import logging
import re
import sys
import tempfile
from pathlib import Path

from .build import FOLDER, SOURCES, BuildError, Target, alone, compile_all, objects_folder, run_tool

log = logging.getLogger(__name__)

HOST = "edgeloop-run"
LINK = {
    "linux": ("-s", "-Wl,--gc-sections", "-Wl,-z,noseparate-code", "-static-libstdc++", "-static-libgcc"),
    "darwin": ("-Wl,-dead_strip", "-Wl,-x"),
    "win32": ("-s", "-Wl,--gc-sections", "-static"),
}
LINK_ZIG = ("-s", "-Wl,--gc-sections", "-Os")
"""Of zig's compiler on Linux, whose linker has fewer options; with -Os it makes its C and C++ libraries small, too."""


def host(
    goal: Path | None = None,
    target: Target | None = None,
    *,
    static: bool = True,
    objects: Path | None = None,
) -> Path:
    """Compile and link edgeloop-run to ``goal``, by default beside this file → ``goal``.

    ``target``: None for this computer. ``static``: on Linux with the C library, too, so that it runs on any Linux of
    its processor. ``objects``: where objects are kept, of one target. BuildError for what the compiler refuses, and
    where it has no static C library.
    """
    target = target or Target.here()
    goal = goal or FOLDER / HOST
    programs = sorted(SOURCES.glob("run*.cpp"))
    if not programs:
        raise BuildError(f"{SOURCES} holds no sources; install edgeloop again")
    with objects_folder(objects) as folder, alone(folder):
        made = compile_all(target, target.sources(), folder)
        made += compile_all(target, programs, folder, (f'-DEDGELOOP_VERSION="{_version()}"',))
        goal.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=goal.parent, prefix=".native-") as scratch:
            fresh = Path(scratch) / goal.name
            whole = ("-static",) if static and target.system == "linux" else ()
            small = LINK_ZIG if target.zig and target.system == "linux" else LINK[target.system]
            link = (*small, *whole, "-pthread", "-o", str(fresh))
            run_tool([*target.compiler, *map(str, made), *link])
            fresh.replace(goal)
    return goal


def _version() -> str:
    """edgeloop's version, without importing more of it."""
    text = (FOLDER.parents[1] / "version.py").read_text(encoding="utf-8")
    found = re.search(r'VERSION = "([^"]+)"', text)
    return found[1] if found else ""


def main() -> int:
    """Make edgeloop-run beside this file."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        made = host()
        log.info("made %s: %d bytes", made, made.stat().st_size)
    except BuildError as error:
        log.error("%s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
