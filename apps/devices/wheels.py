"""Wheels for another computer: edgeloop's own, put together from what is here, and pip's for its system and Python."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

from ...runtime.engines.native.build import LIBRARY, NAMES
from ...runtime.version import VERSION
from .device import DeviceError, Facts, shortest

ROOT = Path(__file__).parents[2]
"""The package's folder, in a checkout as installed."""
FOLDERS = ("apps", "export", "quant", "runtime")
SUFFIXES = (".py", ".toml", ".jinja", ".cpp", ".h")
OLDEST_GLIBC = 17
"""Of glibc 2: before it there are no wheels."""
REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)\s*(?P<range>[^;]*?)\s*(?:;.*)?")


def requirements(packages: Sequence[str]) -> list[str]:
    """Return what edgeloop asks of its own dependencies, and of those of ``packages`` that an extra brings.

    What it asks nothing of, as what its dependencies need, goes along as pip chooses it.
    """
    found: dict[str, str] = {}
    for line in importlib.metadata.requires("edgeloop") or ():
        match = REQUIREMENT.fullmatch(line)
        if match and ("extra" not in line or match["name"] in packages):
            found.setdefault(match["name"], f"{match['name']}{match['range']}")
    return [*found.values(), *(name for name in packages if name not in found and name != "edgeloop")]


def platforms(facts: Facts) -> list[str]:
    """Return the tags of wheels that a computer takes, the newest first; DeviceError for one that takes none."""
    match = re.fullmatch(r"2\.(\d{1,3})", facts.libc)
    if match is None:
        raise DeviceError("wheels need glibc, which is not there; the C++ host needs nothing: --host native")
    newest = int(match[1])
    tags = [f"manylinux_2_{minor}_{facts.machine}" for minor in range(newest, OLDEST_GLIBC - 1, -1)]
    return [*tags, f"manylinux2014_{facts.machine}"]


def download(
    needed: Sequence[str], facts: Facts, python: str, goal: Path, offline: Path | None
) -> list[Path]:
    """Let pip put wheels of ``needed`` for a computer into ``goal``, from its index or from the folder ``offline``.

    DeviceError where one is not to be had.
    """
    source = ["--no-index", "--find-links", str(offline)] if offline else []
    tags = [word for tag in platforms(facts) for word in ("--platform", tag)]
    done = subprocess.run(
        [
            sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", "download", *source, "--no-deps",
            "--only-binary=:all:", "--python-version", python, *tags, "-d", str(goal), *needed,
        ],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False,
    )  # fmt: skip
    if done.returncode:
        reasons = [line for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
        reason = (reasons or [shortest(done.stderr)])[-1].removeprefix("ERROR: ")
        where = f"in {offline}" if offline else "where pip looks"
        raise DeviceError(f"no wheel {where} for Python {python} on {facts.machine}: {reason}")
    return sorted(goal.glob("*.whl"))


def unpacked_bytes(wheels: Sequence[Path]) -> int:
    """Return what ``wheels`` take when they are unpacked."""
    total = 0
    for path in wheels:
        with ZipFile(path) as file:
            total += sum(info.file_size for info in file.infolist())
    return total


def own_wheel(goal: Path, machine: str, library: Path | None) -> Path:
    """Write edgeloop's wheel for Linux on ``machine`` into the folder ``goal``, with the lane engine's ``library``.

    The same bytes from the same files.
    """
    tag = f"py3-none-linux_{machine}" if library else "py3-none-any"
    path, about = goal / f"edgeloop-{VERSION}-{tag}.whl", f"edgeloop-{VERSION}.dist-info"
    metadata = importlib.metadata.distribution("edgeloop").read_text("METADATA") or ""
    kind = f"Wheel-Version: 1.0\nGenerator: edgeloop\nRoot-Is-Purelib: false\nTag: {tag}\n"
    record = []
    with ZipFile(path, "w", ZIP_DEFLATED) as file:

        def add(name: str, data: bytes) -> None:
            from zipfile import ZipInfo

            info = ZipInfo(name)  # of 1980: no clock in it
            info.external_attr, info.compress_type = 0o644 << 16, ZIP_DEFLATED
            file.writestr(info, data)
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            record.append(f"{name},sha256={digest},{len(data)}\n")

        for source in _sources():
            add(f"edgeloop/{source.relative_to(ROOT).as_posix()}", source.read_bytes())
        if library:
            add(
                f"edgeloop/{LIBRARY.parent.relative_to(ROOT).as_posix()}/{NAMES['linux']}",
                library.read_bytes(),
            )
        add(f"{about}/METADATA", metadata.encode())
        add(f"{about}/WHEEL", kind.encode())
        add(f"{about}/entry_points.txt", b"[console_scripts]\nedgeloop = edgeloop.apps.cli:main\n")
        add(f"{about}/RECORD", "".join([*record, f"{about}/RECORD,,\n"]).encode())
    return path


def _sources() -> Iterator[Path]:
    """The files of the package, and none that only a checkout has."""
    yield from (ROOT / "__init__.py", ROOT / "py.typed")
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in SUFFIXES and path.is_file() and "build" not in path.parts[len(ROOT.parts) :]:
                yield path
