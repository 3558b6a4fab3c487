"""The lane engine's C++ host on a device: over ssh, and over an adb that is a stand-in, which plays a phone."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from edgeloop.apps.devices import native_host
from edgeloop.apps.devices.adb import AdbDevice
from edgeloop.apps.devices.cross import cross_target, objects_of
from edgeloop.apps.devices.device import DeviceError
from edgeloop.apps.measure import store
from edgeloop.runtime.bundle.folder import Bundle

Command = Callable[..., tuple[int, str, str]]
ADB = """#!/bin/sh
printf '%s\\036' "$*" >> {log}
[ -z "{says}" ] || {{ echo "{says}" >&2; exit 1; }}
[ "$2" = phone-1 ] || {{ echo "adb: device '$2' not found" >&2; exit 1; }}
shift 2
case $1 in
shell) exec env -i PATH="$PATH" sh -c "$(printf %s "$2" | sed 's#/data/local/tmp#{folder}#g')" ;;
push | pull) cp "$2" "$3" && echo "1 file" ;;
esac
"""
SPEED = ("-p", 8, "-n", 4, "--runs", 2)


@dataclass(frozen=True)
class Phone:
    """``folder``: what stands for /data/local/tmp."""

    folder: Path
    log: Path
    adb: Path

    def asked(self) -> list[str]:
        """What adb was asked for, without the serial number."""
        return [each.partition(" ")[2].partition(" ")[2] for each in self.log.read_text().split("\036")[:-1]]

    def says(self, line: str) -> None:
        """From now on it fails, and this is why."""
        self.adb.write_text(ADB.format(log=self.log, says=line, folder=self.folder))


@pytest.fixture
def phone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Phone:
    commands, folder = tmp_path / "commands", tmp_path / "phone"
    commands.mkdir()
    folder.mkdir()
    found = Phone(folder, tmp_path / "asked", commands / "adb")
    found.says("")
    found.adb.chmod(0o755)
    monkeypatch.setenv("PATH", os.pathsep.join((str(commands), os.environ["PATH"])))
    return found


def test_a_phone_measures(
    phone: Phone, native_bundle: Path, static_host: Path, tmp_path: Path, command: Command
) -> None:
    code, out, err = command(
        "bench", native_bundle, "--device", "adb:phone-1", *SPEED, "--save", tmp_path / "runs", "--json"
    )
    assert (code, err) == (0, "")
    found = store.read(Path(json.loads(out)["saved"]))
    assert (found.engine, found.settings["host"], found.turns) == ("native", "edgeloop-run", 2)
    assert [measure.name for measure in found.group("prefill")] == ["prefill, 8 tokens"]
    assert [measure.name for measure in found.group("decode")] == ["decode, 4 tokens behind 8"]
    assert found.machine.threads > 0
    asked = phone.asked()
    pushed = [each.split()[2] for each in asked if each.startswith("push ")]
    (folder,) = {path.partition("/edgeloop-")[2].partition("/")[0] for path in pushed}
    assert sorted(path.partition(folder + "/")[2] for path in pushed) == [
        "bundle/manifest.json", "bundle/native/model.lanes", "edgeloop-run",
    ]  # fmt: skip
    assert all(each.startswith(("shell ", "push ")) for each in asked)
    assert list(phone.folder.iterdir()) == []


def test_the_program_wants_nothing_of_the_system(static_host: Path, tmp_path: Path) -> None:
    """No segment of it names an interpreter, as that of a program with shared libraries does."""
    from edgeloop.apps.devices.local import LocalDevice

    with LocalDevice() as device:
        native_host.NativeHost.of(device.name, device.facts(), tmp_path)
    data = (tmp_path / "edgeloop-run").read_bytes()
    assert data[:5] == b"\x7fELF\x02"
    (start,), (size, count) = struct.unpack_from("<Q", data, 32), struct.unpack_from("<HH", data, 54)
    kinds = {struct.unpack_from("<I", data, start + i * size)[0] for i in range(count)}
    assert 1 in kinds
    assert 3 not in kinds
    assert len(data) < 2_500_000


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_where_there_is_zig_the_program_is_its(machine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And is kept apart from what this computer's compiler makes: the two would throw out each other's objects."""
    monkeypatch.setenv("ZIG", "zig")
    target = cross_target(machine, static=True)
    assert target.compiler == ("zig", "c++", "-target", f"{machine}-linux-musl")
    assert objects_of(target) is not None


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("adb: device unauthorized.", "allow this computer in the dialog on its screen"),
        ("adb: device offline", "plug it in again"),
        ("error: no devices/emulators found", "lists those that are there"),
        ("adb: something else", "says whether it is there"),
    ],
)
def test_a_phone_that_is_not_there(
    line: str, said: str, phone: Phone, native_bundle: Path, command: Command
) -> None:
    phone.says(line)
    code, out, err = command("bench", native_bundle, "--device", "adb:phone-1", "--json")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert said in err, err


def test_what_a_phone_does_not_do(
    phone: Phone, native_bundle: Path, bundle: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = [
        ((native_bundle, "--device", "adb:phone-2"), "device 'phone-2' not found"),
        ((native_bundle, "--device", "adb:a b"), "no serial number"),
        ((native_bundle, "--device", "adb:phone-1", "--host", "python"), "runs no host in python"),
        ((native_bundle, "--device", "adb:phone-1", "--chat", 2), "--chat is not known to the C++ host"),
        ((native_bundle, "--device", "adb:phone-1", "--depths"), "--depths is not known to the C++ host"),
        ((native_bundle, "--device", "adb:phone-1", "--engine", "onnx"), "is the lane engine, not onnx"),
        ((native_bundle, "--device", "adb:phone-1", "-p", "8,16"), "one length of prompts"),
        ((bundle, "--device", "adb:phone-1"), "holds no native target"),
    ]
    for words, said in cases:
        code, out, err = command("bench", *words, "--json")
        assert (code in (1, 2), out, err.count("\n")) == (True, "", 1)
        assert said in err, err
    assert list(phone.folder.iterdir()) == []
    monkeypatch.setenv("PATH", str(phone.folder))
    assert (
        "adb, which is not installed here"
        in command("bench", native_bundle, "--device", "adb:phone-1", "--json")[2]
    )


def test_files_come_back_from_a_phone(phone: Phone, tmp_path: Path) -> None:
    with AdbDevice("phone-1") as device, device.folder(0) as folder:
        folder.ask("mkdir deep && echo found > deep/it")
        folder.pull("deep/it", tmp_path / "it")
        with pytest.raises(DeviceError):
            folder.pull("deep/other", tmp_path / "other")
    assert (tmp_path / "it").read_text() == "found\n"
    assert not (tmp_path / "other").exists()
    assert list(phone.folder.iterdir()) == []


def test_what_the_program_says_is_not_believed(native_bundle: Path) -> None:
    from argparse import Namespace

    from edgeloop.apps.devices.local import LocalDevice
    from edgeloop.runtime.version import VERSION

    opened, facts = Bundle.open(native_bundle, verify=False), LocalDevice().facts()
    good = {
        "version": VERSION, "kernels": "x", "threads": 1, "open_ms": 1.0, "prompt_tokens": 8, "tokens": 2,
        "prompt_ms": [2.0], "token_ms": [[1.0]],
    }  # fmt: skip
    asked = Namespace(threads=None, exit="depth:2", skipped_kv=None, decode=None)
    found = native_host.record_in(f"hello\n{json.dumps(good)}\n", opened, facts, asked)
    assert found.group("prefill")[0].value.median == 4000
    assert found.settings["exit"] == "depth:2"
    bad = [
        {"prompt_ms": []},
        {"prompt_ms": [-1.0]},
        {"token_ms": [["x"]]},
        {"prompt_tokens": 0},
        {"version": "0.0.1"},
    ]
    for change in bad:
        with pytest.raises(DeviceError, match="no measurement|of version"):
            native_host.record_in(json.dumps(good | change), opened, facts, asked)
    for said in ("", "hello", "{", "[]"):
        with pytest.raises(DeviceError, match="no measurement"):
            native_host.record_in(said, opened, facts, asked)
