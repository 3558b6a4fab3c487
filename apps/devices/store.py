"""What stays on a board, in one hidden folder of the user's home there: bundles, and what runs them.

A bundle and a host appear in one step, when all of them is there; content that is there already is not sent again.
"""

from __future__ import annotations

import re
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ...runtime.bundle.folder import sha256_of
from .device import DeviceError, Load, lines_of
from .native_host import FILE, NativeHost
from .python_host import PythonHost
from .shell import ShellDevice, ShellFolder

HOME = ".edgeloop"
NAME = re.compile(r"[A-Za-z0-9_][\w.-]{0,99}")
"""Of a bundle on a board."""
PROGRAM, SITE, WHEELS = "edgeloop-run", "site", "site/edgeloop-wheels"
"""The C++ host; edgeloop and the packages it needs, unpacked; the SHA-256 of the wheels that they were in."""
CACHE = "cache"
"""What engines keep there, as ``ShellFolder.run`` has it."""
SUMS = 'find . -type f -exec sha256sum {} + 2>/dev/null | while read -r sum name; do echo "edgeloop:$sum=$name"; done'
MOST_BYTES = 64 << 30
"""Of a bundle that is pulled."""


class BoardStore:
    """The folder ``~/.edgeloop`` of a board."""

    def __init__(self, device: ShellDevice, name: str) -> None:
        """Ask where it is. ``name``: the bundle that this is about; DeviceError where that is none."""
        if not NAME.fullmatch(name):
            raise DeviceError(
                f"{name!r} cannot be a bundle's name on a board: letters, digits, - _ and . can"
            )
        self.device, self.name = device, name
        device.facts()
        said = dict(lines_of(device.ask('cd && printf "edgeloop:home=%s\\n" "$(pwd)"'))).get("home", "")
        if not said.startswith("/"):
            raise DeviceError(f"{device.name} has no home folder for this user")
        self.home = said
        self.folder = ShellFolder(device, f"{said}/{HOME}")

    @property
    def bundle(self) -> str:
        """The bundle's folder, within the store's."""
        return f"bundles/{self.name}"

    def push(self, host: NativeHost | PythonHost, load: Load) -> int:
        """Put the bundle whose files are ``load`` there, under ``bundle/``, and what runs it → bytes that were sent."""
        self.device.check_room(self.home, host.need + load.bytes)
        self.device.ask(f"mkdir -p {shlex.quote(self.folder.path)}")
        with self._fresh() as fresh:
            self.folder.there = self._sums()
            sent = self.folder.push(
                Load({name.replace("bundle", fresh, 1): path for name, path in load.files.items()})
            )
            sent += self._push_program(host) if isinstance(host, NativeHost) else self._push_site(host)
            old = shlex.quote(self.bundle)
            self.folder.ask(f"rm -rf {old} && mv {shlex.quote(fresh)} {old}")
        return sent

    def _push_program(self, host: NativeHost) -> int:
        (path,) = host.load.files.values()
        if self.folder.there.get(sha256_of(path)) == PROGRAM:
            return 0
        sent = self.folder.push(Load({f".{PROGRAM}.new": path}, frozenset({f".{PROGRAM}.new"})))
        self.folder.ask(f"mv -f .{PROGRAM}.new {PROGRAM}")
        return sent

    def _push_site(self, host: PythonHost) -> int:
        wanted = " ".join(sorted(map(sha256_of, host.load.files.values())))
        if self.folder.ask(f"cat {WHEELS} 2>/dev/null || true").strip() == wanted:
            return 0
        self.folder.ask(f"rm -rf .{SITE}.new")
        sent = host.install(self.folder, f".{SITE}.new")
        marked = f"echo {wanted} > .{SITE}.new/{Path(WHEELS).name}"
        self.folder.ask(f"{marked} && rm -rf {SITE} && mv .{SITE}.new {SITE}")
        return sent

    def _sums(self) -> dict[str, str]:
        """The names of the bundles' files and the program, by the SHA-256 of what is in them."""
        found = dict(lines_of(self.folder.ask(f"mkdir -p bundles && cd bundles && {SUMS}")))
        names = {digest: f"bundles/{name.removeprefix('./')}" for digest, name in found.items()}
        said = self.folder.ask(f"sha256sum {PROGRAM} 2>/dev/null || true").split()
        return names | ({said[0]: PROGRAM} if said else {})

    @contextmanager
    def _fresh(self) -> Iterator[str]:
        """A folder to push to, which is gone at the end unless it was moved to its place."""
        fresh = f"bundles/.{self.name}.new"
        self.folder.ask(f"rm -rf {shlex.quote(fresh)}")
        try:
            yield fresh
        finally:
            with suppress(DeviceError):
                self.folder.ask(f"rm -rf {shlex.quote(fresh)} .{PROGRAM}.new .{SITE}.new ./*.whl")

    def check(self) -> tuple[str, ...]:
        """The hosts that are there and run the bundle: native, python; DeviceError where they or the bundle are not."""
        here, bundle = shlex.quote(self.folder.path), shlex.quote(self.bundle)
        script = (
            f"cd {here} 2>/dev/null && for each in {PROGRAM} {SITE} {bundle} {bundle}/{FILE}; do "
            '[ -e "$each" ] && echo "edgeloop:there=$each"; done; true'
        )
        found = {value for _, value in lines_of(self.device.ask(script))}
        if self.bundle not in found:
            raise DeviceError(f"{self.device.name} has no bundle {self.name}: push it there first")
        needs = {"native": {PROGRAM, f"{self.bundle}/{FILE}"}, "python": {SITE}}
        hosts = tuple(kind for kind, paths in needs.items() if paths <= found)
        if not hosts:
            raise DeviceError(f"{self.device.name} has nothing that runs {self.name}: push it there again")
        return hosts

    def pull(self, goal: Path) -> int:
        """Copy what the bundle's folder there has to ``goal``, which is whole or not there → bytes."""
        if goal.exists():
            raise DeviceError(f"{goal} exists; choose another folder")
        if not goal.absolute().parent.is_dir():
            raise DeviceError(f"{goal} cannot be made: {goal.parent} is no folder; choose another place")
        sums = f"cd {shlex.quote(self.bundle)} && {SUMS}"
        found = [(digest, name.removeprefix("./")) for digest, name in lines_of(self.folder.ask(sums, None))]
        stage = Path(tempfile.mkdtemp(prefix=f".{goal.name}-", dir=goal.absolute().parent))
        try:
            for digest, name in found:
                path = stage / Load.checked(name)
                path.parent.mkdir(parents=True, exist_ok=True)
                self.folder.pull(f"{self.bundle}/{name}", path)
                if sha256_of(path) != digest:
                    raise DeviceError(f"{name} came from {self.device.name} as something else; pull it again")
            stage.chmod(0o755)
            stage.rename(goal)
        except BaseException:
            shutil.rmtree(stage, ignore_errors=True)
            raise
        return sum(path.stat().st_size for path in goal.rglob("*") if path.is_file())

    def remove(self) -> None:
        """Remove the bundle, and with the last one everything that edgeloop put there."""
        self.check()
        rest = f"rm -rf {PROGRAM} {SITE} {CACHE}; rmdir bundles; cd ..; rmdir {HOME}"
        self.folder.ask(
            f'rm -rf {shlex.quote(self.bundle)} && if [ -z "$(ls -A bundles)" ]; then {rest} 2>/dev/null; fi; true'
        )
