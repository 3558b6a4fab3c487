"""edgeloop-run for 64-bit Arm, alone: cross-compiled, run by qemu, and held to this computer's to the last bit.

``make arm64`` runs every kernel's tests and every family's model so, and ``make arm64-root`` edgeloop in Python.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from arm64 import CPUS, QEMU, first_of, missing

from edgeloop.apps.devices.cross import zig
from edgeloop.export import export_bundle
from edgeloop.runtime.engines.native.programs import host

DEMO = Path(__file__).parents[4] / "apps" / "demo" / "checkpoint"
pytestmark = pytest.mark.skipif(missing() != "", reason=missing())
ANSWERS = {
    "greedy": ("-p", "Once upon a time there was a king", "-n", "24"),
    "sampled": ("-p", "The wolf said", "-n", "24", "--temperature", "0.8", "--top-p", "0.9", "--seed", "7"),
    "half": ("-p", "In the forest", "-n", "16", "--kv-bits", "8", "--exit", "depth:2"),
}
"""By name: what is asked for. What is kept of it has every number of K and V."""


@pytest.fixture(scope="module")
def lanes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("b") / "demo"
    return export_bundle(DEMO, folder, targets=("native",), quant="int4").bundle / "native" / "model.lanes"


@pytest.fixture(scope="module", params=["gcc", "zig"])
def arm(request: pytest.FixtureRequest) -> Path:
    """The program with glibc and with musl, its objects where ``make arm64`` and ``make native-cross`` keep them."""
    if request.param == "gcc":
        from arm64 import OBJECTS, arm64

        OBJECTS.mkdir(parents=True, exist_ok=True)
        return host(OBJECTS / "edgeloop-run", arm64(), objects=OBJECTS)
    from native_cross import whole_host

    if not (compiler := zig()):
        pytest.skip("no zig (pip install ziglang)")
    return whole_host("aarch64", (*compiler, "c++"))


def said(command: list[str], lanes: Path, name: str, folder: Path) -> tuple[list[int], str, bytes]:
    """Tokens, text and the kept session of one answer, with nothing in the environment."""
    kept = folder / name
    words = [str(lanes), *ANSWERS[name], "--threads", "2", "--save", str(kept), "--json"]
    done = subprocess.run([*command, *words], capture_output=True, text=True, timeout=600, env={}, check=True)
    found = json.loads(done.stdout)
    return [step["token"] for step in found["steps"]], found["text"], kept.read_bytes()


@pytest.mark.parametrize("cpu", CPUS)
def test_it_writes_what_it_writes_here(
    cpu: str, static_host: Path, arm: Path, lanes: Path, tmp_path: Path
) -> None:
    """Tokens, text, and every bit of K and V."""
    (tmp_path / "arm").mkdir()
    for name in ANSWERS:
        own = said([str(static_host)], lanes, name, tmp_path)
        assert len(own[0]) > 8
        assert said([qemu(), "-cpu", cpu, str(arm)], lanes, name, tmp_path / "arm") == own


@pytest.mark.parametrize("cpu", CPUS)
def test_it_takes_the_best_kernels_of_the_processor(cpu: str, arm: Path, lanes: Path) -> None:
    words = [str(lanes), "--bench", "-p", "4", "-n", "2", "--runs", "1", "--json"]
    done = subprocess.run(
        [qemu(), "-cpu", cpu, str(arm), *words], capture_output=True, text=True, env={}, check=True
    )
    assert json.loads(done.stdout)["kernels"] == first_of(cpu)[-1]


def test_alone_in_an_empty_system(arm: Path, static_host: Path, lanes: Path, tmp_path: Path) -> None:
    """No file but the program, the model and qemu is there."""
    if os.getuid():
        pytest.skip("only root may change the root")
    root = tmp_path / "root"
    root.mkdir()
    for name, path in {"edgeloop-run": arm, "model.lanes": lanes, "qemu": Path(qemu())}.items():
        (root / name).write_bytes(path.read_bytes())
        (root / name).chmod(0o755)
    own = said([str(static_host)], lanes, "greedy", tmp_path)
    words = ["/qemu", "/edgeloop-run", "model.lanes", *ANSWERS["greedy"], "--json"]
    done = subprocess.run(
        words,
        capture_output=True,
        text=True,
        env={},
        check=False,
        preexec_fn=lambda: enter(root),
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert ([step["token"] for step in found["steps"]], found["text"]) == own[:2]


def enter(root: Path) -> None:
    """Have nothing but ``root`` from now on."""
    os.chroot(root)
    os.chdir("/")


def qemu() -> str:
    """The whole path of the command, which has no environment."""
    return str(shutil.which(QEMU))
