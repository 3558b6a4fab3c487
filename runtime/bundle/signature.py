"""Signatures of bundles and updates: Ed25519, by the package cryptography (``pip install 'edgeloop[sign]'``).

A signed bundle has two files more: ``SHA256SUMS``, the hash of every file of it, in the lines that ``sha256sum -c``
reads, and ``SHA256SUMS.sig``, 64 bytes, the signature of those lines. Keys are PEM files, as ``openssl genpkey`` writes
them. So who has neither edgeloop nor its packages can check a bundle, and sign one.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import BundleError, EngineError, UsageError
from .manifest import MANIFEST, Manifest

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

SUMS, SIGNATURE = "SHA256SUMS", "SHA256SUMS.sig"
SIGNATURES = (SUMS, SIGNATURE)
_KEY_BYTES = 1 << 16


@dataclass(frozen=True)
class SigningKey:
    """A private key: signs."""

    key: Ed25519PrivateKey

    @staticmethod
    def read(path: str | Path) -> SigningKey:
        """The private key in a PEM file; UsageError for anything else."""
        library = _library("serialization")
        found = _parsed(Path(path), lambda data: library.load_pem_private_key(data, None), "private")
        return SigningKey(found)

    @staticmethod
    def make(path: str | Path) -> SigningKey:
        """Write a new private key to the new file ``path``, for its owner alone, and the public one to ``path``.pub.

        UsageError where one of them cannot be; then neither is there.
        """
        key = SigningKey(_library("asymmetric.ed25519").Ed25519PrivateKey.generate())
        forms = _library("serialization")
        private = key.key.private_bytes(forms.Encoding.PEM, forms.PrivateFormat.PKCS8, forms.NoEncryption())
        public = key.key.public_key().public_bytes(
            forms.Encoding.PEM, forms.PublicFormat.SubjectPublicKeyInfo
        )
        made: list[Path] = []
        for place, data, mode in ((Path(path), private, 0o600), (Path(f"{path}.pub"), public, 0o644)):
            try:
                with open(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
                    made.append(place)
                    file.write(data)
            except OSError as error:
                for each in made:
                    each.unlink()
                raise UsageError(f"{place}: {error.strerror}; name a new file") from error
        return key

    def sign(self, data: bytes) -> bytes:
        """The signature of ``data``, 64 bytes."""
        return bytes(self.key.sign(data))


@dataclass(frozen=True)
class TrustedKey:
    """A public key: whose signatures are trusted."""

    key: Ed25519PublicKey
    path: Path

    @staticmethod
    def read(path: str | Path) -> TrustedKey:
        """The public key in a PEM file; UsageError for anything else."""
        library = _library("serialization")
        return TrustedKey(_parsed(Path(path), library.load_pem_public_key, "public"), Path(path))

    @property
    def raw(self) -> bytes:
        """Its 32 bytes, as ``el_trust`` of the C interface takes them."""
        return bytes(self.key.public_bytes_raw())

    def signed(self, data: bytes, signature: bytes) -> bool:
        """Whether ``signature`` is this key's, of ``data``."""
        from cryptography.exceptions import InvalidSignature

        try:
            self.key.verify(signature, data)
        except InvalidSignature:
            return False
        return True


def trusted(trust: str | Path | TrustedKey) -> TrustedKey:
    """The key, or the one in a file."""
    return trust if isinstance(trust, TrustedKey) else TrustedKey.read(trust)


def sums(manifest: Manifest, manifest_sha256: str) -> bytes:
    """The text of ``SHA256SUMS`` of a bundle: a line for each file, by its name."""
    hashes = {MANIFEST: manifest_sha256, **{name: file.sha256 for name, file in manifest.files.items()}}
    return "".join(f"{hashes[name]}  {name}\n" for name in sorted(hashes)).encode()


def sign_bundle(folder: Path, manifest: Manifest, key: SigningKey) -> None:
    """Write the files of a signature into the bundle ``folder``, in place of what is there; BundleError for no room."""
    text = sums(manifest, hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest())
    for name, data in ((SUMS, text), (SIGNATURE, key.sign(text))):
        fresh = folder / f"{name}.new"  # the present one may be linked elsewhere
        try:
            fresh.write_bytes(data)
            fresh.replace(folder / name)
        except OSError as error:
            fresh.unlink(missing_ok=True)
            raise BundleError(
                f"cannot write {folder / name}: {error.strerror or error}; make room there and sign it again"
            ) from error


def check_signature(folder: Path, manifest: Manifest, manifest_sha256: str, trust: TrustedKey) -> None:
    """BundleError unless the bundle ``folder`` has a signature by ``trust``, of this manifest and the files in it."""
    found = []
    for name in SIGNATURES:
        path = folder / name
        if not path.is_file():
            raise BundleError(
                f"{folder} is not signed: it has no {name}; get a signed bundle, or open it without trust"
            )
        with path.open("rb") as file:
            found.append(file.read(64 << 20))
    if found[0] != sums(manifest, manifest_sha256):
        raise BundleError(f"{folder}: {SUMS} is not that of its files; it was changed after it was signed")
    if not trust.signed(found[0], found[1]):
        raise BundleError(f"{folder} is not signed by the key in {trust.path}, or was changed; do not use it")


def _parsed(path: Path, load: Any, kind: str) -> Any:
    """The Ed25519 key that ``load`` makes of the file ``path``."""
    wanted = (
        f"wanted a PEM file with an Ed25519 {kind} key, as `edgeloop sign --new-key` and openssl write it"
    )
    try:
        if not path.is_file():
            raise UsageError(f"{path} is no file; {wanted}")
        with path.open("rb") as file:
            found = load(file.read(_KEY_BYTES))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; {wanted}") from error
    except (ValueError, TypeError) as error:  # TypeError: it wants a password
        raise UsageError(f"{path} is no such key; {wanted}, without a password") from error
    except Exception as error:
        if type(error).__name__ != "UnsupportedAlgorithm":
            raise
        raise UsageError(f"{path} is no such key; {wanted}") from error
    if not isinstance(found, getattr(_library("asymmetric.ed25519"), f"Ed25519{kind.title()}Key")):
        raise UsageError(f"{path} has a key of another kind; {wanted}")
    return found


def _library(name: str) -> Any:
    """A module of cryptography's primitives; EngineError where it is not installed."""
    from importlib import import_module

    try:
        return import_module(f"cryptography.hazmat.primitives.{name}")
    except ModuleNotFoundError as error:
        raise EngineError(
            "signatures need cryptography, which is not installed: pip install 'edgeloop[sign]'"
        ) from error
