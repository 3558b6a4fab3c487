"""An update makes the new bundle byte for byte, or changes nothing; killed at any step, the same call finishes it."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from update_bundles import STORED, contents, listed, new_bundle, old_bundle

from edgeloop.runtime.bundle.exchange import exchange
from edgeloop.runtime.errors import BundleError, EdgeloopError, UpdateError, UsageError
from edgeloop.runtime.update import apply
from edgeloop.runtime.update import format as form
from edgeloop.runtime.update.apply import apply_update, check_update, roll_back
from edgeloop.runtime.update.diff import make_update

TESTS = Path(__file__).parents[2]


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A folder with ``bundle``, ``new`` and ``update``."""
    old_bundle(tmp_path / "bundle")
    new_bundle(tmp_path / "new", os.urandom(20_000))
    make_update(tmp_path / "bundle", tmp_path / "new", tmp_path / "update")
    return tmp_path


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_the_new_bundle_and_the_way_back(made: Path) -> None:
    old, new = contents(STORED), contents(made / "new")
    done = apply_update(made / "bundle", made / "update")
    assert contents(made / "bundle") == new
    assert contents(made / "bundle.former") == old
    assert names(made) == {"bundle", "bundle.former", "new", "update"}
    graph = "onnx/block.onnx"
    assert (made / "bundle" / graph).samefile(made / "bundle.former" / graph)
    assert done.kept == sum(len(data) for name, data in new.items() if old.get(name) == data) > 0
    assert done.written == sum(map(len, new.values())) - done.kept
    assert apply_update(made / "bundle", made / "update").already
    assert contents(roll_back(made / "bundle")) == old
    assert contents(made / "bundle.former") == new
    assert contents(roll_back(made / "bundle")) == new


def test_the_second_update_replaces_the_former_bundle(made: Path) -> None:
    third = listed(shutil.copytree(made / "new", made / "third"))
    (third / "more.bin").write_bytes(b"third")
    listed(third)
    make_update(made / "new", third, made / "next")
    apply_update(made / "bundle", made / "update")
    apply_update(made / "bundle", made / "next")
    assert contents(made / "bundle") == contents(third)
    assert contents(made / "bundle.former") == contents(made / "new")


def test_a_link_to_a_bundle_stays_a_link(made: Path) -> None:
    (made / "link").symlink_to("bundle")
    apply_update(made / "link", made / "update")
    assert (made / "link").is_symlink()
    assert contents(made / "bundle") == contents(made / "new")


def test_without_hard_links(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot(*_: object) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", cannot)
    assert apply_update(made / "bundle", made / "update").kept == 0
    assert contents(made / "bundle") == contents(made / "new")


def test_the_same_two_bundles_give_the_same_update(made: Path) -> None:
    make_update(made / "bundle", made / "new", made / "again")
    assert (made / "again").read_bytes() == (made / "update").read_bytes()


def test_nothing_to_update(made: Path) -> None:
    with pytest.raises(UsageError, match="are the same bundle"):
        make_update(made / "bundle", made / "bundle", made / "x")
    with pytest.raises(UsageError, match="is a folder; an update is one file"):
        make_update(made / "bundle", made / "new", made)


def test_a_refused_update_changes_nothing(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(match: str, error: type[EdgeloopError] = UpdateError, **given: Path) -> None:
        before = contents(made / "bundle")
        with pytest.raises(error, match=match):
            apply_update(given.get("bundle", made / "bundle"), given.get("update", made / "update"))
        assert contents(made / "bundle") == before
        assert not (made / "bundle.former").exists()
        assert not (made / ".bundle.update").exists()

    refused(
        "is not the bundle that .*update is for: .*get the update for it", bundle=new_bundle(made / "third")
    )
    refused("nowhere is not a bundle: it has no manifest.json", BundleError, bundle=made / "nowhere")
    refused("is no file; give an update", update=made)
    refused("is no update; give one", update=made / "bundle" / "manifest.json")
    data = bytearray((made / "update").read_bytes())
    data[-1] ^= 1
    (made / "altered").write_bytes(data)
    refused("part [0-9]+ is not what its hash says; copy the update again", update=made / "altered")
    (made / "shorter").write_bytes(data[:-1])
    refused(f"has {len(data) - 1} bytes where its tables say {len(data)}", update=made / "shorter")
    notes = made / "bundle" / "notes.txt"
    notes.write_text("mine")
    refused("notes.txt is no part of the bundle, and would be lost; move it away")
    notes.unlink()
    notes.symlink_to("manifest.json")
    refused("notes.txt is a link; put the file itself there")
    notes.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(apply.shutil, "disk_usage", lambda _: SimpleNamespace(free=30_000))
        refused("no room: the update of .*bundle writes [0-9]+ bytes, and 30000 are free")
    weights = made / "bundle" / "onnx" / "weights.safetensors"
    sound = weights.read_bytes()
    weights.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    refused("weights.safetensors is damaged or was changed; copy the bundle again", BundleError)
    weights.write_bytes(sound)
    (made / "bundle.former").mkdir()
    with pytest.raises(UpdateError, match="bundle.former is in the way: it is no bundle"):
        apply_update(made / "bundle", made / "update")
    (made / "bundle.former").rmdir()
    with pytest.raises(UpdateError, match="has no former bundle"):
        roll_back(made / "bundle")
    apply_update(made / "bundle", made / "update")


def test_a_damaged_former_bundle_does_not_come_back(made: Path) -> None:
    apply_update(made / "bundle", made / "update")
    (made / "bundle.former" / "onnx" / "weights.safetensors").write_bytes(b"")
    with pytest.raises(BundleError, match="weights.safetensors has 0 bytes"):
        roll_back(made / "bundle")
    assert contents(made / "bundle") == contents(made / "new")


def tables_with(update: bytes, change: dict[str, object] | None = None, **records: object) -> bytes:
    """``update`` with other numbers in its header, or in the first record of a table."""
    data = bytearray(update)
    header = np.frombuffer(data, form.HEADER, 1)
    for name, value in (change or {}).items():
        header[name] = value
    place = form.HEADER.itemsize
    for table, kind, count in (
        ("file", form.FILE, header["old_files"][0] + header["new_files"][0]),
        ("part", form.PART, header["parts"][0]),
        ("copy", form.COPY, header["copies"][0]),
    ):
        if table in records:
            rows = np.frombuffer(data, kind, int(count), place)
            for name, value in records[table].items():  # type: ignore[attr-defined]
                rows[name][0] = value
        place += int(count) * kind.itemsize
    return bytes(data)


@pytest.mark.parametrize(
    ("change", "records", "match"),
    [
        ({"version": 2}, {}, "an update of version 2, this edgeloop reads 1"),
        ({"parts": 0xFFFFFFFF}, {}, "more files, parts or copies than an update may have"),
        ({"names_bytes": 0xFFFFFFFF}, {}, "more files, parts or copies"),
        ({"tables_bytes": 1 << 60}, {}, "or they are damaged"),
        ({}, {"file": {"bytes": 1 << 62}}, "more bytes than a file may have"),
        ({}, {"file": {"bytes": 1 << 40}}, "manifest.json has [0-9]+ bytes, wanted 1099511627776"),
        ({}, {"file": {"name": 1}}, "names that do not lie behind each other"),
        ({}, {"part": {"bytes": 1 << 40}}, "a part that is empty or larger than"),
        ({}, {"part": {"bytes": 1}}, "parts that do not fill it|what is not there"),
        ({}, {"copy": {"source": 77}}, "copies to .* what is not there"),
        ({}, {"copy": {"offset": 1 << 63}}, "copies to .* what is not there"),
        ({}, {"copy": {"bytes": 0}}, "copies to .* what is not there"),
    ],
)
def test_a_hostile_table(
    made: Path, change: dict[str, object], records: dict[str, object], match: str
) -> None:
    (made / "hostile").write_bytes(tables_with((made / "update").read_bytes(), change, **records))
    with pytest.raises((UpdateError, BundleError), match=match):
        apply_update(made / "bundle", made / "hostile")


@pytest.mark.parametrize(
    "name", ["../x", "/etc/x", "a/../../x", "a//b", "a\\b", "c:x", "a\nb", "", ".", "a/"]
)
def test_no_file_leads_out_of_the_folder(made: Path, name: str) -> None:
    update = form.read_update(made / "update")
    new = [form.Listed(name, 1, bytes(32)), *update.new]
    copies = [[form.Copy(0, 0, 0, 1)], *([*update.copies(i)] for i in range(len(update.new)))]
    tables = form.packed(update.old, new, copies, update.parts.tolist())
    (made / "hostile").write_bytes(tables + bytes(64))
    with pytest.raises(UpdateError):
        check_update(made / "hostile")
    assert not (made / "x").exists()


def test_copies_do_not_make_a_bundle_of_any_size(made: Path) -> None:
    update = form.read_update(made / "update")
    large = max(range(len(update.old)), key=lambda i: update.old[i].size)
    size = update.old[large].size
    new = [form.Listed("bomb", 1000 * size, bytes(32)), *update.new]
    copies = [[form.Copy(large, 0, 0, size)] * 1000, *([*update.copies(i)] for i in range(len(update.new)))]
    parts = (made / "update").read_bytes()[len(update.tables) + 64 :]
    tables = form.packed(update.old, new, copies, update.parts.tolist())
    (made / "hostile").write_bytes(tables + bytes(64) + parts)
    with pytest.raises(UpdateError, match="makes [0-9]+ bytes of at most [0-9]+"):
        check_update(made / "hostile")


def test_what_is_not_in_the_manifest_is_not_made(made: Path) -> None:
    """An update's own tables may hold together; its bundle has to, too."""
    update = form.read_update(made / "update")
    byte = (made / "bundle" / update.old[0].name).read_bytes()[:1]
    new = [*update.new, form.Listed("zz", 1, hashlib.sha256(byte).digest())]
    copies = [*([*update.copies(i)] for i in range(len(update.new))), [form.Copy(0, 0, 0, 1)]]
    parts = (made / "update").read_bytes()[len(update.tables) + 64 :]
    tables = form.packed(update.old, new, copies, update.parts.tolist())
    (made / "hostile").write_bytes(tables + bytes(64) + parts)
    with pytest.raises(UpdateError, match="makes other files than its manifest.json lists"):
        apply_update(made / "bundle", made / "hostile")
    assert names(made) == {"bundle", "new", "update", "hostile"}


def test_changed_updates_are_refused_or_make_the_right_bundle(made: Path) -> None:
    lot, data = random.Random(1), (made / "update").read_bytes()
    end = len(form.read_update(made / "update").tables)
    old, new = contents(made / "bundle"), contents(made / "new")
    refused = 0
    for _ in range(300):
        changed = bytearray(data)
        for _ in range(lot.randint(1, 3)):
            changed[lot.randrange(end)] = lot.choice((0, 1, 127, 255, lot.randrange(256)))
        (made / "changed").write_bytes(changed)
        try:
            apply_update(made / "bundle", made / "changed")
        except EdgeloopError:
            refused += 1
            assert contents(made / "bundle") == old
        else:
            assert contents(made / "bundle") == new
            roll_back(made / "bundle")
            shutil.rmtree(made / "bundle.former")
        assert names(made) == {"bundle", "new", "update", "changed"}
    assert refused > 250


def killed(scenario: str, folder: Path, *words: str) -> list[str]:
    """What was there after a kill at each step, equal ones in a row once."""
    command = [sys.executable, str(TESTS / "killing.py"), scenario, str(folder), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) > (30 if scenario == "killed_update" else 3)
    return [state for state, _ in groupby(found)]


def test_where_two_names_are_one(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a file system that takes A and a for one."""
    for name in ("Case.bin", "case.bin"):
        (made / "new" / name).write_bytes(name.encode())
    make_update(made / "bundle", listed(made / "new"), made / "both")
    write = apply._write

    def one(places: Any, update: Any, number: int, parts: Any, goal: Path) -> None:
        write(places, update, number, parts, goal.with_name(goal.name.lower()))

    monkeypatch.setattr(apply, "_write", one)
    with pytest.raises(UpdateError, match="have names that are the same here"):
        apply_update(made / "bundle", made / "both")
    assert contents(made / "bundle") == contents(STORED)
    assert names(made) == {"bundle", "new", "update", "both"}


@pytest.mark.parametrize("name", ["new", "bundle.former"])
def test_a_bundle_that_cannot_take_its_place(made: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """As where one of its files is open on Windows: the one that was there has its name again."""
    if name != "new":
        apply_update(made / "bundle", made / "update")
    before, rename = contents(made / "bundle"), Path.rename

    def refused(self: Path, target: Path) -> Path:
        if self.name == name:
            raise PermissionError(errno.EACCES, "Permission denied")
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr("edgeloop.runtime.bundle.exchange.exchange", lambda one, other: False)
        patch.setattr(Path, "rename", refused)
        with pytest.raises(
            UpdateError, match="Permission denied; it is the old bundle or the new one, whole"
        ):
            apply_update(made / "bundle", made / "update") if name == "new" else roll_back(made / "bundle")
    assert contents(made / "bundle") == before


def test_the_folder_of_the_lock_has_just_gone(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the process that had it removes it meanwhile: a lock of what is nowhere is none."""
    fcntl = pytest.importorskip("fcntl")
    taken: list[bool] = []

    def flock(handle: int, how: int) -> None:
        if not taken:
            (made / ".bundle.update").rmdir()
        fcntl.flock(handle, how)
        taken.append((made / ".bundle.update").exists())

    locks = SimpleNamespace(flock=flock, LOCK_EX=fcntl.LOCK_EX, LOCK_NB=fcntl.LOCK_NB)
    monkeypatch.setattr("edgeloop.runtime.update.places.LOCKS", locks)
    apply_update(made / "bundle", made / "update")
    assert taken == [False, True]
    assert contents(made / "bundle") == contents(made / "new")


def can_exchange(folder: Path) -> bool:
    for name in ("one", "other"):
        (folder / name).mkdir()
    return exchange(folder / "one", folder / "other")


def test_killed_at_every_step(quick: Path) -> None:
    if not can_exchange(quick):
        pytest.skip("this file system cannot exchange names")
    assert killed("killed_update", quick / "work") == ["old new", "new new"]
    assert killed("killed_roll_back", quick / "work") == ["new new", "old old"]


def test_killed_at_every_step_where_names_cannot_be_exchanged(quick: Path) -> None:
    """Between two renames there is nothing, until the next call."""
    assert killed("killed_update", quick / "work", "no-exchange") == ["old new", "nothing new", "new new"]
    found = killed("killed_roll_back", quick / "work", "no-exchange")
    assert found == ["new new", "nothing new", "old old"]


def test_only_one_at_a_time(made: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    (made / ".bundle.update").mkdir()
    handle = os.open(made / ".bundle.update", os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(UpdateError, match="another process updates this bundle; wait for it"):
        apply_update(made / "bundle", made / "update")
    os.close(handle)
    apply_update(made / "bundle", made / "update")
