"""A bundle that is not whole, or not what it says, does not open."""

from __future__ import annotations

import msgspec
import pytest

from edgeloop.runtime.bundle import Bundle, sha256_of
from edgeloop.runtime.errors import BundleError
from edgeloop.runtime.manifest import File, read_manifest, write_manifest

WEIGHTS = "onnx/weights.safetensors"


@pytest.fixture
def folder(maker, tmp_path):
    return maker.bundle(tmp_path / "bundle", maker.spec())


def list_file(folder, name, file):
    manifest = read_manifest(folder)
    write_manifest(folder, msgspec.structs.replace(manifest, files={**manifest.files, name: file}))


def test_it_opens(folder, maker):
    bundle = Bundle.open(folder)
    assert bundle.spec == maker.spec()
    assert bundle.path(WEIGHTS) == folder.resolve() / WEIGHTS


def test_missing_truncated_and_changed_files_are_named(folder):
    path = folder / WEIGHTS
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(BundleError, match=f"{WEIGHTS} has SHA-256 .* the manifest says"):
        Bundle.open(folder)
    Bundle.open(folder, verify=False)
    path.write_bytes(data[:-1])
    with pytest.raises(
        BundleError, match=f"{WEIGHTS} has {len(data) - 1} bytes, the manifest says {len(data)}"
    ):
        Bundle.open(folder, verify=False)
    path.unlink()
    with pytest.raises(BundleError, match=f"{WEIGHTS} is missing"):
        Bundle.open(folder)


@pytest.mark.parametrize(
    "name", ["/etc/hostname", "../outside", "onnx/../../outside", "", ".", "a\\b", "C:x"]
)
def test_names_that_lead_out_are_refused(folder, name):
    (folder.parent / "outside").write_bytes(b"x")
    list_file(folder, name, File(1, "0"))
    with pytest.raises(BundleError, match=r"not a plain path|leads out"):
        Bundle.open(folder)


def test_links_that_lead_out_are_refused(folder):
    outside = folder.parent / "outside"
    outside.write_bytes(b"x")
    (folder / "link").symlink_to(outside)
    list_file(folder, "link", File(1, sha256_of(outside)))
    with pytest.raises(BundleError, match="leads out of the bundle"):
        Bundle.open(folder)


def test_used_but_not_listed(folder):
    manifest = read_manifest(folder)
    files = {name: file for name, file in manifest.files.items() if name != WEIGHTS}
    write_manifest(folder, msgspec.structs.replace(manifest, files=files))
    with pytest.raises(BundleError, match="not listed"):
        Bundle.open(folder)


def test_a_folder_without_a_manifest(tmp_path):
    with pytest.raises(BundleError, match="not a bundle"):
        Bundle.open(tmp_path)
