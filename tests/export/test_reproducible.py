"""An export is the same bytes, from process to process, for every target."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import looped_layer

from edgeloop.export.targets import LAYOUTS

EXPORT = """
import sys
from pathlib import Path
from edgeloop.export import pipeline
from edgeloop.export.targets import open_target
from edgeloop.runtime.engines.executorch.layout import Shapes

def small(name, layout="staged", options=None):
    if (name, layout) != ("executorch", "staged"):
        return open_target(name, layout, options)
    from edgeloop.export.targets.executorch.target import ExecutorchTarget
    return ExecutorchTarget(Shapes(1, 8), options)

pipeline.open_target = small
checkpoint, out, targets, split, before = sys.argv[1:]
if before:
    pipeline.export_bundle(checkpoint, before, targets=[targets], quant="int8")
targets = targets.split(",")
layouts = ["staged", "flat"] if "executorch" in targets else ["staged"]
for layout in layouts:
    of = targets if layout == "staged" else ["executorch"]
    pipeline.export_bundle(
        checkpoint, Path(out) / layout, targets=of, layouts=[layout], quant="int4",
        options={"split_weights": split == "split" and layout == "staged"},
    )
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A layer that is run twice, with norms and deltas of each depth."""
    return looped_layer(tmp_path_factory.mktemp("looped") / "checkpoint", max_position_embeddings=64)


def hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


TARGETS = {"onnx": "onnx", "native": "numpy", "executorch": "executorch", "coreml": "coremltools"}
"""And the package that each needs."""


def test_every_target_is_compared() -> None:
    assert {name for layout in LAYOUTS.values() for name in layout} == set(TARGETS)


@pytest.mark.parametrize("target", TARGETS)
def test_two_processes_write_the_same(
    checkpoint: Path, tmp_path: Path, target: str, request: pytest.FixtureRequest
) -> None:
    """With other hash seeds, scratch files and folders to start in, and the second after another export."""
    pytest.importorskip(TARGETS[target])
    if target == "native":
        request.getfixturevalue("lane_engine")
    running = []
    for seed in ("1", "2"):
        out, scratch = tmp_path / f"out{seed}" / ("x" * int(seed)), tmp_path / ("scratch" * int(seed))
        scratch.mkdir()
        out.mkdir(parents=True)
        command = [sys.executable, "-c", EXPORT, str(checkpoint), str(out), target]
        before = str(scratch / "before") if seed == "2" else ""
        command += ["split", ""] if target == "executorch" else ["", before]  # not minutes more
        env = {**os.environ, "PYTHONHASHSEED": seed, "TMPDIR": str(scratch)}
        process = subprocess.Popen(
            command, env=env, cwd=scratch, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        running.append((process, out))
    found = []
    for process, out in running:
        _, said = process.communicate(timeout=600)
        assert process.returncode == 0, said.decode()[-2000:]
        found.append(hashes(out))
    assert found[0] == found[1]
    assert len(found[0]) > 2
