"""For killing.py: calibration of a bundle with a Core ML package, whose metadata and manifest must agree."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from edgeloop.export.bundle.leftovers import sweep
from edgeloop.export.bundle.writer import check_free
from edgeloop.export.calibration.write import write_exits, write_probes
from edgeloop.export.families.llama_program import program_of
from edgeloop.export.families.llama_spec import Segment, Spec
from edgeloop.runtime.bundle.folder import Bundle
from edgeloop.runtime.bundle.manifest import (
    FORMAT,
    Exit,
    File,
    Manifest,
    Parity,
    Quantization,
    Target,
    Text,
    write_manifest,
)
from edgeloop.runtime.engines.coreml.package import Package
from edgeloop.runtime.protobuf import field

PACKAGE = "coreml/model.mlpackage"
MODEL, WEIGHTS = f"{PACKAGE}/model.mlmodel", f"{PACKAGE}/weight.bin"
RULE = Exit(
    thresholds=(0.5,), skipped_kv="exact", goal="+1%", tokens=10, perplexity=2.0, full_perplexity=2.0, agreement=0.9,
    mean_depth=1.5,
)  # fmt: skip
PROGRAM = program_of(Spec(
    family="test", segments=(Segment(layers=1, repeats=2),), vocab_size=8, hidden_size=4, intermediate_size=8, heads=2,
    kv_heads=2, head_dim=2, norm_eps=1e-5, rope_theta=1e4, context_length=8, tied_embedding=True,
))  # fmt: skip


def prepare(folder: Path) -> None:
    out = folder / "out"
    (out / PACKAGE).mkdir(parents=True)
    (out / MODEL).write_bytes(field(2, field(100, b"")))
    (out / WEIGHTS).write_bytes(bytes(100))
    files = {
        name: File((out / name).stat().st_size, hashlib.sha256((out / name).read_bytes()).hexdigest())
        for name in (MODEL, WEIGHTS)
    }
    package = Package(PACKAGE, {"embed": "cpuOnly"}, {}, 16, 8)
    target = Target({"model": MODEL}, WEIGHTS, Parity((0.0,), 0.0, 0.0), package)
    quantization = Quantization("none", 32, 0)
    write_manifest(
        out,
        Manifest(
            format=FORMAT, edgeloop="1", program=PROGRAM, quantization=quantization,
            targets={"coreml": target}, text=Text(), parameters=1, unrolled_parameters=1, files=files,
        ),
    )  # fmt: skip


def action(folder: Path) -> None:
    write_probes(folder / "out", np.ones((1, 4), np.float32), np.zeros(1, np.float32))
    write_exits(folder / "out", {"probe": RULE})


def state(folder: Path) -> str:
    """Which of its three forms the bundle has; it opens in each, and another export may replace it."""
    bundle = Bundle.open(folder / "out")
    sweep(folder)
    assert [path.name for path in folder.iterdir()] == ["out"]
    check_free(folder / "out", force=True)
    model = bundle.path(MODEL).read_bytes()
    assert (b"probe.weight" in model) == (bundle.manifest.heads is not None)
    assert (b"thresholds" in model) == ("probe" in bundle.manifest.exits)
    assert len(bundle.path(WEIGHTS).read_bytes()) == 100
    return "calibrated" if bundle.manifest.exits else "probes" if bundle.manifest.heads else "old"
