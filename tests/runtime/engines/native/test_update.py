"""Updates by the C interface: what Python makes of them, byte for byte, and the same refusals; killed at every step."""

from __future__ import annotations

import ctypes
import hashlib
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import groupby
from pathlib import Path

import pages
import pytest
from update_bundles import STORED, contents, new_bundle, old_bundle
from update_calls import VERIFY, CallError, Calls, Trust, UpdateInfo

from edgeloop.runtime.bundle.folder import Bundle
from edgeloop.runtime.bundle.signature import SigningKey, TrustedKey, sign_bundle
from edgeloop.runtime.engines.native import build
from edgeloop.runtime.engines.native.library import Code
from edgeloop.runtime.errors import EdgeloopError
from edgeloop.runtime.update import format as form
from edgeloop.runtime.update.apply import apply_update, check_update, roll_back
from edgeloop.runtime.update.diff import make_update

TESTS = Path(__file__).parents[3]
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the library for Windows has no updates")


@pytest.fixture
def calls(lane_engine: Path) -> Calls:
    return Calls(lane_engine)


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A folder with ``bundle``, ``new`` and ``update``."""
    old_bundle(tmp_path / "bundle")
    new_bundle(tmp_path / "new", os.urandom(20_000))
    make_update(tmp_path / "bundle", tmp_path / "new", tmp_path / "update")
    return tmp_path


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_the_new_bundle_and_the_way_back(calls: Calls, made: Path) -> None:
    old, new = contents(STORED), contents(made / "new")
    shares: list[float] = []
    found = calls.verify(made / "update")
    assert found.update_bytes == (made / "update").stat().st_size
    done = calls.apply(made / "bundle", made / "update", progress=lambda share: bool(shares.append(share)))
    assert contents(made / "bundle") == new
    assert contents(made / "bundle.former") == old
    assert names(made) == {"bundle", "bundle.former", "new", "update"}
    assert (made / "bundle/onnx/block.onnx").samefile(made / "bundle.former/onnx/block.onnx")
    assert done.bundle_bytes == found.bundle_bytes == sum(map(len, new.values()))
    assert done.written_bytes == sum(len(data) for name, data in new.items() if old.get(name) != data)
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert calls.apply(made / "bundle", made / "update").already == 1
    calls.back(made / "bundle")
    assert contents(made / "bundle") == old
    assert contents(roll_back(made / "bundle")) == new  # Python's, over what C left
    calls.settle(made / "bundle")
    third = new_bundle(made / "third")
    with pytest.raises(CallError, match="is not the bundle that the update is for"):
        calls.apply(third, made / "update")


def test_stopped_it_goes_on_in_either_language(calls: Calls, made: Path) -> None:
    for finish in (calls.apply, apply_update):
        with pytest.raises(CallError, match="the next call goes on") as stopped:
            calls.apply(made / "bundle", made / "update", progress=lambda share: share > 0.5)
        assert stopped.value.code == Code.STOPPED
        assert contents(made / "bundle") == contents(STORED)
        assert 2 < len(contents(made / ".bundle.update")) < len(contents(made / "new"))
        finish(made / "bundle", made / "update")
        assert contents(made / "bundle") == contents(made / "new")
        assert not (made / ".bundle.update").exists()
        roll_back(made / "bundle")
        shutil.rmtree(made / "bundle.former")


def test_a_refused_update_changes_nothing(calls: Calls, made: Path) -> None:
    def refused(match: str, code: Code, update: str = "update") -> None:
        with pytest.raises(CallError, match=match) as failed:
            calls.apply(made / "bundle", made / update)
        assert failed.value.code == code
        assert not (made / "bundle.former").exists()
        assert not (made / ".bundle.update").exists()

    data = bytearray((made / "update").read_bytes())
    refused("No such file", Code.FILE, "nowhere")
    refused("this is no update; give one", Code.FORMAT, "bundle/manifest.json")
    refused("is no file|Is a directory", Code.FILE, "new")
    data[-1] ^= 1
    (made / "altered").write_bytes(data)
    refused("part [0-9]+ of the update is not what its hash says", Code.FORMAT, "altered")
    notes = made / "bundle" / "notes.txt"
    notes.write_text("mine")
    refused("notes.txt is no part of the bundle, and would be lost", Code.USAGE)
    notes.unlink()
    notes.symlink_to("manifest.json")
    refused("notes.txt is a link", Code.USAGE)
    notes.unlink()
    weights = made / "bundle" / "onnx" / "weights.safetensors"
    sound = weights.read_bytes()
    weights.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    refused("weights.safetensors is missing, damaged or was changed", Code.FORMAT)
    weights.write_bytes(sound)
    (made / "bundle.former").mkdir()
    with pytest.raises(CallError, match="bundle.former is in the way"):
        calls.apply(made / "bundle", made / "update")
    (made / "bundle.former").rmdir()
    with pytest.raises(CallError, match="has no former bundle"):
        calls.back(made / "bundle")
    with pytest.raises(CallError, match="is not a bundle: it has no manifest.json"):
        calls.apply(made / "nothing", made / "update")
    with pytest.raises(CallError, match="compiled with another edgeloop.h"):
        calls._call("el_update_verify", bytes(made / "update"), None, ctypes.byref(UpdateInfo(8)))
    calls.apply(made / "bundle", made / "update")


def test_only_one_at_a_time(calls: Calls, made: Path) -> None:
    import fcntl

    (made / ".bundle.update").mkdir()
    handle = os.open(made / ".bundle.update", os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(CallError, match="another process updates this bundle; wait for it"):
        calls.apply(made / "bundle", made / "update")
    os.close(handle)
    calls.apply(made / "bundle", made / "update")


def test_changed_tables_are_refused_by_both_or_by_none(calls: Calls, made: Path) -> None:
    lot, data = random.Random(2), (made / "update").read_bytes()
    end = len(form.read_update(made / "update").tables)
    refused = 0
    for _ in range(1500):
        changed = bytearray(data)
        for _ in range(lot.randint(1, 2)):
            at = lot.randrange(0, end)
            changed[at] = lot.choice(
                (0, 1, 0x2E, 0x2F, 0x3A, 0x5C, 0x7F, 0x80, 0xC3, 0xFF, lot.randrange(256))
            )
        (made / "changed").write_bytes(changed)
        told = []
        for call in (check_update, calls.verify):
            try:
                call(made / "changed")
                told.append("")
            except (EdgeloopError, CallError) as error:
                told.append(str(error))
        assert bool(told[0]) == bool(told[1]), told
        refused += bool(told[0])
    assert 500 < refused < 1500  # a hash of the old bundle's files may be any here: there is no bundle


@pytest.mark.parametrize(
    "name", ["../x", "/etc/x", "a/../../x", "a//b", "a\\b", "c:x", "a\nb", "", ".", "a/", "ü/ï"]
)
def test_names_stay_in_the_folder(calls: Calls, made: Path, name: str) -> None:
    update = form.read_update(made / "update")
    new = sorted([form.Listed(name, 1, bytes(32)), *update.new], key=lambda file: file.name.encode())
    copies = [
        [*update.copies(update.new.index(file))] if file in update.new else [form.Copy(0, 0, 0, 1)]
        for file in new
    ]
    parts = (made / "update").read_bytes()[len(update.tables) + 64 :]
    (made / "hostile").write_bytes(
        form.packed(update.old, new, copies, update.parts.tolist()) + bytes(64) + parts
    )
    if name == "ü/ï":  # a name like any other; its hash is wrong
        calls.verify(made / "hostile")
        with pytest.raises(CallError, match="is not what its hash says"):
            calls.apply(made / "bundle", made / "hostile")
    else:
        with pytest.raises(CallError, match="a file name that is no plain path inside a bundle"):
            calls.apply(made / "bundle", made / "hostile")


def trust_of(key: TrustedKey) -> Trust:
    """What an app does with the library of its platform, here with cryptography."""

    def verify(
        user: object, raw: ctypes.Array[ctypes.c_uint8], message: object, count: int, signature: object
    ) -> int:
        assert bytes(raw[:32]) == key.raw
        return int(key.signed(ctypes.string_at(message, count), ctypes.string_at(signature, 64)))  # type: ignore[arg-type]

    return Trust(ctypes.sizeof(Trust), 0, key.raw, VERIFY(verify), None)


def test_signatures(calls: Calls, made: Path) -> None:
    pytest.importorskip("cryptography", reason="cryptography is not installed: pip install 'edgeloop[sign]'")
    key = SigningKey.make(made / "key")
    SigningKey.make(made / "other")
    trust, other = (trust_of(TrustedKey.read(made / f"{name}.pub")) for name in ("key", "other"))
    bundle, new = made / "bundle", made / "new"
    with pytest.raises(CallError, match="is not signed: it has no SHA256SUMS"):
        calls.check(bundle, trust)
    for folder in (bundle, new):
        sign_bundle(folder, Bundle.open(folder).manifest, key)
    with pytest.raises(CallError, match="the update is not signed by the key that is trusted"):
        calls.apply(bundle, made / "update", trust)
    make_update(bundle, new, made / "update", key)
    with pytest.raises(CallError, match="the update is not signed by the key that is trusted"):
        calls.apply(bundle, made / "update", other)
    calls.apply(bundle, made / "update", trust)
    assert contents(bundle) == contents(new)
    calls.check(bundle, trust)
    with pytest.raises(CallError, match="is not signed by the key that is trusted"):
        calls.check(bundle, other)
    calls.back(bundle, trust)
    (bundle / "model.lanes").write_bytes(b"another")
    with pytest.raises(CallError, match="model.lanes is not among the files that were signed"):
        calls.check(bundle, trust)
    calls.back(bundle, trust)
    with pytest.raises(CallError, match="model.lanes is not among"):  # the former one has it now
        calls.back(bundle, trust)
    (made / "bundle.former" / "model.lanes").unlink()
    calls.back(bundle, trust)
    manifest = bundle / "manifest.json"
    manifest.write_bytes(manifest.read_bytes() + b" ")
    with pytest.raises(CallError, match="manifest.json is damaged or was changed after it was signed"):
        calls.check(bundle, trust)
    manifest.unlink()
    with pytest.raises(CallError, match="lacks files that were signed"):
        calls.check(bundle, trust)
    with pytest.raises(CallError, match="bundle or trust is NULL"):
        calls.check(bundle, None)
    with pytest.raises(CallError, match="this library checks no signature by itself"):
        calls.check(bundle, Trust(ctypes.sizeof(Trust), 0, bytes(32), VERIFY(0), None))


def test_the_host_on_the_page(lane_engine: Path, made: Path) -> None:
    """Compiled as the page says, with OpenSSL, against keys and signatures of cryptography."""
    pytest.importorskip("cryptography", reason="cryptography is not installed: pip install 'edgeloop[sign]'")
    compiler = next((name for name in ("cc", "gcc", "clang") if shutil.which(name)), None)
    (host,) = pages.blocks(pages.ROOT / "docs" / "updates.md", "c")
    (made / "update.c").write_text(host)
    words = [
        f"-I{build.SOURCES}",
        str(lane_engine),
        f"-Wl,-rpath,{lane_engine.parent}",
        "-lcrypto",
        "-o",
        "host",
    ]
    probe = "#include <openssl/evp.h>\nint main(void) { return 0; }"
    given = ["-x", "c", "-", "-lcrypto", "-o", "probe"]
    if (
        compiler is None
        or subprocess.run(
            [compiler, *given], input=probe, text=True, cwd=made, capture_output=True
        ).returncode
    ):
        pytest.skip("no C compiler, or no libssl-dev")
    subprocess.run([compiler, "-Wall", "-Werror", "update.c", *words], cwd=made, check=True)
    keys = [
        SigningKey.make(made / name) and TrustedKey.read(made / f"{name}.pub").raw.hex()
        for name in ("a", "b")
    ]
    make_update(made / "bundle", made / "new", made / "update", SigningKey.read(made / "a"))

    def run(key: str) -> subprocess.CompletedProcess[str]:
        command = [made / "host", made / "bundle", made / "update", key]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    refused = run(keys[1])
    assert (refused.returncode, refused.stdout) == (Code.FORMAT, "")
    assert "is not signed by the key that is trusted" in refused.stderr
    done = run(keys[0])
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"\d+ of \d+ bytes written\n", done.stdout)
    assert contents(made / "bundle") == contents(made / "new")


def test_the_structs_are_those_of_the_header_file() -> None:
    text = (build.SOURCES / "edgeloop_update.h").read_text(encoding="utf-8")
    for name, struct in (("el_trust", Trust), ("el_update_info", UpdateInfo)):
        (body,) = re.findall(rf"typedef struct {name} \{{(.*?)^\}} {name};", text, re.MULTILINE | re.DOTALL)
        fields = re.findall(
            r"^\s*[^/;(]*?(?:\(\*)?(\w+)(?:\)\([^;]*\))?;", re.sub("//.*", "", body), re.MULTILINE
        )
        assert [field for field, _ in struct._fields_] == fields


KILLER = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>
static void step(void) {
  static int taken, wanted;
  if (!wanted) wanted = atoi(getenv("KILLED_AT"));
  if (++taken == wanted) raise(SIGKILL);
}
#define KILLED(name, given, passed, kinds) \\
  int name given { step(); return ((int (*) kinds)dlsym(RTLD_NEXT, #name)) passed; }
KILLED(rename, (const char *a, const char *b), (a, b), (const char *, const char *))
KILLED(mkdir, (const char *a, mode_t m), (a, m), (const char *, mode_t))
KILLED(rmdir, (const char *a), (a), (const char *))
KILLED(unlink, (const char *a), (a), (const char *))
KILLED(link, (const char *a, const char *b), (a, b), (const char *, const char *))
KILLED(fsync, (int f), (f), (int))
ssize_t write(int f, const void *d, size_t n) {
  step();
  return ((ssize_t (*)(int, const void *, size_t))dlsym(RTLD_NEXT, "write"))(f, d, n);
}
#ifdef NO_EXCHANGE
#include <errno.h>
int renameat2(int a, const char *b, int c, const char *d, unsigned e) { errno = ENOSYS; return -1; }
#else
KILLED(renameat2, (int a, const char *b, int c, const char *d, unsigned e), (a, b, c, d, e),
       (int, const char *, int, const char *, unsigned))
#endif
"""
HOST = """
#include <stdio.h>
#include "edgeloop_update.h"
int main(int count, char **words) {
  char error[EL_ERROR_SIZE] = "";
  const int code = count == 3 ? el_update_apply(words[1], words[2], NULL, NULL, NULL, NULL, error)
                              : el_update_back(words[1], NULL, error);
  if (code) fprintf(stderr, "%s\\n", error);
  return code;
}
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="LD_PRELOAD is Linux's")
@pytest.mark.parametrize("exchanges", [True, False])
def test_killed_at_every_step(
    lane_engine: Path, made: Path, quick: Path, exchanges: bool, calls: Calls
) -> None:
    """As Python's test, of a host in C: its C library's functions are in the way of it."""
    compiler = next((name for name in ("cc", "gcc", "clang") if shutil.which(name)), None)
    if compiler is None:
        pytest.skip("no C compiler")
    (made / "killer.c").write_text(KILLER)
    (made / "host.c").write_text(HOST)
    define = [] if exchanges else ["-DNO_EXCHANGE"]
    shared = [compiler, *define, "-shared", "-fPIC", "killer.c", "-o", "killer.so", "-ldl"]
    folder = lane_engine.parent
    host = [compiler, "host.c", f"-I{build.SOURCES}", str(lane_engine), f"-Wl,-rpath,{folder}", "-o", "host"]
    for command in (shared, host):
        subprocess.run(command, cwd=made, check=True, capture_output=True)

    def told(folder: Path) -> str:
        if not (folder / "bundle").exists():
            return "nothing"
        found = contents(folder / "bundle")
        return {1: "new", 2: "old"}[(found == contents(made / "new")) + 2 * (found == contents(STORED))]

    def run(step: int, *words: Path) -> int:
        given = {**os.environ, "LD_PRELOAD": str(made / "killer.so"), "KILLED_AT": str(step)}
        return subprocess.run(
            [made / "host", *words], env=given, check=False, stderr=subprocess.DEVNULL
        ).returncode

    work, update = quick / "work", made / "update"
    finish: Callable[..., object] = calls.apply
    for words, known in (
        (("bundle", "update"), ["old new", *([] if exchanges else ["nothing new"]), "new new"]),
        (("bundle",), ["new old", *([] if exchanges else ["nothing old"]), "old old"]),
    ):
        seen = []
        for step in range(1, 400):
            shutil.rmtree(work, ignore_errors=True)
            shutil.copytree(made / "bundle", work / "bundle")
            shutil.copytree(made / "bundle", work / "bundle.former")
            if words == ("bundle",):
                apply_update(work / "bundle", update)
            code = run(step, *(work / "bundle", update)[: len(words)])
            now = told(work)
            finish = apply_update if step % 2 else calls.apply  # whoever goes on
            if len(words) == 2:
                finish(work / "bundle", update)
            else:
                calls.settle(work / "bundle")
                if told(work) == "new":
                    roll_back(work / "bundle")
            seen.append(f"{now} {told(work)}")
            assert names(work) == {"bundle", "bundle.former"}
            if code == 0:
                break
            assert code < 0
        assert [state for state, _ in groupby(seen)] == known
        assert len(seen) > (30 if len(words) == 2 else 3)


def test_sha256_of_any_length(calls: Calls, tmp_path: Path) -> None:
    """Of 3000 random inputs, the lengths around a block's among them, as hashes of parts; ``hashlib`` has the other."""
    lot = random.Random(3)
    manifests = [form.Listed("manifest.json", 1, bytes([i]) * 32) for i in (0, 1)]
    parts = [
        lot.randbytes(length) for length in (*range(1, 300), *(lot.randint(1, 3000) for _ in range(2700)))
    ]
    sums = [(len(data), hashlib.sha256(data).digest()) for data in parts]
    other = form.Listed("other", sum(map(len, parts)), bytes(32))
    copies = [[form.Copy(0, 0, 0, 1)], [form.Copy(None, i, 0, len(data)) for i, data in enumerate(parts)]]
    tables = form.packed(manifests[:1], [manifests[1], other], copies, sums)
    (tmp_path / "update").write_bytes(tables + bytes(64) + b"".join(parts))
    calls.verify(tmp_path / "update")
    for number in lot.sample(range(len(parts)), 20):
        wrong = [(size, digest if i != number else bytes(32)) for i, (size, digest) in enumerate(sums)]
        tables = form.packed(manifests[:1], [manifests[1], other], copies, wrong)
        (tmp_path / "update").write_bytes(tables + bytes(64) + b"".join(parts))
        with pytest.raises(CallError, match=f"part {number} of the update"):
            calls.verify(tmp_path / "update")
