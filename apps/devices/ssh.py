"""A board over the system's ssh: the user's keys, agent, configuration and known hosts apply.

One connection carries everything (ControlMaster), so that a password or a key's is asked for once; a server that
allows one session only gets a connection each.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from .device import DeviceError, shortest
from .shell import ShellDevice

ADDRESS = re.compile(
    r"(?:(?P<user>[A-Za-z0-9_][\w.-]*)@)?(?P<host>[A-Za-z0-9_][\w.-]*|\[[0-9A-Fa-f:.%\w]+\])(?::(?P<port>\d{1,5}))?/?"
)
OPTIONS = ("ConnectTimeout=10", "ServerAliveInterval=15", "ServerAliveCountMax=4", "LogLevel=ERROR")
KEPT = 30
"""Seconds that the connection stays without anything on it, should this process be killed."""
LONGEST = 60
"""Characters of a folder in which ssh can put a socket."""
ADVICE = (
    ("host key verification failed", "its key is not the known one, or not known: log in once by hand"),
    ("permission denied", "it refuses this user's keys: ssh-copy-id brings yours there"),
    ("could not resolve", "its name is not known: check it, or give its address"),
    ("connection refused", "nothing answers at that port: is sshd running there, and on this port?"),
    ("", "check that ssh reaches it"),
)
"""By what ssh says, what to do; the first that fits."""


class SshDevice(ShellDevice):
    """A computer that ssh reaches."""

    def __init__(self, address: str) -> None:
        """``address``: ``[user@]host[:port]``; DeviceError where it is no such thing."""
        found = ADDRESS.fullmatch(address)
        if found is None or int(found["port"] or 1) not in range(1, 65536):
            raise DeviceError(f"{address!r} is no address of a board; wanted user@board or user@board:22")
        host = found["host"].strip("[]")
        self.address = f"{found['user']}@{host}" if found["user"] else host
        self._port = ["-p", found["port"]] if found["port"] else []
        self._control: Path | None = None
        super().__init__(self.address + (f":{found['port']}" if found["port"] else ""))

    def command(self, script: str) -> list[str]:
        """Return the ssh command that runs ``script`` in sh, whatever the user's own shell is there."""
        return [*self._ssh(), self.address, f"exec sh -c {shlex.quote(script)}"]

    def terminal(self, script: str) -> list[str]:
        """Return the same with a terminal where this process has one."""
        tty = ["-t"] if sys.stdin.isatty() and sys.stdout.isatty() else ["-T"]
        return [*self._ssh(), *tty, self.address, f"exec sh -c {shlex.quote(script)}"]

    def connect(self) -> None:
        """Make the connection. It may ask for a password where a person is there to be asked."""
        if self._control is not None:
            return
        if shutil.which("ssh") is None:
            raise DeviceError(
                f"{self.name} is reached by ssh, which is not installed here: apt install openssh-client"
            )
        usual = tempfile.gettempdir()
        self._control = Path(
            tempfile.mkdtemp(prefix="edgeloop-", dir=usual if len(usual) <= LONGEST else "/tmp")
        )
        options = ["-o", "ControlMaster=yes", "-o", f"ControlPersist={KEPT}"]
        done = subprocess.run(
            [*self._ssh(), *options, self.address, "exec true"],
            stdin=None if os.isatty(0) else subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            check=False,
        )
        if done.returncode:
            self.close()
            raise self.failure(done.stderr.decode(errors="replace"), 255)

    def close(self) -> None:
        """End the connection."""
        if self._control is not None:
            subprocess.run([*self._ssh(), "-O", "exit", self.address], capture_output=True, check=False)
            shutil.rmtree(self._control, ignore_errors=True)
            self._control = None

    def described(self, said: str, code: int) -> DeviceError | None:
        """255 is ssh's own."""
        if code != 255:
            return None
        reason = shortest(said)
        advice = next(advice for words, advice in ADVICE if words in said.lower())
        return DeviceError(
            f"{self.name} cannot be reached: {reason}; {advice} (ssh {' '.join(self._where())})"
        )

    def _where(self) -> list[str]:
        return [*self._port, self.address]

    def _ssh(self) -> list[str]:
        options = [*OPTIONS, *([] if _asks() else ["BatchMode=yes"])]
        shared = [f"ControlPath={self._control}/ssh"] if self._control else []
        return ["ssh", *self._port, *(word for each in (*options, *shared) for word in ("-o", each))]


def _asks() -> bool:
    """Whether a person is there to be asked."""
    with suppress(OSError, AttributeError, ValueError):
        return sys.stdin.isatty()
    return False
