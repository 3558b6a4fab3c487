"""BundleStore of apps/android: bundles over HTTP go on where they were broken off, and are believed by their hashes."""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import jvm
import pytest
from http_server import serving

FILE = "native/model.lanes"
OLD, NEW = (random.Random(seed).randbytes(300_001) for seed in (1, 2))


def manifest(data: bytes, **changes: object) -> bytes:
    entry = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), **changes}
    files = {FILE: entry, "onnx/weights.safetensors": {"bytes": 10**12, "sha256": "0" * 64}}
    return json.dumps(
        {"format": 4, "text": '\u00e9\n"\\\ud83d\ude42', "numbers": [1.5e3, -2, 0], "files": files}
    ).encode()


@dataclass
class Site:
    """What one base address has, and how its server behaves."""

    manifest: bytes
    data: bytes = NEW
    breaks: int = 0  # the first answer ends after so many bytes
    ranges: bool = True
    asked: list[str] = field(default_factory=list)


SITES = {
    "old": Site(manifest(OLD), OLD),
    "altered": Site(manifest(NEW), NEW[:-1] + bytes([NEW[-1] ^ 1])),
    "longer": Site(manifest(NEW, note=2), NEW + b"more"),
    "broken": Site(manifest(NEW), breaks=100_000),
    "goes-on": Site(manifest(NEW)),
    "no-ranges-breaks": Site(manifest(OLD, note=1), OLD, breaks=50_000, ranges=False),
    "no-ranges-again": Site(manifest(OLD, note=1), OLD, ranges=False),
    "no-json": Site(b'{"files": {'),
    "no-files": Site(b'{"format": 4}'),
    "outside": Site(json.dumps({"files": {"../" + FILE: {"bytes": 1, "sha256": "0" * 64}}}).encode()),
    "no-size": Site(manifest(NEW, bytes=-1)),
    "no-hash": Site(manifest(NEW, sha256="0")),
    "too-large": Site(manifest(NEW, bytes=10**17)),
    "deep": Site(b"[" * 100_000),
    "other-file": Site(json.dumps({"files": {"onnx/block.onnx": {"bytes": 1, "sha256": "0" * 64}}}).encode()),
}  # fmt: skip


class Server(BaseHTTPRequestHandler):
    """Answers of ``SITES``; what it is asked for is noted."""

    def do_GET(self) -> None:
        _, name, path = self.path.split("/", 2)
        site = SITES.get(name)
        wanted = self.headers.get("Range", "")
        if site is None or path not in ("manifest.json", FILE):
            self.send_error(404)
            return
        data = site.manifest
        if path == FILE:
            site.asked.append(wanted)
            data = site.data
        start = int(wanted.removeprefix("bytes=").rstrip("-") or 0) if site.ranges else 0
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if path == FILE and site.breaks:
            data, site.breaks = data[: start + site.breaks], 0
            self.close_connection = True
        self.wfile.write(data[start:])

    def log_message(self, *_: object) -> None:
        """Nothing: the tests look at what was asked for."""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with serving(Server) as found:
        yield found


@pytest.fixture(scope="module")
def installed(
    address: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, tuple[str, str]]]:
    """The store's folder, and by site what came of installing it, and what was current then; one after the other."""
    if reason := jvm.missing():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("install")
    root = folder / "bundles"
    bases = [f"{address}/{name}/" for name in ("nowhere", *SITES)]
    lines = jvm.ran(jvm.classes(folder), folder, "edgeloop.Exercise", "install", str(root), *bases)
    found = {}
    for said, current in zip(lines[::2], lines[1::2], strict=True):
        name, _, what = said.partition(": ")
        found[name] = (what.replace(address, "SITE"), current.removeprefix("current: "))
    return root, found


def name(site: str) -> str:
    return hashlib.sha256(SITES[site].manifest).hexdigest()


def test_a_bundle_is_installed_when_all_of_it_is_there(
    installed: tuple[Path, dict[str, tuple[str, str]]],
) -> None:
    """And until then the one before it stays; each line says what was found and what was wanted."""
    _, found = installed
    size, mine = len(NEW), hashlib.sha256(NEW).hexdigest()
    theirs = hashlib.sha256(SITES["altered"].data).hexdigest()
    old, new, third = name("old"), name("goes-on"), name("no-ranges-again")
    at = f"SITE/{{}}/{FILE}"
    wanted = {
        "nowhere": ("IOException SITE/nowhere/manifest.json answered 404, wanted 200", "none"),
        "old": (f"{size} of {size}", old),
        "altered": (
            f"IOException {at} has SHA-256 {theirs}, wanted {mine}: its server has another file",
            old,
        ),
        "longer": (f"IOException {at} has more than the {size} bytes that the manifest says", old),
        "broken": (f"IOException {at} ended after 100000 of {size} bytes: try again", old),
        "goes-on": (f"{size} of {size}", new),
        "no-ranges-breaks": (f"IOException {at} ended after 50000 of {size} bytes: try again", new),
        "no-ranges-again": (f"{size} of {size}", third),
        "no-json": (
            "IOException manifest.json is no JSON: found the end at character 11, wanted '\"'",
            third,
        ),
        "no-files": ("IOException manifest.json has no files, wanted a bundle's", third),
        "outside": (f'IOException the file "../{FILE}" would leave the bundle\'s folder', third),
        "no-size": (
            f'IOException manifest.json says nothing usable of "{FILE}", wanted bytes and sha256',
            third,
        ),
        "no-hash": (
            f'IOException manifest.json says nothing usable of "{FILE}", wanted bytes and sha256',
            third,
        ),
        "too-large": ("IOException the bundle needs 100000000000000000 bytes", third),
        "deep": (
            "IOException manifest.json is no JSON: found '[' at character 64, wanted at most 64 levels",
            third,
        ),
        "other-file": ("IOException manifest.json has none of the files that are wanted", third),
    }
    found["too-large"] = (found["too-large"][0].partition(", and ")[0], found["too-large"][1])
    assert found == {site: (said.format(site), current) for site, (said, current) in wanted.items()}


def test_what_was_there_is_not_asked_for_again(installed: tuple[Path, dict[str, tuple[str, str]]]) -> None:
    root, _ = installed
    assert SITES["broken"].asked == [""]
    assert SITES["goes-on"].asked == ["bytes=100000-"]
    assert SITES["no-ranges-again"].asked == ["bytes=50000-"]
    current = root / name("no-ranges-again")
    assert (current / FILE).read_bytes() == OLD
    assert (current / "manifest.json").read_bytes() == SITES["no-ranges-again"].manifest
    assert sorted(os.listdir(root)) == sorted([current.name, "current"])  # others were cleaned away
