"""``edgeloop bench --device``: on a board that is this computer behind a real sshd, and on this computer itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from board_server import Board, key, missing, reached
from installed_wheels import wheel_of

from edgeloop.apps.devices.device import DeviceError, Load
from edgeloop.apps.devices.local import LocalDevice
from edgeloop.apps.devices.shell import ShellDevice
from edgeloop.apps.devices.ssh import SshDevice
from edgeloop.apps.devices.table import open_device
from edgeloop.apps.measure import store
from edgeloop.runtime.bundle.folder import Bundle
from edgeloop.runtime.errors import UsageError

Command = Callable[..., tuple[int, str, str]]
needs_sshd = pytest.mark.skipif(missing() != "", reason=missing())
HOLDS = """
import sys
from edgeloop.apps.devices.table import open_device
from edgeloop.apps.devices.device import Load
with open_device(sys.argv[1]) as device, device.folder(0) as folder:
    print(folder.path, flush=True)
    folder.run(["sh", "-c", "echo $$ > pid; sleep 1000 & wait"])
"""


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    with reached(tmp_path_factory.mktemp("board")) as found:
        yield found


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheels")
    for package in ("msgspec", "numpy", "safetensors", "tokenizers"):
        wheel_of(package, folder)
    return folder


@pytest.fixture
def stand_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """``stand_ins(uname="…")``: commands that are found before the system's, as scripts."""
    folder = tmp_path / "commands"
    folder.mkdir()
    monkeypatch.setenv("PATH", os.pathsep.join((str(folder), os.environ["PATH"])))

    def make(**scripts: str) -> None:
        for name, script in scripts.items():
            (folder / name).write_text(f"#!/bin/sh\n{script}\n")
            (folder / name).chmod(0o755)

    return make


@needs_sshd
def test_a_record_comes_back_over_ssh_and_nothing_stays(
    there: Board, wheels: Path, bundle: Path, lane_engine: Path, tmp_path: Path, command: Command
) -> None:
    code, out, err = command(
        "bench", bundle, "--device", f"ssh://{there.address}", "--wheels", wheels, "--save", tmp_path / "runs",
        "-p", 8, "-n", 4, "--runs", 1, "--seconds", 1, "--depths", "--engine", "native", "--json",
    )  # fmt: skip
    assert (code, err) == (0, "")
    (path,) = (tmp_path / "runs").iterdir()
    found = store.read(path)
    assert json.loads(out)["saved"] == str(path)
    assert (found.bundle.name, found.engine, found.settings["tokens"]) == (bundle.name, "native", "4")
    assert found.bundle.sha256 == json.loads(out)["record"]["bundle"]["sha256"]
    assert [measure.at for measure in found.group("depth, ms")] == [1, 2, 3]
    assert there.left() == []


@needs_sshd
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_what_runs_there_ends_with_this_process(there: Board, end: signal.Signals) -> None:
    """Also where it cannot say so any more."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDS, f"ssh://{there.address}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    folder = Path(process.stdout.readline().decode().strip())
    assert folder.parent == there.home
    wait_for(lambda: (folder / "pid").is_file() and (folder / "pid").read_text().strip() != "")
    running = int((folder / "pid").read_text())
    process.send_signal(end)
    process.wait(60)
    process.stdout.close()
    wait_for(lambda: not folder.exists())
    wait_for(
        lambda: not Path(f"/proc/{running}").exists() or "Z" in Path(f"/proc/{running}/stat").read_text()
    )


def wait_for(holds: Callable[[], bool]) -> None:
    for _ in range(1200):
        if holds():
            return
        time.sleep(0.05)
    pytest.fail("it did not happen within a minute")


@needs_sshd
def test_files_go_there_once_and_come_back(there: Board, tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"1" * 1000)
    (tmp_path / "same").write_bytes(b"1" * 1000)
    (tmp_path / "run").write_text("#!/bin/sh\necho $0 $WORD $((6 * 7)); exit ${CODE:-0}\n")
    files = {"one": tmp_path / "one", "deep/er/same": tmp_path / "same", "a b/run": tmp_path / "run"}
    size = (tmp_path / "run").stat().st_size
    with SshDevice(there.address) as device, device.folder(0) as folder:
        assert folder.push(Load(files, frozenset({"a b/run"}))) == 1000 + size
        assert folder.push(Load({"again": tmp_path / "one"})) == 0
        folder.pull("deep/er/same", tmp_path / "back")
        assert (tmp_path / "back").read_bytes() == b"1" * 1000
        assert folder.run(["./a b/run"], {"WORD": "it's $HOME"}) == "./a b/run it's $HOME 42\n"
        with pytest.raises(DeviceError, match=f"^on {there.address}: .*nowhere"):
            folder.run(["./nowhere"])
        with pytest.raises(DeviceError, match="no such file|No such file"):
            folder.pull("missing", tmp_path / "not-there")
        with pytest.raises(DeviceError, match="no plain path"):
            folder.push(Load({"../out": tmp_path / "one"}))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "one", "run", "same"]
    assert there.left() == []


@needs_sshd
def test_a_board_that_cannot_be_reached(there: Board, tmp_path: Path, bundle: Path, command: Command) -> None:
    """One line, at once, whatever the reason is."""
    port = there.address.rpartition(":")[2]
    user = there.address.partition("@")[0]
    cases = {
        f"{user}@127.0.0.1:1": "nothing answers at that port",
        "nowhere.invalid": "its name is not known",
        f"{user}@localhost:{port}": "its key is not the known one",
        f"nobody-here@127.0.0.1:{port}": "it refuses this user's keys",
    }
    for address, said in cases.items():
        code, out, err = command("bench", bundle, "--device", f"ssh://{address}", "--json")
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert said in err, err
    assert there.left() == []


@needs_sshd
def test_a_key_that_is_refused(there: Board, tmp_path: Path) -> None:
    other = key(tmp_path / "other")
    script = there.commands.parent / "ssh"
    before = script.read_text()
    script.write_text(before.replace(str(there.commands.parent / "user"), str(other)))
    try:
        with (
            pytest.raises(DeviceError, match="refuses this user's keys: ssh-copy-id"),
            SshDevice(there.address) as device,
        ):
            device.facts()
    finally:
        script.write_text(before)


@pytest.mark.parametrize(
    "address",
    ["", "-oProxyCommand=true", "user@-x", "a b", "user@host:99999", "user:word@host", "host/path", "a@b@c"],
)
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(DeviceError, match="no address of a board"):
        SshDevice(address)


def test_the_known_kinds() -> None:
    assert isinstance(open_device("local"), LocalDevice)
    assert open_device("ssh://pi@[fe80::1%eth0]:2222").name == "pi@fe80::1%eth0:2222"
    with pytest.raises(UsageError, match="no device to run on; wanted ssh://"):
        open_device("telnet://board")
    with pytest.raises(DeviceError, match="nothing behind it"):
        open_device("local:1")


@pytest.mark.parametrize(
    ("scripts", "said"),
    [
        ({"df": "echo x; echo a 1 1 10 1% /"}, "10.2 kB free in "),
        ({"uname": 'case $1 in -m) echo riscv64;; *) echo Linux;; esac'}, "is Linux on riscv64"),
        ({"uname": 'case $1 in -s) echo Darwin;; *) echo aarch64;; esac'}, "is Darwin on aarch64"),
        ({"getconf": 'case $1 in LONG_BIT) echo 32;; *) echo glibc 2.36;; esac'}, "programs of 32"),
        ({"getconf": 'case $1 in LONG_BIT) echo 64;; *) exit 1;; esac'}, "wheels need glibc"),
        ({f"python3{minor}": "exit 1" for minor in ("", ".14", ".13", ".12", ".11")}, "has no Python 3.11 or newer"),
        ({f"python3{minor}": "echo 3.9" for minor in ("", ".14", ".13", ".12", ".11")}, "has no Python 3.11 or newer"),
        ({"python3": "echo 3.99"}, "no wheel in "),
    ],
)  # fmt: skip
def test_a_board_that_is_not_fit(
    scripts: dict[str, str], said: str, stand_ins: Callable[..., None], wheels: Path, bundle: Path, tmp_path: Path,
    command: Command, lane_engine: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """One line before anything is sent."""
    home = tmp_path / "there"
    home.mkdir()
    monkeypatch.setenv("TMPDIR", str(home))
    stand_ins(**scripts)
    code, out, err = command(
        "bench", bundle, "--device", "local", "--wheels", wheels, "--engine", "native", "--json"
    )
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert said in err, err
    assert list(home.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--ops", "x.json"), "measured on this computer alone"),
        (("--decode", "all"), "measured on this computer alone"),
        (("--chat", 2, "--svg", "x.svg"), "--svg is drawn on the computer that measures"),
        (("--engine", "coreml"), "does not run on Linux"),
        (("--engine", "executorch"), "holds no executorch target"),
        (("--engine", "nothing"), "unknown engine 'nothing'"),
        (("--wheels", "nowhere"), "nowhere is no folder"),
    ],
)
def test_flags_that_do_not_go_there(
    words: tuple[object, ...], said: str, bundle: Path, command: Command
) -> None:
    code, out, err = command("bench", bundle, "--device", "local", "--json", *words)
    assert (code in (1, 2), out, err.count("\n")) == (True, "", 1)
    assert said in err, err
    assert command("bench", bundle, "--wheels", bundle)[0] == 2


def test_what_comes_back_is_not_believed(bundle: Path) -> None:
    from edgeloop.apps.bench_device import record_in

    opened = Bundle.open(bundle, verify=False)
    for said in (
        "",
        "hello",
        "{",
        "{}",
        '{"record": {}}',
        '{"record": {"format": 1, "mode": 3}}',
        "[" * 5000,
    ):
        with pytest.raises(DeviceError, match="no record of a benchmark"):
            record_in(said, opened)


def test_a_shell_that_talks_is_understood(stand_ins: Callable[..., None]) -> None:
    """A login may print whatever it likes before."""

    class Talking(LocalDevice):
        def command(self, script: str) -> list[str]:
            return super().command(f"echo Welcome; echo edgeloop; {script}")

    facts = Talking().facts()
    assert facts.bits == 64
    assert facts.places
    with Talking().folder(0) as folder:
        assert folder.path.startswith(facts.places[0].path)
    assert not Path(folder.path).exists()


def test_a_device_without_a_shell() -> None:
    class Silent(ShellDevice):
        def command(self, script: str) -> list[str]:
            return ["true"]

    with pytest.raises(DeviceError, match="no POSIX shell"):
        Silent("it").facts()
