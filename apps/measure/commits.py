"""Commits as contenders of ``edgeloop bench --compare``: their files in a temporary folder, the engine compiled there.

The package is its own checkout, so a folder named ``edgeloop`` with a commit's files, first on a process's path, is it.
It is gone afterwards, and the repository has no record of it (``git archive``, where a worktree leaves one).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ...runtime.errors import EngineError, UsageError
from ..console import Progress

ROOT = Path(__file__).resolve().parents[2]
"""Of the package that this is: a checkout, or an installed one."""
PREFIX = "commit:"
"""How a contender begins that is one."""
NEEDED = "apps/measure/runner.py"
"""What a commit has to have: the part of the benchmark that runs in its process."""
_BUILD = "edgeloop.runtime.engines.native.build"
_OBJECTS = Path("build") / "native"


@contextmanager
def checked_out(revisions: Sequence[str], engine: bool, progress: Progress) -> Iterator[dict[str, Path]]:
    """Each of ``revisions`` with the folder to put first on a process's path; ``engine``: with its lane engine.

    UsageError where there is no checkout, no git, or no such commit; EngineError where its engine is not compiled.
    """
    found = {revision: _resolved(revision) for revision in revisions}
    with tempfile.TemporaryDirectory(prefix="edgeloop-commits-") as scratch:
        places = dict[str, Path]()
        for number, (revision, commit) in enumerate(found.items()):
            progress(f"commit {revision}", number / len(found))
            places[revision] = Path(scratch) / str(number)
            _extract(revision, commit, places[revision] / "edgeloop")
            if engine:
                _compile(revision, places[revision])
        yield places


def environment(place: Path) -> dict[str, str]:
    """What a process of the commit in ``place`` has in its environment."""
    others = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
    return {"PYTHONPATH": os.pathsep.join([str(place), *others]), "PYTHONDONTWRITEBYTECODE": "1"}


def _resolved(revision: str) -> str:
    """The whole name of the commit."""
    try:
        top = _git("rev-parse", "--show-toplevel")
    except FileNotFoundError as error:
        raise UsageError("--compare with a commit needs git, which is not installed") from error
    if top.returncode or Path(top.stdout.decode().strip()).resolve() != ROOT:
        raise UsageError(
            f"--compare with a commit needs edgeloop in a git checkout, and {ROOT} is none; compare bundles, or "
            "clone the repository and run `make install` there"
        )
    done = _git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    if done.returncode or not revision:
        raise UsageError(f"--compare: {ROOT} has no commit {revision!r:.60}; `git log --oneline` lists them")
    return done.stdout.decode().strip()


def _extract(revision: str, commit: str, folder: Path) -> None:
    """Write the files of ``commit`` into ``folder``."""
    folder.mkdir(parents=True)
    packed = folder.with_name("commit.tar")
    done = _git("archive", "--format=tar", f"--output={packed}", commit)
    if done.returncode:
        raise EngineError(f"git archive {revision:.60} failed: {_last(done.stderr)}")
    with tarfile.open(packed) as file:
        file.extraction_filter = getattr(
            tarfile, "data_filter", lambda member, _: member
        )  # Python 3.11.4 has it
        file.extractall(folder)
    packed.unlink()
    if not (folder / NEEDED).is_file():
        raise UsageError(
            f"--compare: commit {revision:.60} is from before {NEEDED}, which runs a turn; name a later one"
        )


def _compile(revision: str, place: Path) -> None:
    """Compile its lane engine; objects of sources that are the same here are not compiled again."""
    objects = place / "edgeloop" / _OBJECTS
    if (ROOT / _OBJECTS).is_dir():
        shutil.copytree(ROOT / _OBJECTS, objects)
    done = subprocess.run(
        [sys.executable, "-m", _BUILD],
        capture_output=True, check=False, cwd=place, env={**os.environ, **environment(place)},
    )  # fmt: skip
    if done.returncode:
        raise EngineError(f"the lane engine of commit {revision:.60} is not compiled: {_last(done.stderr)}")


def _git(*words: str) -> subprocess.CompletedProcess[bytes]:
    # Variables that git sets for its hooks would name another repository.
    plain = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, check=False, env=plain)


def _last(said: bytes) -> str:
    lines = said.decode(errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else "no message"
