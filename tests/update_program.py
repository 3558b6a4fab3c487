"""Updates by the program src/test_update.cpp: of the tests' bundles, what Python makes of them; killed at each step.

``native_cross.py`` gives it the program for Windows under wine, ``test_update_program.py`` this computer's.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from itertools import groupby
from pathlib import Path

from update_bundles import STORED, contents, listed, new_bundle, old_bundle

from edgeloop.runtime.bundle.folder import Bundle, sha256_of
from edgeloop.runtime.bundle.manifest import MANIFEST
from edgeloop.runtime.bundle.signature import sums
from edgeloop.runtime.update.apply import apply_update, roll_back
from edgeloop.runtime.update.diff import make_update

Run = Callable[..., str]
"""The program with words, and names in its environment → what it prints; "" where it was killed."""
LONG = Path("ü ï 語", "long" * 40, "path" * 40)
"""Names beyond ASCII, and more of them than Windows takes without being asked."""


def made(place: Path) -> Path:
    """The folder ``place`` with ``bundle``, ``new`` and ``update``."""
    place.mkdir(parents=True)
    old_bundle(place / "bundle")
    new_bundle(place / "new", os.urandom(20_000))
    make_update(place / "bundle", place / "new", place / "update")
    return place


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def done(said: str, code: int = 0, match: str = "") -> str:
    """The first line behind its code; AssertionError unless it is ``code``, and ``match`` is in the second."""
    first, line, *_ = said.split("\n")
    assert first.split(" ")[0] == str(code), said
    assert re.search(match, line) if match else line == "", said
    return first.partition(" ")[2]


def applied(run: Run, place: Path) -> None:
    """There, back, stopped and gone on with, by this program and by Python in turns."""
    bundle, update = place / "bundle", place / "update"
    old, new = contents(STORED), contents(place / "new")
    total = sum(map(len, new.values()))
    done(run("verify", update))
    written = sum(len(data) for name, data in new.items() if old.get(name) != data)
    assert done(run("apply", bundle, update)) == f"0 {written} of {total}"
    assert (contents(bundle), contents(place / "bundle.former")) == (new, old)
    assert names(place) == {"bundle", "bundle.former", "new", "update"}
    assert (bundle / "onnx/block.onnx").samefile(place / "bundle.former/onnx/block.onnx")
    assert done(run("apply", bundle, update)) == f"1 0 of {total}"
    done(run("back", bundle))
    assert contents(bundle) == old
    done(run("settle", bundle))
    assert contents(roll_back(bundle)) == new
    roll_back(bundle)
    shutil.rmtree(place / "bundle.former")
    for finish in (lambda: done(run("apply", bundle, update)), lambda: apply_update(bundle, update)):
        done(run("apply", bundle, update, "0.5"), 5, "the next call goes on")
        assert contents(bundle) == old
        assert 2 < len(contents(place / ".bundle.update")) < len(new)
        finish()
        assert contents(bundle) == new
        assert not (place / ".bundle.update").exists()
        roll_back(bundle)
    (place / "bundle.former/onnx/weights.safetensors").chmod(0o444)  # which goes all the same
    done(run("twice", bundle, update), 0, "another process updates this bundle; wait for it")
    assert (contents(bundle), contents(place / "bundle.former")) == (new, old)
    done(run("back", bundle))
    shutil.rmtree(place / "bundle.former")
    assert contents(bundle) == old
    assert names(place) == {"bundle", "new", "update"}


def refused(run: Run, place: Path) -> None:
    """What is wrong is one line, and a bundle as it was."""
    bundle, update = place / "bundle", place / "update"

    def no(match: str, code: int, file: Path = update, verb: str = "apply") -> None:
        done(run(verb, bundle, file), code, match)
        assert names(place) - {"altered"} == {"bundle", "new", "update"}

    no("has no former bundle", 3, verb="back")
    no("nowhere: ", 1, place / "nowhere")
    no("new", 1, place / "new")
    no("this is no update; give one", 2, bundle / "manifest.json")
    data = bytearray(update.read_bytes())
    data[-1] ^= 1
    (place / "altered").write_bytes(data)
    no("part [0-9]+ of the update is not what its hash says", 2, place / "altered")
    (place / "altered").write_bytes(data[:-1])
    no("is not as long as its tables say", 2, place / "altered")
    (bundle / "notes.txt").write_text("mine")
    no("notes.txt is no part of the bundle, and would be lost", 3)
    (bundle / "notes.txt").unlink()
    weights = bundle / "onnx" / "weights.safetensors"
    sound = weights.read_bytes()
    weights.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    no("weights.safetensors is missing, damaged or was changed", 2)
    weights.write_bytes(sound)
    assert contents(bundle) == contents(STORED)
    (place / "bundle.former").mkdir()
    done(run("apply", bundle, update), 3, "bundle.former is in the way")
    (place / "bundle.former").rmdir()
    done(run("apply", place / "nothing", update), 1, "is not a bundle: it has no manifest.json")
    assert names(place) == {"bundle", "new", "update", "altered"}
    (place / "altered").unlink()


def signed(run: Run, place: Path) -> None:
    """The files of a signed bundle, those in folders too; whose signature it is, the program does not look at."""
    bundle = place / "new"
    done(run("signed", bundle), 2, "is not signed: it has no SHA256SUMS")
    (bundle / "SHA256SUMS").write_bytes(sums(Bundle.open(bundle).manifest, sha256_of(bundle / MANIFEST)))
    (bundle / "SHA256SUMS.sig").write_bytes(bytes(64))
    done(run("signed", bundle))
    (bundle / "onnx" / "more").write_text("more")
    done(run("signed", bundle), 2, "onnx/more is not among the files that were signed")
    (bundle / "onnx" / "more").unlink()
    for name in ("SHA256SUMS", "SHA256SUMS.sig"):
        (bundle / name).unlink()


def one_name(run: Run, place: Path) -> None:
    """Where A and a are one file, a bundle of both is refused."""
    for name in ("Case.bin", "case.bin"):
        (place / "new" / name).write_bytes(name.encode())
    make_update(place / "bundle", listed(place / "new"), place / "both")
    done(run("apply", place / "bundle", place / "both"), 2, "have names that are the same here")
    assert contents(place / "bundle") == contents(STORED)
    assert names(place) == {"bundle", "new", "update", "both"}


def held(run: Run, place: Path) -> None:
    """Where a folder cannot be renamed, since a file of it is open, the bundle is as it was; the next call goes on."""
    bundle, update = place / "bundle", place / "update"
    for name in ("bundle", "new"):
        said = run("apply", bundle, update, HELD=name)
        done(said, 1, f"{name} cannot be renamed: close what has a file of it open")
        assert contents(bundle) == contents(STORED)
        assert contents(place / ".bundle.update" / "new") == contents(place / "new")
    assert done(run("apply", bundle, update)).startswith("0 0 of ")
    for name in ("bundle", "bundle.former"):
        done(run("back", bundle, HELD=name), 1, f"{name} cannot be renamed: close what has a file of it open")
        assert contents(bundle) == contents(place / "new")
        assert contents(place / "bundle.former") == contents(STORED)
        assert names(place) == {"bundle", "bundle.former", "new", "update"}


def killed(run: Run, place: Path) -> int:
    """At each step of an update, and of the way back: the old bundle, the new one or, between two names, none.

    This program, or Python, goes on. Returns how many steps there are.
    """
    work, update, new = place / "work", place / "update", contents(place / "new")

    def told() -> str:
        if not (work / "bundle").exists():
            return "nothing"
        return {1: "new", 2: "old"}[
            (contents(work / "bundle") == new) + 2 * (contents(work / "bundle") == contents(STORED))
        ]

    count = 0
    for verb, known in (
        ("apply", ["old new", "nothing new", "new new"]),
        ("back", ["new old", "nothing old", "old old"]),
    ):
        seen = []
        for step in range(1, 400):
            shutil.rmtree(work, ignore_errors=True)
            shutil.copytree(place / "bundle", work / "bundle")
            shutil.copytree(place / "bundle", work / "bundle.former")
            words = (work / "bundle", update)
            if verb == "back":
                apply_update(*words)
                words = words[:1]
            said = run(verb, *words, KILLED_AT=step)
            now = told()
            if verb == "back":
                done(run("settle", work / "bundle"))
                if told() == "new":
                    roll_back(work / "bundle")
            elif step % 2:
                done(run("apply", *words))
            else:
                apply_update(*words)
            seen.append(f"{now} {told()}")
            assert names(work) == {"bundle", "bundle.former"}, (verb, step, names(work))
            if said:
                done(said)
                break
        assert [state for state, _ in groupby(seen)] == known, seen
        count += len(seen) - 1
    return count
