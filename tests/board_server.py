"""A board for tests: this computer behind a real sshd of the tests' own, on a free port of the loopback.

The user's keys, known hosts and configuration are not touched: the command ``ssh`` is wrapped to read another one.
"""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

SSHD = shutil.which("sshd", path=os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin")))
SFTP = "internal-sftp"


def missing() -> str:
    """Why there is no such board here, or nothing."""
    if SSHD is None:
        return "no sshd (apt install openssh-server)"
    if not (shutil.which("ssh") and shutil.which("ssh-keygen")):
        return "no ssh and ssh-keygen (apt install openssh-client)"
    if os.getuid() == 0 and not os.access("/run", os.W_OK):
        return "sshd as root wants /run/sshd"
    return ""


@dataclass(frozen=True)
class Board:
    """``address``: as edgeloop takes it. ``commands``: the folder with the wrapped ssh. ``home``: where its folders
    are made."""

    address: str
    commands: Path
    home: Path
    log: Path

    def left(self) -> list[Path]:
        """What edgeloop left there."""
        return sorted(self.home.glob("edgeloop-*"))


def key(path: Path) -> Path:
    """A new key without a passphrase."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    return path


@contextmanager
def board(folder: Path) -> Iterator[Board]:
    """Start one in ``folder``, which nobody else may write to."""
    host, user, home = key(folder / "host"), key(folder / "user"), folder / "there"
    home.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "known").write_text(f"[127.0.0.1]:{port} {host.with_suffix('.pub').read_text()}")
    (folder / "sshd").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {host}\nAuthorizedKeysFile {user}.pub\nStrictModes no\n"
        f"UsePAM no\nPasswordAuthentication no\nPidFile none\nLogLevel VERBOSE\nPermitUserEnvironment no\n"
        f"SetEnv TMPDIR={home} HOME={home}\nSubsystem sftp {SFTP}\nPermitRootLogin yes\nMaxStartups 100\n"
    )
    (folder / "ssh").write_text(
        f"Host *\nIdentityFile {user}\nIdentitiesOnly yes\nUserKnownHostsFile {folder / 'known'}\n"
        "GlobalKnownHostsFile none\nStrictHostKeyChecking yes\n"
    )
    commands = folder / "commands"
    commands.mkdir()
    wrapper = commands / "ssh"
    wrapper.write_text(f'#!/bin/sh\nexec "{shutil.which("ssh")}" -F "{folder / "ssh"}" "$@"\n')
    wrapper.chmod(0o755)
    log = folder / "log"
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # as its package does when it is started
    server = subprocess.Popen(
        [str(SSHD), "-D", "-e", "-f", str(folder / "sshd")],
        stdin=subprocess.DEVNULL, stdout=log.open("wb"), stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        _wait(port, server, log)
        yield Board(f"{getpass.getuser()}@127.0.0.1:{port}", commands, home, log)
    finally:
        server.terminate()
        server.wait(30)


@contextmanager
def reached(folder: Path) -> Iterator[Board]:
    """A ``board`` in ``folder`` that the command ``ssh`` of this process reaches."""
    with board(folder) as found, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", os.pathsep.join((str(found.commands), os.environ["PATH"])))
        yield found


def _wait(port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(600):
        if server.poll() is not None:
            raise RuntimeError(f"sshd ended: {log.read_text()}")
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise RuntimeError(f"sshd does not answer: {log.read_text()}")
