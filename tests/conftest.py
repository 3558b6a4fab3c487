"""Fixtures for all tests, and the same surroundings for them whoever starts them, from where and how.

The folder of the tests is on the path, for ``tiny`` and ``forward``.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

# Tiny models: threads cost more than they bring, most of all on a machine that is busy.
os.environ["OMP_NUM_THREADS"] = "1"
# What processes write has these widths, colours and characters wherever they are started.
for name in (
    "COLUMNS",
    "LINES",
    "NO_COLOR",
    "FORCE_COLOR",
    "CLICOLOR_FORCE",
    "TTY_COMPATIBLE",
    "PYTHONIOENCODING",
):
    os.environ.pop(name, None)
os.environ["PYTHONUTF8"] = "1"
# A shell's background job ignores Ctrl-C, and so would every process that it starts.
if (
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    and threading.current_thread() is threading.main_thread()
):
    signal.signal(signal.SIGINT, signal.default_int_handler)

# --import-mode=importlib leaves sys.path alone; the helpers beside this file are imported by their names.
sys.path.insert(0, str(Path(__file__).parent))


_HOMES = ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "MPLCONFIGDIR", "HF_HOME")


def pytest_configure(config: pytest.Config) -> None:
    """A home of the tests' own: they write nothing to the user's, and need none.

    One for all processes of a run, because what the ExecuTorch engine compiles into it takes seconds.
    """
    if hasattr(config, "workerinput"):  # of pytest-xdist, started with the environment of its controller
        return
    home = Path(tempfile.mkdtemp(prefix="edgeloop-home-"))
    config.add_cleanup(lambda: shutil.rmtree(home, ignore_errors=True))
    for variable in _HOMES:
        os.environ[variable] = str(home if variable == "HOME" else home / variable.lower())
    # zig compiles its C++ library into this, which takes minutes: it is kept.
    kept = Path(__file__).parents[1] / "build" / "zig"
    os.environ.setdefault("ZIG_GLOBAL_CACHE_DIR", str(kept))


@cache
def _without_lane_engine() -> str:
    """Make the library of the sources that are here; return why there is none where there is no compiler."""
    from edgeloop.runtime.engines.native import build

    try:
        build.build()
    except build.BuildError as error:
        if not build.LIBRARY.is_file():
            return f"no lane engine: {error}"
        if "found no C++ compiler" not in str(error):
            raise
    return ""


@pytest.fixture(scope="session")
def lane_engine() -> Path:
    """The lane engine's library; skips where there is no compiler."""
    from edgeloop.runtime.engines.native import build

    if reason := _without_lane_engine():
        pytest.skip(reason)
    return build.LIBRARY


@pytest.fixture(scope="session")
def static_host(lane_engine: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """edgeloop-run for this computer, which wants nothing of its system.

    Skips where the system has no C library for that, which an empty program shows: what links with shared libraries
    only is no skip.
    """
    from edgeloop.runtime.engines.native.build import BuildError, Target, run_tool
    from edgeloop.runtime.engines.native.programs import HOST, host

    folder = tmp_path_factory.mktemp("host")
    made = host(folder / HOST, static=False)
    if sys.platform == "linux":
        empty = folder / "empty.cpp"
        empty.write_text("int main() {}\n")
        try:
            run_tool([*Target.here().compiler, "-static", str(empty), "-o", str(folder / "empty")])
        except BuildError as error:
            pytest.skip(f"no static C and C++ library here: {error}")
        made = host(folder / HOST)
    return made


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test with engine native has its library, or is skipped."""
    given = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
    if given.get("engine") == "native" and (reason := _without_lane_engine()):
        pytest.skip(reason)


@pytest.fixture(scope="session")
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


@pytest.fixture
def quick(tmp_path: Path) -> Iterator[Path]:
    """A folder whose files are flushed at once, where the system has one in memory."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else tmp_path) as folder:
        yield Path(folder)
