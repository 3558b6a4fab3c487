"""A bundle that is not whole, or not what it says, does not open."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import msgspec
import pytest

from edgeloop.runtime.bundle.folder import Bundle, sha256_of
from edgeloop.runtime.bundle.manifest import File, read_manifest, write_manifest
from edgeloop.runtime.errors import BundleError

WEIGHTS = "onnx/weights.safetensors"


@pytest.fixture
def folder(maker, tmp_path):
    return maker.bundle(tmp_path / "bundle", maker.program())


def list_file(folder, name, file):
    manifest = read_manifest(folder)
    write_manifest(folder, msgspec.structs.replace(manifest, files={**manifest.files, name: file}))


def test_it_opens(folder, maker):
    bundle = Bundle.open(folder)
    assert bundle.program == maker.program()
    assert bundle.path(WEIGHTS) == folder.resolve() / WEIGHTS


def test_a_folder_that_is_not_there_and_one_that_is_no_bundle(tmp_path):
    with pytest.raises(BundleError, match="nowhere does not exist; give a bundle's folder"):
        Bundle.open(tmp_path / "nowhere")
    with pytest.raises(BundleError, match=r"is not a bundle: no readable manifest\.json"):
        Bundle.open(tmp_path)


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
    "name",
    [
        "/etc/hostname",
        "../outside",
        "onnx/../../outside",
        "",
        ".",
        "a\\b",
        "C:x",
        "onnx//x",
        "./x",
        "onnx/",
        "x\0",
    ],
)
def test_names_that_lead_out_are_refused(folder, name):
    (folder.parent / "outside").write_bytes(b"x")
    list_file(folder, name, File(1, "0" * 64))
    with pytest.raises(BundleError, match=r"not a plain path|leads out"):
        Bundle.open(folder)


def test_links_that_lead_out_are_refused(folder):
    outside = folder.parent / "outside"
    outside.write_bytes(b"x")
    (folder / "link").symlink_to(outside)
    list_file(folder, "link", File(1, sha256_of(outside)))
    with pytest.raises(BundleError, match=r"leads out of the bundle to .*outside; put the file itself there"):
        Bundle.open(folder)


def in_the_cache(bundle: Path, root: Path) -> Path:
    """``bundle`` as huggingface_hub keeps it: a snapshot whose files are links into blobs/."""
    repository = root / "models--someone--model"
    (repository / "blobs").mkdir(parents=True)
    snapshot = repository / "snapshots" / "0123abcd"
    for path in bundle.rglob("*"):
        if path.is_file():
            blob = repository / "blobs" / sha256_of(path)
            shutil.copyfile(path, blob)
            link = snapshot / path.relative_to(bundle)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(os.path.relpath(blob, link.parent))
    return snapshot


def test_the_hugging_face_cache(folder, tmp_path):
    snapshot = in_the_cache(folder, tmp_path / "hub")
    bundle = Bundle.open(snapshot)
    assert bundle.path(WEIGHTS) == snapshot / WEIGHTS  # by its name: graphs find it beside them
    assert sha256_of(bundle.path(WEIGHTS)) == bundle.manifest.files[WEIGHTS].sha256


def test_links_out_of_the_cache_are_refused(folder, tmp_path):
    snapshot = in_the_cache(folder, tmp_path / "hub")
    other = in_the_cache(folder, tmp_path / "hub" / "other")
    (snapshot / WEIGHTS).unlink()
    (snapshot / WEIGHTS).symlink_to(other / WEIGHTS)
    with pytest.raises(BundleError, match="leads out of the bundle"):
        Bundle.open(snapshot)


def test_a_folder_that_only_looks_like_the_cache(folder, tmp_path):
    """snapshots/ alone says nothing about who owns what lies beside it."""
    home = tmp_path / "home" / "snapshots" / "mine"
    shutil.copytree(folder, home)
    (tmp_path / "home" / "secret").write_bytes((folder / WEIGHTS).read_bytes())
    (home / WEIGHTS).unlink()
    (home / WEIGHTS).symlink_to(tmp_path / "home" / "secret")
    with pytest.raises(BundleError, match="leads out of the bundle"):
        Bundle.open(home)


@pytest.mark.parametrize("name", [WEIGHTS, "manifest.json"])
def test_a_pipe_is_no_file_and_nobody_waits_for_it(folder, name):
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(BundleError, match="no plain file"):
        Bundle.open(folder)


def test_links_in_a_circle(folder):
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to("weights.safetensors")
    with pytest.raises(BundleError, match="leads nowhere|is missing"):
        Bundle.open(folder)


def test_what_a_file_calls_another(folder):
    bundle = Bundle.open(folder)
    assert bundle.beside("onnx/block.onnx", "weights.safetensors") == bundle.path(WEIGHTS)
    (folder.parent / "outside").write_bytes(b"x")
    for name in ("/etc/hostname", "../../outside", "absent", ""):
        with pytest.raises(BundleError, match=r"wanted a file of the bundle|not listed"):
            bundle.beside("onnx/block.onnx", name)


@pytest.mark.parametrize("name", ["", "..", "/tmp", "onnx/../..", "elsewhere"])
def test_a_package_is_a_folder_of_listed_files(folder, name):
    bundle = Bundle.open(folder)
    assert bundle.package("onnx") == bundle.folder / "onnx"
    with pytest.raises(BundleError, match="no file of .* is listed"):
        bundle.package(name)


def test_a_package_with_more_than_the_manifest_says(folder):
    (folder / "onnx" / "more").write_bytes(b"x")
    with pytest.raises(BundleError, match="onnx/more is not listed"):
        Bundle.open(folder).package("onnx")
    (folder / "onnx" / "more").unlink()
    (folder / "onnx" / "more").symlink_to(folder.parent, target_is_directory=True)
    with pytest.raises(BundleError, match="onnx/more is not listed"):
        Bundle.open(folder).package("onnx")


def test_used_but_not_listed(folder):
    manifest = read_manifest(folder)
    files = {name: file for name, file in manifest.files.items() if name != WEIGHTS}
    write_manifest(folder, msgspec.structs.replace(manifest, files=files))
    with pytest.raises(BundleError, match="not listed"):
        Bundle.open(folder)


def test_a_folder_without_a_manifest(tmp_path):
    with pytest.raises(BundleError, match="not a bundle"):
        Bundle.open(tmp_path)
