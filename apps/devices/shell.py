"""A device that has a POSIX shell: files are pushed to it, commands run there, results pulled, by one command.

All of it happens in a folder of its own. A script holds it that waits for its input to end, which it does when this
process lets go, dies, or the connection is lost: then it ends what still runs there and removes the folder.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import tarfile
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Self, cast

from ...runtime.bundle.folder import sha256_of
from ..quantities import byte_count
from .device import DeviceError, Facts, Load, Place, lines_of, shortest

FACTS = r"""
say() { printf 'edgeloop:%s=%s\n' "$1" "$2"; }
say system "$(uname -s)"; say release "$(uname -r)"; say machine "$(uname -m)"
say bits "$(getconf LONG_BIT 2>/dev/null)"
say libc "$(getconf GNU_LIBC_VERSION 2>/dev/null)"
say threads "$(nproc 2>/dev/null)"
say memory "$(grep MemTotal: /proc/meminfo 2>/dev/null)"
say huge "$(cat /sys/kernel/mm/transparent_hugepage/enabled 2>/dev/null)"
grep -m 1 -E '^(model name|Hardware|Model)' /proc/cpuinfo 2>/dev/null | while read -r line; do say cpuinfo "$line"; done
grep -m 1 -E '^(flags|Features)' /proc/cpuinfo 2>/dev/null | while read -r line; do say cpuinfo "$line"; done
for tool in tar g++; do command -v $tool >/dev/null 2>&1 && say tool $tool; done
for python in python3 python3.14 python3.13 python3.12 python3.11; do
  version=$($python -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) &&
    say python "$python $version"
done
for place in PLACES; do
  [ -d "$place" ] && [ -w "$place" ] &&
    df -Pk "$place" 2>/dev/null | tail -n 1 | while read -r _ _ _ free _; do say place "$free $place"; done
done
say end yes
"""
HOLD = r"""
folder=$(mktemp -d PLACE/edgeloop-XXXXXXXX) || exit 1
trap '' HUP INT TERM PIPE
printf 'edgeloop:folder=%s\n' "$folder"
cat > /dev/null
for p in $(cat "$folder/.running" 2>/dev/null); do kill -9 -- "-$p" 2>/dev/null || kill -9 "$p" 2>/dev/null; done
rm -rf "$folder" 2>/dev/null || { sleep 1; rm -rf "$folder"; }
"""
OLDEST = (3, 11)
"""The oldest Python that edgeloop runs with; pyproject.toml says so too."""
PATIENCE = 60
"""Seconds that a question, or removing a folder, may take."""


class ShellDevice(ABC):
    """A device whose shell runs what ``command`` carries to it."""

    places: tuple[str, ...] = ('"$TMPDIR"', "/var/tmp", "/tmp", '"$HOME"')
    """Where folders are made, as a shell has them: disks before what may be memory."""
    hosts: tuple[str, ...] = ("python", "native")
    """What can run there, the usual one first."""

    def __init__(self, name: str) -> None:
        """``name``: how messages call it."""
        self.name = name
        self._facts: Facts | None = None

    @abstractmethod
    def command(self, script: str) -> list[str]:
        """Return the command of this computer that runs ``script`` in a shell there."""

    def described(self, said: str, code: int) -> DeviceError | None:
        """The error for what the command itself said, where it was not the script that failed."""
        return None

    def connect(self) -> None:
        """Make what later commands share; DeviceError where the device cannot be reached."""
        return

    def close(self) -> None:
        """Undo ``connect``."""
        return

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(
        self, script: str, stdin: int = subprocess.DEVNULL, stdout: int | IO[bytes] = subprocess.PIPE
    ) -> subprocess.Popen[bytes]:
        """Start a script there. Ctrl-C is this process's own: what runs there is ended when its folder goes."""
        try:
            return subprocess.Popen(
                self.command(script),
                stdin=stdin,
                stdout=stdout,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except FileNotFoundError as error:
            raise DeviceError(
                f"{self.name} is reached by the command {error.filename}, which is not installed here"
            ) from error

    def ask(self, script: str, patience: float | None = PATIENCE) -> str:
        """What a script there writes; DeviceError where it fails or does not end in time."""
        return self.ended(self.start(script), patience)

    def ended(self, process: subprocess.Popen[bytes], patience: float | None = None) -> str:
        """Wait for what ``start`` started → what it wrote; as ``ask``."""
        try:
            out, said = process.communicate(timeout=patience)
        except subprocess.TimeoutExpired as error:
            raise DeviceError(
                f"{self.name} did not answer within {patience:.0f} s; is it still there?"
            ) from error
        finally:
            _end(process)
        if process.returncode:
            raise self.failure(said.decode(errors="replace"), process.returncode)
        return (out or b"").decode(errors="replace")

    def failure(self, said: str, code: int) -> DeviceError:
        """The error for a command that failed there."""
        return self.described(said, code) or DeviceError(f"on {self.name}: {shortest(said)}")

    def facts(self) -> Facts:
        """Ask the device what it is, once."""
        if self._facts is None:
            self.connect()
            self._facts = self._asked()
        return self._facts

    def _asked(self) -> Facts:
        found: dict[str, list[str]] = {}
        for name, value in lines_of(self.ask(FACTS.replace("PLACES", " ".join(self.places)))):
            found.setdefault(name, []).append(value)
        if "end" not in found:
            raise DeviceError(f"{self.name} has no POSIX shell (sh) that answers; log in there and look")
        one = {name: values[0] for name, values in found.items()}
        return Facts(
            one.get("system", ""),
            one.get("release", ""),
            one.get("machine", ""),
            _number(one.get("bits", "")),
            (re.findall(r"glibc (\d+\.\d+)", one.get("libc", "")) or [""])[0],
            _number(one.get("threads", "")),
            _number(one.get("memory", "")) * 1024,
            (re.findall(r"\[(\w+)\]", one.get("huge", "")) or [""])[0],
            frozenset(found.get("tool", ())),
            tuple(
                Place(path, _number(free) * 1024)
                for free, _, path in (value.partition(" ") for value in found.get("place", ()))
                if path.startswith("/")
            ),
            _newest(found.get("python", ())),
            "\n".join(found.get("cpuinfo", ())),
        )

    @contextmanager
    def folder(self, need: int) -> Iterator[ShellFolder]:
        """Make a folder in the first place with room for ``need`` bytes; it goes at the end, whatever happens."""
        place = self._place(need)
        holder = self.start(HOLD.replace("PLACE", shlex.quote(place)), subprocess.PIPE)
        try:
            assert holder.stdout is not None
            path = ""
            for line in holder.stdout:
                if path := dict(lines_of(line.decode(errors="replace"))).get("folder", ""):
                    break
            if not path.startswith("/"):
                said = cast("IO[bytes]", holder.stderr).read().decode(errors="replace")
                raise self.failure(said, holder.wait(PATIENCE))
            yield ShellFolder(self, path)
        finally:
            self._let_go(holder)

    def check_room(self, path: str, need: int) -> None:
        """DeviceError where one of ``places``, which ``path`` is, has no room for ``need`` bytes."""
        for place in self.facts().places:
            if place.path == path and place.free < need:
                raise self._no_room(place, need)

    def _no_room(self, place: Place, need: int) -> DeviceError:
        return DeviceError(
            f"{self.name} has {byte_count(place.free)} free in {place.path}, and {byte_count(need)} are needed: make "
            "room there"
        )

    def _place(self, need: int) -> str:
        places = self.facts().places
        if not places:
            raise DeviceError(
                f"{self.name} has no folder for temporary files that can be written to; set TMPDIR there"
            )
        for place in places:
            if place.free >= need:
                return place.path
        raise self._no_room(max(places, key=lambda place: place.free), need)

    def _let_go(self, holder: subprocess.Popen[bytes]) -> None:
        """Close the holder's input, and wait until it has removed the folder, which no second Ctrl-C interrupts."""
        before = _ignore_interrupts()
        try:
            with suppress(OSError):
                cast("IO[bytes]", holder.stdin).close()
            with suppress(subprocess.TimeoutExpired):
                holder.wait(PATIENCE)
        finally:
            _end(holder)
            if before is not None:
                signal.signal(signal.SIGINT, before)


class ShellFolder:
    """A folder on a device, as long as its holder holds it."""

    def __init__(self, device: ShellDevice, path: str) -> None:
        self.device, self.path = device, path
        self.there: dict[str, str] = {}
        """Names of files that are there, by the SHA-256 of their content."""

    def push(self, load: Load) -> int:
        """Copy files there, unless an earlier push brought the same content → bytes that were sent."""
        fresh, copies = {}, []
        for name, path in load.files.items():
            Load.checked(name)
            other = self.there.setdefault(sha256_of(path), name)
            if other == name:
                fresh[name] = path
            else:
                copies.append((other, name))
        if fresh:
            self.send(Load(fresh, load.executable))
        for old, new in copies:
            into = shlex.quote(os.path.dirname(new) or ".")
            there = f"{shlex.quote(old)} {shlex.quote(new)}"
            self.ask(f"mkdir -p {into} && {{ ln -f {there} 2>/dev/null || cp {there}; }}")
        return Load(fresh).bytes

    def forget(self, name: str) -> None:
        """A file that was pushed is not there any more."""
        self.there = {digest: other for digest, other in self.there.items() if other != name}

    def send(self, load: Load) -> None:
        """Copy files there, as a stream that tar reads."""
        process = self.device.start(f"cd {shlex.quote(self.path)} && exec tar -xf -", subprocess.PIPE)
        try:
            with suppress(BrokenPipeError):  # tar says why
                assert process.stdin is not None
                with tarfile.open(fileobj=process.stdin, mode="w|", bufsize=1 << 20) as stream:
                    for name, path in load.files.items():
                        info = tarfile.TarInfo(name)
                        info.size = path.stat().st_size
                        info.mode = 0o755 if name in load.executable else 0o644
                        info.mtime = int(path.stat().st_mtime)
                        with path.open("rb") as file:
                            stream.addfile(info, file)
                process.stdin.close()
        except BaseException:
            _end(process)
            raise
        process.stdin = None
        self.device.ended(process)

    def ask(self, script: str, patience: float | None = PATIENCE) -> str:
        """What a script writes that runs in the folder."""
        return self.device.ask(f"cd {shlex.quote(self.path)} && {script}", patience)

    def run(self, words: Sequence[str], environment: Mapping[str, str] = {}) -> str:
        """Run a command in the folder → what it writes to stdout; DeviceError with its last line where it fails."""
        given = {"TMPDIR": self.path, "XDG_CACHE_HOME": f"{self.path}/cache", **environment}
        settings = " ".join(f"{name}={shlex.quote(value)}" for name, value in given.items())
        return self.ask(f"echo $$ >> .running && exec env {settings} {shlex.join(words)}", None)

    def pull(self, name: str, goal: Path) -> None:
        """Copy a file of the folder to ``goal``, which is whole or not there."""
        script = f"cd {shlex.quote(self.path)} && exec cat {shlex.quote(Load.checked(name))}"
        fresh = goal.with_name(f".{goal.name}.new")
        try:
            with fresh.open("wb") as file:
                self.device.ended(self.device.start(script, stdout=file))
            fresh.replace(goal)
        finally:
            fresh.unlink(missing_ok=True)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and what it started here, if it is still there."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            with suppress(OSError):
                pipe.close()


def _ignore_interrupts() -> Any:
    """Ignore Ctrl-C from now on → what was done before; None where this is no thread that can."""
    if threading.current_thread() is not threading.main_thread():
        return None
    return signal.signal(signal.SIGINT, signal.SIG_IGN)


def _number(text: str) -> int:
    found = re.search(r"\d{1,18}", text)
    return int(found[0]) if found else 0


def _newest(said: Sequence[str]) -> tuple[str, str] | None:
    """Of "command version" the first that is new enough; of those that are not, none."""
    for line in said:
        command, _, version = line.partition(" ")
        numbers = tuple(map(_number, version.split(".")))
        if len(numbers) == 2 and numbers >= OLDEST:
            return command, version
    return None
