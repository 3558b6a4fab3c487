"""Weights are read one at a time, and what was read does not stay."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from edgeloop.export.checkpoint.safetensors_file import SafetensorsFile
from edgeloop.runtime.errors import CheckpointError

STATUS = Path("/proc/self/status")


def mapped_bytes() -> int:
    """Bytes of files that are in this process's memory."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith("RssFile:"))
    return int(line.split()[1]) * 1024


@pytest.mark.skipif(not STATUS.is_file(), reason="only Linux says how much of a mapped file is in memory")
def test_tensors_that_were_read_do_not_stay_in_memory(tmp_path: Path) -> None:
    wanted = {f"layer{i}": torch.full((1 << 18,), float(i)) for i in range(64)}
    save_file(wanted, tmp_path / "model.safetensors")
    file = SafetensorsFile(tmp_path / "model.safetensors")
    before, most = mapped_bytes(), 0
    for name in file.names:
        assert torch.equal(file.read(name), wanted[name])
        most = max(most, mapped_bytes() - before)
    assert most < 16 << 20  # of 64 MB


def test_a_file_that_is_written_anew_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(2)}, path)
    file = SafetensorsFile(path)
    assert file.read("a").tolist() == [0, 0]
    save_file({"a": torch.ones(3)}, path)
    with pytest.raises(CheckpointError, match="was changed while it was read; start again when it is whole"):
        file.read("a")
