"""IQuestLoopCoder and LoopCoder-V2: what others computed, on engines that read two slots of a lane; and refusals."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from editing import edit, edit_weights, read
from family_runs import authors, decoded, full, greedy, stopped
from safetensors.torch import load_file

from edgeloop.export.checkpoint import Checkpoint
from edgeloop.export.families import find_family, read_checkpoint, unused
from edgeloop.export.pipeline import export_bundle
from edgeloop.runtime import Session
from edgeloop.runtime.engines.reference.engine import ReferenceBackend
from edgeloop.runtime.errors import CheckpointError, ExportError
from edgeloop.runtime.model.checks import problems
from edgeloop.runtime.model.facts import LayerRun, runs
from edgeloop.runtime.serve.serving import BatchServer

BOUND = 2e-5  # of logits up to 5: measured 3e-6; a window of one key less is 0.6 off
FIXTURES = {"iquestloopcoder_w5": 3, "iquestloopcoder_w64": 2, "iquestpltcoder_hgate": 2}
"""Checkpoints, and the layers of each."""
PLT = "iquestpltcoder_hgate"


@pytest.fixture(scope="module")
def bundle(
    checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory, lane_engine: Path
) -> Callable[[str], Path]:
    """``bundle("iquestloopcoder_w5")`` is a bundle of target native, in float32."""
    root = tmp_path_factory.mktemp("loopcoder")

    def get(name: str) -> Path:
        if not (root / name).exists():
            export_bundle(checkpoint(name), root / name, targets=["native"], quant="none")
        return root / name

    return get


@pytest.mark.parametrize("name", FIXTURES)
def test_the_lane_engine(bundle: Callable[[str], Path], checkpoint: Callable[[str], Path], name: str) -> None:
    wanted = authors(checkpoint(name))
    ids = wanted["input_ids"]
    with Session.open(bundle(name), engine="native") as session:
        assert runs(session.program) == [LayerRun(FIXTURES[name], 2)]
        assert np.abs(session.logits(ids) - wanted["logits_use_cache_False"]).max() <= BOUND
        for prefill in (1, 9):
            found = decoded(session.backend, ids, prefill)
            assert np.abs(found - wanted[f"logits_incremental_prefill{prefill}"]).max() <= BOUND
        assert greedy(session, ids) == wanted["greedy_8"].tolist()
    found = stopped(bundle(name), "native", 1, ids)
    assert np.abs(found - wanted["logits_after_loop_1"]).max() <= BOUND


@pytest.mark.parametrize("name", FIXTURES)
def test_the_reference_engine(
    oracle: Callable[..., ReferenceBackend], checkpoint: Callable[[str], Path], name: str
) -> None:
    wanted, backend = authors(checkpoint(name)), oracle(name)
    ids = wanted["input_ids"]
    assert np.abs(full(backend, ids) - wanted["logits_use_cache_False"]).max() <= BOUND
    assert np.abs(decoded(backend, ids) - wanted["logits_incremental_prefill9"]).max() <= BOUND


@pytest.mark.parametrize("name", FIXTURES)
def test_many_users(bundle: Callable[[str], Path], checkpoint: Callable[[str], Path], name: str) -> None:
    """The rows that a lane keeps of the token before are its own."""
    wanted = authors(checkpoint(name))
    ids = wanted["input_ids"].tolist()
    with BatchServer.open(bundle(name), engine="native") as served:
        handles = [served.submit(part, max_tokens=8) for part in (ids, ids[:7], ids)]
        answers = [list(handle.result(60).tokens) for handle in handles]
    assert answers[0] == answers[2] == wanted["greedy_8"].tolist()
    assert answers[1] != answers[0]


def test_what_the_gates_read(checkpoint: Callable[[str], Path]) -> None:
    """A gate of queries reads the dims of its own head; one of hidden states is a matrix as it is stored."""
    stored = load_file(checkpoint("iquestloopcoder_w5") / "model.safetensors")[
        "model.gate_projections.1.weight"
    ]
    gate = read(checkpoint("iquestloopcoder_w5")).tensors["layers.1.gate.weight"]()
    assert gate.shape == (4, 64)
    for head in range(4):
        assert torch.equal(gate[head, head * 16 : (head + 1) * 16], stored[head])
    assert (gate != 0).sum() == (stored != 0).sum()
    plt = read(checkpoint(PLT))
    assert plt.tensors["layers.1.gate.weight"]().shape == (4, 48)
    scales = [plt.tensors[f"{name}_scale.weight"]()[:, 0].tolist() for name in ("embed", "state")]
    np.testing.assert_allclose(scales, [[1, 0.707], [0, 0.6]], rtol=1e-6)


def test_a_gate_under_its_other_name(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoint(PLT), tmp_path / "model"))

    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if "plt_gate" in name]:
            tensors[name.replace("plt_gate", "loop_gate_proj")] = tensors.pop(name)

    edit_weights(folder, change)
    assert torch.equal(
        read(folder).tensors["layers.0.gate.weight"](),
        read(checkpoint(PLT)).tensors["layers.0.gate.weight"](),
    )


REFUSALS: list[tuple[str, dict[str, Any], str]] = [
    ("iquestloopcoder_w5", {"loop_num": None}, "has no loop_num; wanted a positive integer"),
    ("iquestloopcoder_w5", {"loop_window_size": None}, "has no loop_window_size"),
    ("iquestloopcoder_w5", {"loop_num": 800}, "3 × 800 loops"),
    (
        "iquestloopcoder_w5",
        {"loop_gate_kind": "mlp"},
        "loop_gate_kind is 'mlp', and this family does not know",
    ),
    ("iquestloopcoder_w5", {"attention_bias": True}, "attention_bias is True"),
    ("iquestloopcoder_w5", {"num_hidden_layers": 2}, "num_hidden_layers 2 .* the weights have 3 layers"),
    (PLT, {"plt_num_loops": None}, "has no plt_num_loops"),
    (PLT, {"plt_window_size": [4, 1]}, r"plt_window_size is \[4, 1\]; wanted two numbers, the last one 0"),
    (PLT, {"plt_window_size": 4}, "plt_window_size is 4"),
    (PLT, {"plt_hidden_scale": -1}, "plt_hidden_scale is -1"),
    (
        PLT,
        {"plt_gate_use_hidden_states": False},
        "plt_gate.* has shape|is part of a layer and not understood",
    ),
    (PLT, {"loop_num": 2}, "loop_num is 2, and this family does not know the key"),
]


@pytest.mark.parametrize(("name", "change", "message"), REFUSALS)
def test_refusals(
    checkpoint: Callable[[str], Path], tmp_path: Path, name: str, change: dict[str, Any], message: str
) -> None:
    folder = Path(shutil.copytree(checkpoint(name), tmp_path / "model"))
    edit(folder / "config.json", **change)
    with pytest.raises(CheckpointError, match=message) as caught:
        read(folder)
    assert "\n" not in str(caught.value)


def test_a_target_that_reads_one_slot(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="target onnx does not take attend_twice: it reads two slots"):
        export_bundle(checkpoint("iquestloopcoder_w5"), tmp_path / "bundle", targets=["onnx"], quant="none")


@pytest.mark.parametrize("name", FIXTURES)
def test_nothing_is_left_over(checkpoint: Callable[[str], Path], name: str) -> None:
    opened = Checkpoint.open(checkpoint(name))
    assert find_family(opened).name == "loopcoder"
    reading = read_checkpoint(opened)
    assert not list(problems(reading.program))
    assert unused(opened, reading) == []
