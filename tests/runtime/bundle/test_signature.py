"""Who asks for a signature gets what the key signed, or nothing. Checked with openssl, and made with it."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from update_bundles import contents, listed, new_bundle, old_bundle

from edgeloop.runtime import Session
from edgeloop.runtime.audit import audit
from edgeloop.runtime.bundle.folder import Bundle
from edgeloop.runtime.bundle.signature import SigningKey, TrustedKey, sign_bundle
from edgeloop.runtime.errors import BundleError, EdgeloopError, UpdateError, UsageError
from edgeloop.runtime.update.apply import apply_update, roll_back
from edgeloop.runtime.update.diff import make_update
from edgeloop.runtime.update.sign import sign_update

pytest.importorskip("cryptography", reason="cryptography is not installed: pip install 'edgeloop[sign]'")


@pytest.fixture
def key(tmp_path: Path) -> SigningKey:
    """It is ``key`` and ``key.pub`` in the test's folder."""
    return SigningKey.make(tmp_path / "key")


@pytest.fixture
def signed(tmp_path: Path, key: SigningKey) -> Path:
    return sign(old_bundle(tmp_path / "bundle"), key)


def sign(folder: Path, key: SigningKey) -> Path:
    sign_bundle(folder, Bundle.open(folder).manifest, key)
    return folder


def test_a_signed_bundle_opens(tmp_path: Path, signed: Path) -> None:
    public = tmp_path / "key.pub"
    Bundle.open(signed)
    Bundle.open(signed, trust=public)
    with Session.open(signed, engine="reference", trust=public) as session:
        assert session.logits([1, 2]).shape == (2, 32)
    assert audit(signed).findings == ()
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    with pytest.raises(UsageError, match="key: File exists; name a new file"):
        SigningKey.make(tmp_path / "key")
    (tmp_path / "other.pub").touch()
    with pytest.raises(UsageError, match="other.pub: File exists; name a new file"):
        SigningKey.make(tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_signature_without_room_is_none(
    signed: Path, key: SigningKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was there stays, and nothing beside it."""
    before = contents(signed)

    def full(path: Path, data: bytes) -> int:
        path.touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(
            BundleError, match="cannot write .*SHA256SUMS: No space left on device; make room"
        ):
            sign(signed, key)
    assert contents(signed) == before


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_openssl_and_sha256sum_say_the_same(tmp_path: Path, signed: Path) -> None:
    names = ["-inkey", str(tmp_path / "key.pub"), "-sigfile", str(signed / "SHA256SUMS.sig")]
    files = ["-in", str(signed / "SHA256SUMS"), *names]
    done = run("openssl", "pkeyutl", "-verify", "-pubin", "-rawin", *files)
    assert "Signature Verified Successfully" in done
    if shutil.which("sha256sum"):
        run("sha256sum", "--check", "--strict", "SHA256SUMS", folder=signed)
    run("openssl", "genpkey", "-algorithm", "ed25519", "-out", str(tmp_path / "theirs"))
    run("openssl", "pkey", "-in", str(tmp_path / "theirs"), "-pubout", "-out", str(tmp_path / "theirs.pub"))
    sign(signed, SigningKey.read(tmp_path / "theirs"))
    Bundle.open(signed, trust=tmp_path / "theirs.pub")
    run("openssl", "genpkey", "-algorithm", "RSA", "-out", str(tmp_path / "rsa"))
    with pytest.raises(UsageError, match="has a key of another kind; wanted a PEM file"):
        SigningKey.read(tmp_path / "rsa")


def run(*words: str, folder: Path | None = None) -> str:
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


def change(name: str, at: int = -1) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[at] ^= 1
        (folder / name).write_bytes(data)

    return act


def resized(folder: Path) -> None:
    """What a forger would do: other weights, and a manifest that lists them."""
    signature = {name: (folder / name).read_bytes() for name in ("SHA256SUMS", "SHA256SUMS.sig")}
    for name in signature:
        (folder / name).unlink()
    change("onnx/weights.safetensors")(folder)
    listed(folder)
    for name, data in signature.items():
        (folder / name).write_bytes(data)


@pytest.mark.parametrize(
    ("act", "told"),
    [
        (change("SHA256SUMS", 5), "SHA256SUMS is not that of its files"),
        (change("SHA256SUMS.sig"), "is not signed by the key in .*key.pub, or was changed; do not use it"),
        (change("manifest.json"), "."),
        (change("onnx/weights.safetensors"), "weights.safetensors has SHA-256"),
        (resized, "SHA256SUMS is not that of its files; it was changed after it was signed"),
        (lambda folder: (folder / "SHA256SUMS.sig").unlink(), "is not signed: it has no SHA256SUMS.sig"),
        (lambda folder: (folder / "SHA256SUMS").write_bytes(b""), "SHA256SUMS is not that of its files"),
        (lambda folder: (folder / "SHA256SUMS.sig").write_bytes(bytes(63)), "is not signed by the key"),
    ],
)
def test_an_altered_bundle_is_refused(
    tmp_path: Path, signed: Path, act: Callable[[Path], None], told: str
) -> None:
    act(signed)
    with pytest.raises(BundleError, match=told):
        Bundle.open(signed, trust=tmp_path / "key.pub")


def test_another_key_is_refused(tmp_path: Path, signed: Path) -> None:
    SigningKey.make(tmp_path / "other")
    with pytest.raises(BundleError, match="is not signed by the key in .*other.pub"):
        Session.open(signed, engine="reference", trust=tmp_path / "other.pub")
    with pytest.raises(UsageError, match="with trust they are verified"):
        Bundle.open(signed, verify=False, trust=tmp_path / "key.pub")
    for path, told in (
        (tmp_path / "key", "is no such key; wanted a PEM file with an Ed25519 public key"),
        (tmp_path / "nowhere", "is no file"),
        (signed / "manifest.json", "is no such key"),
    ):
        with pytest.raises(UsageError, match=told):
            TrustedKey.read(path)
    with pytest.raises(UsageError, match="is no such key; wanted a PEM file with an Ed25519 private key"):
        SigningKey.read(tmp_path / "key.pub")


def test_signed_updates(tmp_path: Path, key: SigningKey, signed: Path) -> None:
    public = tmp_path / "key.pub"
    new = sign(new_bundle(tmp_path / "new", os.urandom(5000)), key)
    update, unsigned = tmp_path / "update", tmp_path / "unsigned"
    make_update(signed, new, update, key)
    make_update(signed, new, unsigned)
    data = update.read_bytes()
    altered = tmp_path / "altered"
    SigningKey.make(tmp_path / "other")
    cases = [
        (unsigned, public, "is not signed; get a signed update"),
        (update, tmp_path / "other.pub", "is not signed by the key in .*other.pub, or was changed"),
    ]
    tables = len(data) - len(unsigned.read_bytes())
    assert tables == 0
    for path, trust, told in cases:
        with pytest.raises(UpdateError, match=told):
            apply_update(signed, path, trust=trust)
    for at in range(0, len(data), 97):
        changed = bytearray(data)
        changed[at] ^= 4
        altered.write_bytes(changed)
        with pytest.raises(EdgeloopError):
            apply_update(signed, altered, trust=public)
    assert not (tmp_path / "bundle.former").exists()
    sign_update(unsigned, key)
    assert unsigned.read_bytes() == data
    apply_update(signed, update, trust=public)
    assert contents(signed) == contents(new)
    Bundle.open(signed, trust=public)
    roll_back(signed, trust=public)
    (tmp_path / "bundle.former" / "SHA256SUMS.sig").write_bytes(bytes(64))
    with pytest.raises(BundleError, match="bundle.former is not signed by the key"):
        roll_back(signed, trust=public)
