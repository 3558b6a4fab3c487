"""What updates of mor-360m-r3 cost: .venv/bin/python tests/update_table.py FOLDER prints the table of docs/updates.md.

Minutes, and 3 GB in FOLDER. A base with LoRA of rank 64, then the same base with other LoRA (new deltas), and another
base (a whole fine-tune: everything changes). Bytes, and seconds and memory of ``edgeloop apply``, each in a process.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from edgeloop.runtime.bundle.folder import Bundle
from edgeloop.runtime.engines.native.file import LanesFile

SHAPE, RANK = "mor-360m-r3", 64
APPLY = """
import json, resource, sys, time
from edgeloop.runtime.update.apply import apply_update
start = time.monotonic()
apply_update(sys.argv[1], sys.argv[2])
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
print(json.dumps([time.monotonic() - start, peak]))
"""


def edgeloop(*words: object) -> None:
    command = [sys.executable, "-m", "edgeloop.apps.cli", *map(str, words), "--json"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def other_deltas(checkpoint: Path, folder: Path) -> Path:
    """``checkpoint`` with other numbers of the same size in every LoRA."""
    shutil.copytree(checkpoint, folder)
    (file,) = folder.glob("*.bin")
    state = torch.load(file, weights_only=True)
    lot = torch.Generator().manual_seed(1)
    for name, tensor in state.items():
        if "lora_" in name:
            tensor.copy_(torch.randn(tensor.shape, generator=lot) * tensor.float().std())
    torch.save(state, file)
    return folder


def main(folder: Path) -> None:
    folder.mkdir(parents=True)
    for seed, name in ((0, "checkpoint"), (1, "another")):
        edgeloop("synth", "--shape", SHAPE, "--lora-rank", RANK, "--seed", seed, "-o", folder / name)
    checkpoints = {
        "old": folder / "checkpoint",
        "new deltas": other_deltas(folder / "checkpoint", folder / "deltas"),
        "all new": folder / "another",
    }
    for name, checkpoint in checkpoints.items():
        edgeloop("export", checkpoint, "-o", folder / name, "--target", "native", "--group-size", 128)
    bundle = Bundle.open(folder / "old")
    lanes = LanesFile(bundle.path("native/model.lanes"), bundle.program).layout
    deltas = sum(section.length for section in lanes.sections if ".lora_" in section.tensor)
    sys.stdout.write(f"deltas of {lanes.file_bytes} bytes of model.lanes: {deltas}\n")
    sys.stdout.write("| | bundle | update | seconds of apply | memory of apply |\n|---|---|---|---|---|\n")
    for name in ("new deltas", "all new"):
        edgeloop("diff", folder / "old", folder / name, "-o", folder / "update")
        shutil.copytree(folder / "old", folder / "bundle")
        command = [sys.executable, "-c", APPLY, folder / "bundle", folder / "update"]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        seconds, peak = json.loads(done.stdout)
        size = sum(file.stat().st_size for file in (folder / name).rglob("*") if file.is_file())
        sys.stdout.write(
            f"| {name} | {size / 1e6:.1f} MB | {(folder / 'update').stat().st_size / 1e6:.1f} MB | {seconds:.2f} | "
            f"{peak / 1e6:.0f} MB |\n"
        )
        for place in ("bundle", "bundle.former"):
            shutil.rmtree(folder / place)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
