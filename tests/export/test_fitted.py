"""Codes that are fitted to a text: for the inputs that a plain forward gives the matrices, in every artifact."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from editing import read
from layerwise_sums import Sums, layerwise_sums
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_torch
from tiny import VOCAB, looped_layer

from edgeloop.apps.demo.model import DemoConfig, DemoModel
from edgeloop.export import fitted
from edgeloop.export.pipeline import export_bundle
from edgeloop.export.stored import write_weights
from edgeloop.quant.recipe import Recipe
from edgeloop.runtime.bundle.folder import Bundle
from edgeloop.runtime.errors import UsageError
from edgeloop.runtime.model.codec import Grouped
from edgeloop.runtime.model.stored import map_tensors
from edgeloop.runtime.model.weights import tensors
from edgeloop.runtime.text.tokenizer import Tokenizer

TEXT = "Once upon a time there was a king who had a daughter. " * 12
LAYER = "segments.0.layers.0"


@pytest.fixture(scope="module")
def looped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return looped_layer(tmp_path_factory.mktemp("fitted") / "looped", max_position_embeddings=32)


def plain_inputs(folder: Path, ids: torch.Tensor, window: int) -> dict[str, torch.Tensor]:
    """Σ x xᵀ of some matrices, by the demo model's own forward in torch, of all depths and read-outs."""
    config = json.loads((folder / "config.json").read_text())
    names = DemoConfig.__dataclass_fields__
    model = DemoModel(DemoConfig(**{key: value for key, value in config.items() if key in names})).eval()
    model.load_state_dict(load_torch(folder / "model.safetensors"))
    found: dict[str, torch.Tensor] = {}

    def keep(name: str, x: torch.Tensor) -> None:
        rows = x.reshape(-1, x.shape[-1]).double()
        found[name] = found.get(name, torch.zeros(())) + rows.T @ rows

    layer = model.block[0]
    for name in ("q_proj", "o_proj", "down_proj"):
        getattr(layer, name).register_forward_pre_hook(lambda module, args, name=name: keep(name, args[0]))
    model.norm.register_forward_hook(lambda module, args, out: keep("head", out))
    with torch.no_grad():
        for part in ids.split(window):
            model(part[None])
    return found


def test_inputs_are_those_of_a_plain_forward_at_all_depths(looped: Path, tmp_path: Path) -> None:
    reading = read(looped)
    write_weights(reading, Recipe.named("none", 32), tmp_path / "w")
    ids = np.random.default_rng(0).integers(
        0, VOCAB, 97
    )  # three windows and a token, of which nothing is predicted
    found = layerwise_sums(reading.program, map_tensors(tmp_path / "w"), ids[:96], 32)
    wanted = plain_inputs(looped, torch.from_numpy(ids[:96]), 32)
    parts = ("q_proj", "qkv_proj"), ("o_proj", "o_proj"), ("down_proj", "down_proj")
    for name, stored in (("head", "embed"), *((part, f"{LAYER}.{matrix}") for part, matrix in parts)):
        size = float(wanted[name].max())
        torch.testing.assert_close(
            torch.from_numpy(found[stored, 0]), wanted[name], rtol=1e-4, atol=1e-4 * size
        )


def outputs_lost(bundle: Path, floats: Path, sums: Sums) -> dict[str, float]:
    """Σ ‖(W − Q) x‖² of every matrix."""
    opened, wanted = Bundle.open(bundle), map_tensors(floats)
    stored, found = load_file(opened.path(opened.manifest.targets["onnx"].weights)), {}
    for (name, _), hessian in sums.items():
        columns = hessian.shape[0]
        values = Grouped(stored[f"{name}.codes"], stored[f"{name}.scales"], 4, columns).values()
        error = torch.from_numpy(wanted[f"{name}.weight"] - values).double()
        found[name] = float((error @ torch.from_numpy(hessian) * error).sum())
    return found


def test_outputs_are_less_wrong_and_all_targets_have_the_same_codes(looped: Path, tmp_path: Path) -> None:
    """The lane engine's file is compared with the stored weights as it is written."""
    export_bundle(looped, tmp_path / "nearest", quant="int4")
    found = export_bundle(
        looped, tmp_path / "fitted", quant="int4", calibration=TEXT, targets=["onnx", "native"]
    )
    assert not list(found.bundle.glob("*.scratch"))
    reading = read(looped)
    write_weights(reading, Recipe.named("none", 32), tmp_path / "w")
    ids = np.array(
        Tokenizer.open(looped / "tokenizer.json").encode(TEXT)
    )  # of other text nothing is promised
    sums = layerwise_sums(reading.program, map_tensors(tmp_path / "w"), ids, 32)
    nearest, fitted = (outputs_lost(tmp_path / name, tmp_path / "w", sums) for name in ("nearest", "fitted"))
    assert set(fitted) == {"embed", *(f"{LAYER}.{m}_proj" for m in ("qkv", "o", "gate_up", "down"))}
    assert all(fitted[name] < nearest[name] for name in fitted), (fitted, nearest)


def codes_of(folder: Path, scratch: Path, recipe: Recipe | None = None) -> dict[str, Grouped]:
    scratch.mkdir()
    reading = read(folder)
    ids = np.random.default_rng(0).integers(0, reading.program.vocab_size, 96)
    recipe = recipe or Recipe.named("int4", 32)
    fitted.write_floats(reading, scratch / "floats")
    found = fitted.fit(reading, recipe, ids, scratch / "floats", lambda step, part: None)
    assert [path.name for path in scratch.iterdir()] == ["floats"]  # and no sums
    assert found.keys() == recipe.formats(reading.program.weights).keys()
    return found


def test_sums_in_files_change_no_code(looped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = codes_of(looped, tmp_path / "in memory")
    monkeypatch.setattr(fitted, "SUM_BYTES", 0)
    found = codes_of(looped, tmp_path / "in files")
    for name, codes in wanted.items():
        np.testing.assert_array_equal(found[name].codes, codes.codes)
        np.testing.assert_array_equal(found[name].scales, codes.scales)


@pytest.mark.parametrize(
    "name", ["mor_expert_middle_cycle_eager", "hrm_text_h1l4_noprefix", "parcae_diag", "retrofit_tinyllama"]
)
def test_every_matrix_of_other_families_gets_codes(name: str, tmp_path: Path) -> None:
    folder = Path(__file__).parents[1] / "fixtures" / "parity" / name
    reading = read(folder)
    for matrix, codes in codes_of(folder, tmp_path / "scratch").items():
        parts = [
            reading.tensors[part]()
            for full, tensor in tensors(reading.program.weights)
            if full == f"{matrix}.weight"
            for part in tensor.parts
        ]
        wanted = torch.cat(parts, dim=-2).reshape(codes.values().shape)
        # Of random matrices and few tokens a correction may move weights far; another matrix would be 1.4 away.
        assert float((torch.from_numpy(codes.values()) - wanted).norm() / wanted.norm()) < 0.5, matrix


def test_what_cannot_be_calibrated_with(looped: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"the text to calibrate with has 0 tokens"):
        export_bundle(looped, tmp_path / "b", calibration="")
    (looped / "tokenizer.json").rename(tmp_path / "away")
    try:
        with pytest.raises(UsageError, match=r"the checkpoint has no tokenizer\.json; leave it away"):
            export_bundle(looped, tmp_path / "b", calibration=TEXT)
    finally:
        (tmp_path / "away").rename(looped / "tokenizer.json")
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (
            {"quant": "none"},
            "target onnx has none: its matrices are stored as float32; leave --calibrate away",
        ),
    ],
)
def test_what_has_no_codes_to_fit(looped: Path, tmp_path: Path, given: dict[str, Any], line: str) -> None:
    with pytest.raises(UsageError, match=line) as caught:
        export_bundle(looped, tmp_path / "b", calibration=TEXT, **given)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "b").exists()
