"""New deltas on the same base: what is shipped is the deltas."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from update_bundles import contents

from edgeloop.export import export_bundle
from edgeloop.runtime import Session
from edgeloop.runtime.bundle.folder import Bundle
from edgeloop.runtime.engines.native.file import LanesFile
from edgeloop.runtime.update.apply import apply_update, roll_back
from edgeloop.runtime.update.cuts import cuts
from edgeloop.runtime.update.diff import make_update


def with_other_deltas(checkpoint: Path, folder: Path) -> Path:
    """``checkpoint`` with other numbers in every LoRA."""
    shutil.copytree(checkpoint, folder)
    state = torch.load(folder / "pytorch_model.bin", weights_only=True)
    lot = torch.Generator().manual_seed(1)
    for name, tensor in state.items():
        if "lora_" in name:
            tensor.copy_(torch.randn(tensor.shape, generator=lot) * 0.1)
    torch.save(state, folder / "pytorch_model.bin")
    return folder


@pytest.mark.parametrize("engine", ["native"])
def test_new_deltas_cost_their_own_bytes(
    tiny_once: Callable[[str], Path], tmp_path: Path, engine: str
) -> None:
    checkpoint = tiny_once("mor-lora")
    for name, source in (("old", checkpoint), ("new", with_other_deltas(checkpoint, tmp_path / "other"))):
        export_bundle(source, tmp_path / name, targets=("native", "onnx"))
    made = make_update(tmp_path / "old", tmp_path / "new", tmp_path / "update")
    bundle = Bundle.open(tmp_path / "old")
    lanes = LanesFile(bundle.path("native/model.lanes"), bundle.program).layout
    deltas = sum(section.length for section in lanes.sections if ".lora_" in section.tensor)
    assert 0 < deltas < lanes.file_bytes
    # Beside the deltas those pieces of the text section that say which model it is.
    old, new = ((tmp_path / name / "native/model.lanes").read_bytes() for name in ("old", "new"))
    pieces = [(at, at + size) for at, size in cuts(bundle, "native/model.lanes") if at + size > lanes.text]
    named = sum(end - at for at, end in pieces if old[at:end] != new[at:end])
    assert 0 < named <= len(new) - lanes.text + 4096
    assert made.changed["native/model.lanes"] == (lanes.file_bytes, deltas + named)
    assert set(made.changed) == {"manifest.json", "native/model.lanes", "onnx/weights.safetensors"}
    assert made.bytes < deltas + made.changed["onnx/weights.safetensors"][1] + 20_000

    shutil.copytree(tmp_path / "old", tmp_path / "bundle")
    ids = [3, 1, 4, 1, 5]

    def logits() -> bytes:
        with Session.open(tmp_path / "bundle", engine=engine) as session:
            return bytes(session.logits(ids).tobytes())

    before = logits()
    apply_update(tmp_path / "bundle", tmp_path / "update")
    assert contents(tmp_path / "bundle") == contents(tmp_path / "new")
    assert logits() != before
    roll_back(tmp_path / "bundle")
    assert logits() == before
