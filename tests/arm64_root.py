"""edgeloop on 64-bit Arm with a whole system, without such a computer: .venv/bin/python tests/arm64_root.py.

``make arm64-root`` calls this. debootstrap unpacks a Debian for Arm into build/arm64-root, the kernel is told to run
its programs with qemu (binfmt_misc, until this ends), and chroot goes into it: root alone may do that. It is a device
like a board over ssh (``apps/devices``): pip fetches wheels for it, the lane engine is cross-compiled for it, the
demo's bundles are pushed, run and compared with this computer. At last the C++ host
runs alone in an empty folder. It takes minutes, and networks for debootstrap and pip.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import debian_root
from arm64 import QEMU

from edgeloop.apps.devices.device import Load
from edgeloop.apps.devices.native_host import FILE, HOST, NativeHost
from edgeloop.apps.devices.python_host import PythonHost, bundle_load
from edgeloop.apps.devices.shell import ShellDevice, ShellFolder
from edgeloop.apps.quantities import byte_count
from edgeloop.runtime.bundle.folder import Bundle
from edgeloop.runtime.bundle.manifest import MANIFEST
from edgeloop.runtime.errors import EdgeloopError
from edgeloop.runtime.session import Session

log = logging.getLogger("arm64_root")
TESTS = Path(__file__).resolve().parent
PLACE = TESTS.parent / "build" / "arm64-root"
ROOT, WHEELS, ALONE = PLACE / "root", PLACE / "wheels", PLACE / "alone"
SUITE = "bookworm"
PACKAGES = ("python3", "g++")
"""Of Debian, beside its least: what runs edgeloop, and what engine executorch compiles its bridge with."""
TOOLS = "apt install debootstrap qemu-user-static g++-aarch64-linux-gnu"
ENGINES = ("native", "onnx", "executorch")
QUANTS = ("none", "int4")
TEXT = "\n\n".join(
    (TESTS.parent / "apps/demo/texts/grimm.txt").read_text(encoding="utf-8").split("\n\n")[1:6]
)


BINFMT = Path("/proc/sys/fs/binfmt_misc")
ENTRY = "edgeloop-arm64"
MAGIC = (
    r"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00",
    r"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff",
)
"""How programs for 64-bit Arm begin, and which bits of that count: ELF's header, little-endian, machine 183."""
IN_IT = """
PATH=$PATH:/usr/sbin:/sbin
mount -t proc proc "$0/proc" && mount --bind "$0/cpuinfo" "$0/proc/cpuinfo" && mount --rbind /dev "$0/dev" &&
mount --rbind /sys "$0/sys" && exec chroot "$0" "$@"
"""
"""Without /sys XNNPACK does not start: it reads there how many processors there are."""
CPUINFO = """\
processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: 0xd08
CPU revision\t: 3

Model\t\t: qemu as a Cortex-A72
"""
"""What the kernel says of a Cortex-A72: qemu shows this computer's, and libraries read it to know their processor."""


class EmulatedDevice(ShellDevice):
    """The unpacked system, as chroot and qemu run it."""

    places = ("/var/tmp",)

    def __init__(self, root: Path) -> None:
        super().__init__(f"{SUITE} on aarch64, under qemu")
        self.root = root

    def command(self, script: str) -> list[str]:
        """Return the command that runs ``script`` in it; mounts and surroundings are its own."""
        inside = [
            "/usr/bin/env",
            "-i",
            "PATH=/usr/bin:/bin",
            "HOME=/root",
            "LC_ALL=C.UTF-8",
            "/bin/sh",
            "-c",
            script,
        ]
        return ["unshare", "--mount", "sh", "-c", IN_IT, str(self.root), *inside]


@contextmanager
def registered() -> Iterator[None]:
    """Have the kernel run programs for Arm by qemu, as long as this lasts, unless it does already."""
    if not (BINFMT / "register").exists():
        subprocess.run(["mount", "-t", "binfmt_misc", "binfmt_misc", str(BINFMT)], check=True)
    if (BINFMT / "qemu-aarch64").exists():
        yield
        return
    if not (BINFMT / ENTRY).exists():  # F: opened now, by this path, for every root
        (BINFMT / "register").write_text(f":{ENTRY}:M::{MAGIC[0]}:{MAGIC[1]}:{shutil.which(QEMU)}:F")
    try:
        yield
    finally:
        (BINFMT / ENTRY).write_text("-1")


def missing() -> str:
    """Why there can be no such system here, or nothing."""
    if os.getuid():
        return "this is not root, who alone may register qemu and change the root"
    absent = debian_root.missing(ROOT, QEMU)
    return f"no {', '.join(absent)} ({TOOLS})" if absent else ""


def unpack() -> None:
    """Make the system, if it is not there."""
    debian_root.unpack(ROOT, SUITE, "arm64", PACKAGES)
    (ROOT / "cpuinfo").write_text(CPUINFO, encoding="ascii")


def exported(quant: str) -> Bundle:
    """The demo's checkpoint for every engine."""
    from edgeloop.export.pipeline import export_bundle

    folder = PLACE / f"demo-{quant}"
    if not (folder / MANIFEST).is_file():
        shutil.rmtree(folder, ignore_errors=True)
        export_bundle(TESTS.parent / "apps/demo/checkpoint", folder, targets=ENGINES, quant=quant)
    return Bundle.open(folder)


def here(bundle: Bundle, engine: str, text: Path) -> dict[str, Any]:
    """What a bundle says on this computer."""
    script = TESTS / "arm64_tokens.py"
    words = [sys.executable, str(script), str(bundle.folder), engine, str(text)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def there(host: PythonHost, folder: ShellFolder, quant: str, engine: str) -> dict[str, Any]:
    """What it says in the system for Arm."""
    out = host.run(folder, ["arm64_tokens.py", f"demo-{quant}", engine, "text"])
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found


def compare(engine: str, quant: str, own: dict[str, Any], arm: dict[str, Any]) -> None:
    """Say how far two computers agree; AssertionError where they have to and do not.

    The lane engine: to the last bit of every logit. The others: the same tokens from float weights; their kernels
    for codes are others on each processor.
    """
    assert arm["machine"] == "aarch64", arm["machine"]
    same = [_same(own[key], arm[key]) for key in ("greedy", "likeliest")]
    bits = own["logits"] == arm["logits"]
    log.info(
        "%s, %s: greedy tokens %d of %d, likeliest tokens %d of %d, logits %s",
        engine, quant, *same[0], *same[1], "of the same bits" if bits else "of other bits",
    )  # fmt: skip
    if engine == "native" and not bits:
        raise AssertionError(f"native, {quant}: other bits than on {own['machine']}")
    if (engine == "native" or quant == "none") and own["greedy"] != arm["greedy"]:
        raise AssertionError(f"{engine}, {quant}: other tokens than on {own['machine']}")


def _same(own: Sequence[int], arm: Sequence[int]) -> tuple[int, int]:
    return sum(a == b for a, b in zip(own, arm, strict=True)), len(own)


def run_engine(device: EmulatedDevice, engine: str, bundles: dict[str, Bundle], text: Path) -> None:
    """Install edgeloop for ``engine`` in the system, and run every bundle there and here."""
    shutil.rmtree(WHEELS, ignore_errors=True)
    WHEELS.mkdir(parents=True)
    host = PythonHost.of(device.name, device.facts(), engine, WHEELS, None)
    log.info("%s: %d wheels, %s; unpacked %s", engine, len(host.load.files), byte_count(host.load.bytes),
             byte_count(host.unpacked))  # fmt: skip
    load = Load({"text": text, "arm64_tokens.py": TESTS / "arm64_tokens.py"})
    for quant, bundle in bundles.items():
        load |= bundle_load(bundle, f"demo-{quant}")
    with device.folder(host.need + load.bytes) as folder:
        host.install(folder)
        folder.push(load)
        for quant, bundle in bundles.items():
            compare(engine, quant, here(bundle, engine, text), there(host, folder, quant, engine))


def run_alone(device: EmulatedDevice, bundle: Bundle, text: Path) -> None:
    """The C++ host in an empty system, with the lane engine's file; AssertionError for other text than Python's."""
    shutil.rmtree(ALONE, ignore_errors=True)
    (ALONE / "tmp").mkdir(parents=True)
    host = NativeHost.of(device.name, device.facts(), ALONE)
    shutil.copy(bundle.path(FILE), ALONE / "model.lanes")
    program, prompt = (ALONE / HOST).stat().st_size, text.read_text(encoding="utf-8")[:100]
    log.info(
        "%s: %s, static; model.lanes: %s",
        HOST,
        byte_count(program),
        byte_count((ALONE / "model.lanes").stat().st_size),
    )
    assert host.need == program
    words = ["model.lanes", "--prompt", prompt, "-n", "64", "--json"]
    done = subprocess.run(
        ["chroot", str(ALONE), f"/{HOST}", *words],
        capture_output=True,
        text=True,
        env=debian_root.ENVIRONMENT,
        timeout=600,
        check=False,
    )
    if done.returncode:
        raise AssertionError(f"{HOST} in an empty system: {done.stderr.strip()}")
    with Session.open(bundle.folder, engine="native") as session:
        own = "".join(step.text for step in session.generate(prompt, 64))
    found = json.loads(done.stdout)["text"]
    if found != own:
        raise AssertionError(f"{HOST} in an empty system writes {found!r}, and Python here {own!r}")
    log.info("%s in an empty system: the text of 64 tokens is that of Python here", HOST)


def main(engines: Sequence[str]) -> int:
    """All ``engines``; exit status 1 after the first that does not hold."""
    logging.basicConfig(level=logging.INFO, format="%(relativeCreated)8d ms  %(message)s", stream=sys.stdout)
    if reason := missing():
        log.info("arm64-root is skipped: %s", reason)
        return 0
    start = time.monotonic()
    try:
        PLACE.mkdir(parents=True, exist_ok=True)
        unpack()
        text = PLACE / "text"
        text.write_text(TEXT, encoding="utf-8")
        bundles = {quant: exported(quant) for quant in QUANTS}
        with registered(), EmulatedDevice(ROOT) as device:
            for engine in engines:
                run_engine(device, engine, bundles, text)
            run_alone(device, bundles["int4"], text)
    except (AssertionError, EdgeloopError) as error:
        log.error("%s", error)
        return 1
    log.info("all hold; %.0f s", time.monotonic() - start)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or ENGINES))
