"""BundleStore of apps/android with a trusted key: what `edgeloop sign` signed is installed, and nothing else."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler
from pathlib import Path

import jvm
import pytest
from http_server import serving
from update_bundles import contents, listed, new_bundle, old_bundle

from edgeloop.apps.cli import main

pytest.importorskip("cryptography", reason="cryptography is not installed: pip install 'edgeloop[sign]'")
SITES = (
    "unsigned", "signed", "half", "cut", "altered", "resigned", "listed-anew", "other-key", "mixed", "any-unsigned",
    "none-signed", "newer",
)  # fmt: skip


class Quiet(SimpleHTTPRequestHandler):
    """Says nothing of what it is asked for."""

    def log_message(self, *_: object) -> None:
        """Nothing."""


def sign(*words: object) -> None:
    assert main(["sign", *map(str, words)]) == 0


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bundle for each of ``SITES``, and the keys that two of them are signed with."""
    folder = tmp_path_factory.mktemp("sites")
    for name in ("key", "theirs"):
        sign("--new-key", folder / name)
    signed = old_bundle(folder / "signed")
    shutil.copytree(signed, folder / "unsigned")
    sign(signed, "--key", folder / "key")
    for name in SITES[2:8]:
        shutil.copytree(signed, folder / name)
    (folder / "half" / "SHA256SUMS.sig").unlink()
    (folder / "cut" / "SHA256SUMS.sig").write_bytes((signed / "SHA256SUMS.sig").read_bytes()[:63])
    weights = folder / "altered" / "onnx" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")  # as a server that was broken into has it
    for name in ("resigned", "listed-anew"):
        weights = folder / name / "onnx" / "weights.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
        old = contents(folder / name)
        for each in ("SHA256SUMS", "SHA256SUMS.sig"):
            (folder / name / each).unlink()
        listed(folder / name)
        sums = (folder / name / "SHA256SUMS", folder / name / "SHA256SUMS.sig")
        if name == "resigned":  # a list that fits, with the signature of the other one
            sign(folder / name, "--key", folder / "theirs")
        else:
            sums[0].write_bytes(old["SHA256SUMS"])
        sums[1].write_bytes(old["SHA256SUMS.sig"])
    sign(folder / "other-key", "--key", folder / "theirs")
    new = new_bundle(folder / "newer", b"more")
    sign(new, "--key", folder / "key")
    shutil.copytree(signed, folder / "mixed")
    for each in ("SHA256SUMS", "SHA256SUMS.sig"):
        shutil.copy(new / each, folder / "mixed" / each)
    shutil.copytree(folder / "unsigned", folder / "any-unsigned")
    shutil.copytree(signed, folder / "none-signed")
    return folder


@pytest.fixture(scope="module")
def address(sites: Path) -> Iterator[str]:
    with serving(partial(Quiet, directory=str(sites))) as found:
        yield found


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of the classes."""
    if reason := jvm.missing():
        pytest.skip(reason)
    return jvm.classes(tmp_path_factory.mktemp("signed"))


def installed(path: str, root: Path, key: Path, *bases: str) -> dict[str, tuple[str, str]]:
    """By base what came of it, and what the store with the key says is current then."""
    lines = jvm.ran(path, root, "edgeloop.Exercise", "signed", str(root), str(key), *bases)
    pairs = zip(lines[::2], lines[1::2], strict=True)
    return {a.partition(": ")[0]: (a.partition(": ")[2], b.removeprefix("current: ")) for a, b in pairs}


def name(bundle: Path) -> str:
    return hashlib.sha256((bundle / "manifest.json").read_bytes()).hexdigest()


def test_only_what_the_key_signed_is_installed(sites: Path, address: str, path: str, tmp_path: Path) -> None:
    """The bundle of before stays; one that was installed without a key is not current for a store that has one."""
    root = tmp_path / "bundles"
    found = installed(path, root, sites / "key.pub", *(f"{address}/{site}/" for site in SITES))
    old, new = name(sites / "signed"), name(sites / "newer")
    site = f"{address}/{{}}/"
    changed = f"IOException {site} is not signed by the trusted key, or was changed: do not use it"
    not_its = f"IOException {site}: SHA256SUMS is not that of its files; it was changed after it was signed"
    weights = "onnx/weights.safetensors"
    theirs, ours = (
        hashlib.sha256((sites / each / weights).read_bytes()).hexdigest() for each in ("altered", "signed")
    )
    no_check = (
        "IOException signatures cannot be checked here (Ed25519 is not there): give the trusted key a verifier, as "
        "Tink has one"
    )
    wanted = {
        "unsigned": (f"IOException {site} is not signed: it has no SHA256SUMS; get a signed bundle", "none"),
        "signed": (old, old),
        "half": (f"IOException {site} is not signed: it has no SHA256SUMS.sig; get a signed bundle", old),
        "cut": (changed, old),
        "altered": (old, old),  # nothing is asked for again: what is there was checked
        "resigned": (changed, old),
        "listed-anew": (not_its, old),
        "other-key": (changed, old),
        "mixed": (not_its, old),
        "any-unsigned": (old, old),
        "none-signed": (no_check, old),
        "newer": (new, new),
    }
    assert found == {each: (said.format(each), current) for each, (said, current) in wanted.items()}
    assert contents(root / new) == contents(sites / "newer")
    assert [each.name for each in root.iterdir() if each.is_dir()] == [new]
    fresh = installed(
        path, tmp_path / "fresh", sites / "key.pub", f"{address}/any-unsigned/", f"{address}/altered/"
    )
    folder = tmp_path / "fresh" / old
    assert fresh["any-unsigned"] == (
        old,
        f"IOException {folder} is not signed: it has no SHA256SUMS; install the bundle again",
    )
    other = installed(path, tmp_path / "other", sites / "key.pub", f"{address}/altered/")
    assert other["altered"] == (
        f"IOException {address}/altered/{weights} has SHA-256 {theirs}, wanted {ours}: its server has another file",
        "none",
    )
    assert (folder / "SHA256SUMS.sig").read_bytes() == (sites / "signed" / "SHA256SUMS.sig").read_bytes()


def test_a_key_is_a_file_or_its_digits(sites: Path, address: str, path: str, tmp_path: Path) -> None:
    from edgeloop.runtime.bundle.signature import TrustedKey

    digits = tmp_path / "digits"
    digits.write_text(TrustedKey.read(sites / "key.pub").raw.hex() + "\n", encoding="ascii")
    old = name(sites / "signed")
    assert installed(path, tmp_path / "a", digits, f"{address}/signed/") == {"signed": (old, old)}
    for wrong in (
        (sites / "key").read_bytes(),
        b"",
        b"00" * 31,
        b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----",
    ):
        digits.write_bytes(wrong)
        with pytest.raises(
            AssertionError, match="IllegalArgumentException: the key is n.*; wanted the text of key.pem.pub"
        ):
            installed(path, tmp_path / "b", digits, f"{address}/signed/")


def test_an_update_is_applied_where_the_key_signed_it(
    sites: Path, path: str, lane_engine: Path, tmp_path: Path
) -> None:
    """Unsigned, altered and others' updates leave the bundle as it is; so does the way back to what is not signed."""
    library = jvm.jni_library(lane_engine, tmp_path)
    bundle, key = tmp_path / "bundle", sites / "key.pub"
    shutil.copytree(sites / "signed", bundle)
    made = {}
    for each, signer in {"unsigned": None, "theirs": "theirs", "ours": "key"}.items():
        made[each] = tmp_path / each
        signs = ["--sign", str(sites / signer)] if signer else []
        assert main(["diff", str(sites / "signed"), str(sites / "newer"), "-o", str(made[each]), *signs]) == 0
    for each, at in {"altered": -9, "tables": 200}.items():
        data = bytearray(made["ours"].read_bytes())
        data[at] ^= 1
        made[each] = tmp_path / each
        made[each].write_bytes(data)

    def ran(trusted: str, *words: str) -> dict[str, str]:
        given = [str(made.get(word, word)) for word in words]
        lines = jvm.ran(path, library, "edgeloop.Exercise", "update", str(bundle), trusted, *given)
        return dict(line.partition(": ")[::2] for line in lines)

    found = ran(str(key), "unsigned", "theirs", "altered", "tables")
    assert {each: line.split()[0] for each, line in found.items()} == dict.fromkeys(found, "FORMAT")
    assert "signed" in found["unsigned"]
    assert "signed" in found["theirs"]
    assert contents(bundle) == contents(sites / "signed")
    assert ran(str(key), "ours") == {"ours": "false true"}
    assert contents(bundle) == contents(sites / "newer")
    assert ran(str(key), "ours", "back") == {"ours": "true true", "back": "done"}
    assert contents(bundle) == contents(sites / "signed")
    assert ran("-", "unsigned") == {"unsigned": "false true"}  # nobody asked
    assert contents(bundle) == contents(sites / "newer")
    for each in ("SHA256SUMS", "SHA256SUMS.sig"):
        (tmp_path / "bundle.former" / each).unlink()
    assert ran(str(key), "back")["back"].startswith("FORMAT ")
    assert contents(bundle) == contents(sites / "newer")
