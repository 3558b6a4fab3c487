"""``edgeloop compare --target executorch``: the exporter is given the same model, and the table tells the truth."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from edgeloop.apps import bench_pte, compare_pte
from edgeloop.apps.console import Console
from edgeloop.export.checkpoint import Checkpoint
from edgeloop.export.families import find_family
from edgeloop.export.family import Reading
from edgeloop.export.pipeline import export_bundle
from edgeloop.runtime import Session
from edgeloop.runtime.errors import EngineError, ExportError

pytest.importorskip("executorch")
from edgeloop.export.targets.executorch import llama


def read(folder: Path) -> Reading:
    source = Checkpoint.open(folder)
    return find_family(source).read(source)


@pytest.mark.parametrize("kind", ["edgeloop", "mor-middle-cycle"])
def test_the_exporter_is_given_the_same_model(
    tiny_once: Callable[[str], Path], tmp_path: Path, kind: str
) -> None:
    """Its own transformer over our checkpoint, deltas merged, computes what a bundle computes."""
    from executorch.examples.models.llama.llama_transformer import construct_transformer
    from executorch.examples.models.llama.model_args import ModelArgs

    reading = read(tiny_once(kind))
    llama.write_llama_checkpoint(reading, tmp_path)
    params = json.loads((tmp_path / llama.PARAMS).read_text())
    assert params["n_layers"] == reading.program.applied_layers
    model = construct_transformer(
        ModelArgs(**params, max_seq_len=64, max_context_len=64, generate_full_logits=True)
    )
    state = torch.load(tmp_path / llama.CHECKPOINT, weights_only=True)
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert not [name for name in missing if name.endswith("weight")]
    export_bundle(tiny_once(kind), tmp_path / "bundle", quant="none")
    ids = np.arange(1, 12)
    wanted = Session.open(tmp_path / "bundle").logits(ids)
    with torch.no_grad():
        found = model.eval()(torch.from_numpy(ids)[None])
    found = found[0] if isinstance(found, tuple) else found
    np.testing.assert_allclose(found[0].numpy(), wanted, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        ("ouro", "plain Llama layers only, and the model has norms of what layers add"),
        ("llama-window", "plain Llama layers only, and the model has a sliding window"),
        ("mor-shared", "the depths share K/V"),
        ("mor-expert", "a router leaves out depths"),
    ],
)
def test_models_that_are_no_llama_are_refused(
    kind: str, what: str, tiny_once: Callable[[str], Path], tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=what):
        llama.export_llama(read(tiny_once(kind)), tmp_path, 32, 64)
    assert not any(tmp_path.iterdir())


def test_the_exporters_last_words(
    tiny_once: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llama, "MODULE", "edgeloop.no_such_module")
    with pytest.raises(ExportError, match="own exporter failed: .*no_such_module"):
        llama.export_llama(read(tiny_once("mor-cycle")), tmp_path, 32, 64)
    config = json.loads((tmp_path / llama.CONFIG).read_text())
    assert config["quantization"]["qmode"] == "8da4w"
    assert config["export"]["max_context_length"] == 64


def test_a_program_is_measured() -> None:
    seen: list[tuple[list[int], int]] = []

    def step(ids: list[int], start: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
        seen.append((ids, start))
        return np.eye(8, dtype=np.float32)[(ids[-1] + 1) % 8]

    found = bench_pte.measure(lambda: step, 3, 2)
    assert seen == [([1], 0), ([1, 2, 3], 0), ([4], 3), ([5], 4)]
    assert found["last"] == 6
    assert set(found) == {"load_ms", "memory_bytes", "ms", "last"}


def test_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Medians of the turns, and speeds turn by turn."""
    (tmp_path / "staged" / "executorch").mkdir(parents=True)
    for name, count in (("staged/executorch/a", 2), ("staged/executorch/b", 3), ("flat", 6)):
        (tmp_path / name).write_bytes(b"x" * count)
    programs = {"staged": tmp_path / "staged", "flat": tmp_path / "flat"}
    times = {"staged": iter([2.0, 4.0, 3.0]), "flat": iter([4.0, 4.0, 12.0])}
    monkeypatch.setattr(compare_pte, "prepare", lambda *given: (programs, ["one is left out"]))
    methods = {"methods": 2, "one_bytes": 8, "all_bytes": 9, "pass_ms": [1.0, 1.5]}

    def measured(name: str, *given: object) -> dict[str, object]:
        return methods if name == "methods" else {"load_ms": 1, "memory_bytes": 7, "ms": next(times[name])}

    monkeypatch.setattr(compare_pte, "measured", measured)
    args = argparse.Namespace(keep=tmp_path, rounds=3, prompt_tokens=4, tokens=2, save=None)
    compare_pte.compare_programs(args, Console(json=True))
    staged, flat = (found := json.loads(capsys.readouterr().out))["decoders"]
    assert found["notes"] == ["one is left out"]
    assert found["methods"] == methods
    assert (staged["bytes"], staged["ms"], staged["speed"]) == (5, 3.0, 1.0)
    assert (flat["bytes"], flat["ms"], flat["speed"]) == (6, 4.0, 0.5)
    assert compare_pte.cells(flat) == ("flat", "6 B", "1 ms", "7 B", "4.00", "250", "0.50×")


def test_a_program_that_does_not_run(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="flat does not run: "):
        compare_pte.measured("flat", tmp_path / "none.pte", 2, 2)
