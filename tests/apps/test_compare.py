"""``edgeloop compare`` on a tiny model: the unrolled graph is the same model, and the table tells the truth."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeloop.apps.bench_decoders import genai_decoder
from edgeloop.apps.cli import main
from edgeloop.apps.compare import summarize
from edgeloop.apps.contender import Decoder
from edgeloop.apps.measure import store
from edgeloop.apps.measure.turns import Turns
from edgeloop.export.checkpoint import Checkpoint
from edgeloop.export.families import find_family
from edgeloop.export.families.llama_program import spec_of
from edgeloop.export.pipeline import export_bundle
from edgeloop.export.unrolled import unroll, write_unrolled_checkpoint, write_unrolled_graph
from edgeloop.quant.recipe import Recipe
from edgeloop.runtime import Session
from edgeloop.runtime.engines.backend import Lanes
from edgeloop.runtime.engines.kv import KVCache
from edgeloop.runtime.engines.onnx.session import GraphSession, use_threads
from edgeloop.runtime.errors import ExportError

KIND = "mor-middle-cycle"


@pytest.fixture(scope="module")
def reading(tiny_once: Callable[[str], Path]) -> Any:
    source = Checkpoint.open(tiny_once(KIND))
    return find_family(source).read(source)


@pytest.mark.parametrize(
    "kind", [KIND, "mor-lora", "mor-norms", "mobilellm", "ouro", "fold_pythia", "huginn_tiny"]
)
def test_the_unrolled_graph_is_the_same_model(
    kind: str, tiny_once: Callable[[str], Path], parity_folder: Path, tmp_path: Path
) -> None:
    """Deltas and norms of each depth included, and blocks that are no Llama's."""
    folder = parity_folder / kind
    folder = folder if folder.is_dir() else tiny_once(kind)
    source = Checkpoint.open(folder)
    reading = find_family(source).read(source)
    export_bundle(folder, tmp_path / "bundle", quant="none")
    ids = np.arange(1, 12)
    wanted = Session.open(tmp_path / "bundle").logits(ids)
    program, graph = write_unrolled_graph(reading, Recipe.named("none", 32), tmp_path)
    assert program.depths == 1
    assert program.applied_layers == reading.program.applied_layers
    use_threads(None)
    session = GraphSession("prologue", "logits", graph, program)
    plan = session.plan(Lanes.single(0, 0, len(ids), 0), len(ids), KVCache.allocate(program, 1, 16))
    plan.ids[0], plan.rows[:] = ids, np.arange(len(ids))
    np.testing.assert_allclose(session.run(plan), wanted, atol=1e-4)


def test_the_unrolled_checkpoint_is_the_same_model(reading: Any, tmp_path: Path) -> None:
    write_unrolled_checkpoint(reading, tmp_path)
    source = Checkpoint.open(tmp_path)
    again = find_family(source).read(source)  # ties found by content roll it up again
    assert spec_of(again.program).segments == spec_of(reading.program).segments


@pytest.mark.parametrize(
    ("kind", "what"),
    [("mor-expert", "a router leaves out depths"), ("mor-shared", "the depths share K/V")],
)
def test_what_cannot_be_unrolled(kind: str, what: str, tiny_once: Callable[[str], Path]) -> None:
    source = Checkpoint.open(tiny_once(kind))
    with pytest.raises(ExportError, match=what):
        unroll(find_family(source).read(source))


def test_genai_is_left_out_where_the_model_is_no_llama(parity_folder: Path, tmp_path: Path) -> None:
    source = Checkpoint.open(parity_folder / "fold_pythia")
    reading = find_family(source).read(source)
    peer, why = genai_decoder(reading, source.folder, tmp_path, 32, [1, 2], 3, None)
    assert peer is None
    assert why.startswith(
        "onnxruntime-genai left out: its builder takes Llama's layers only, and the model has norm"
    )
    assert not any(tmp_path.iterdir())


def test_that_it_cannot_is_said_before_the_first_export(
    tiny_once: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", str(tiny_once("mor-expert"))]) == 1
    assert "a router leaves out depths" in (said := capsys.readouterr().err)
    assert "staged bundle" not in said


def test_compare_packages(tiny_once: Callable[[str], Path], command_json: Callable[..., Any]) -> None:
    found = command_json("compare", tiny_once(KIND), "--target", "coreml", "--group-size", 32)["packages"]
    assert [(size["name"], size["quant"]) for size in found] == [
        (name, quant) for quant in ("groups of 32", "tables") for name in ("recursive", "unrolled")
    ]
    for recursive, unrolled in (found[:2], found[2:]):
        assert recursive["functions"] == 9
        assert unrolled["functions"] == 5
        assert 0.3 < recursive["weights"] / unrolled["weights"] < 0.8
        assert recursive["program"] > unrolled["program"] > 0


def test_what_has_no_speed_is_not_saved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "--target", "coreml", "--save", str(tmp_path)]) == 2
    assert "--target coreml measures none" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert main(["compare", "--save", str(tmp_path / "file")]) == 2
    assert "give --save another folder" in capsys.readouterr().err


def test_compare(tiny_once: Callable[[str], Path], tmp_path: Path, command_json: Callable[..., Any]) -> None:
    flags = ("--group-size", 32, "--rounds", 1, "--tokens", 2, "--prompt-tokens", 4)
    found = command_json("compare", tiny_once(KIND), *flags, "--save", tmp_path / "runs")
    staged, unrolled = found["decoders"][:2]
    assert (staged["name"], staged["ratio"], staged["bytes_ratio"]) == ("staged", 1.0, 1.0)
    assert unrolled["bytes"] > staged["bytes"]
    assert unrolled["bytes_ratio"] == staged["bytes"] / unrolled["bytes"]
    record = store.read(Path(found["saved"]))
    assert (record.mode, record.engine, record.bundle.name) == ("compare-with-others", "onnx", KIND)
    measures = {measure.name: measure.value.median for measure in record.measures}
    assert measures["decode, staged, groups of 32"] == pytest.approx(1000 / staged["ms"])
    ratio = measures["decode, unrolled, groups of 32 ÷ staged, groups of 32"]
    assert ratio == pytest.approx(staged["ms"] / unrolled["ms"])
    if find_spec("onnxruntime_genai") is None:
        assert any("onnxruntime-genai" in note for note in found["notes"])


def test_ratios_are_taken_turn_by_turn() -> None:
    ours, theirs = (
        Decoder(name, 32, size, lambda count: []) for name, size in (("staged", 10), ("peer", 40))
    )
    calm = [0.0, 0.0, 0.0]
    _, peer = summarize({ours: Turns([1.0, 2.0, 4.0], calm), theirs: Turns([2.0, 4.0, 4.0], calm)})
    assert (peer.ms, peer.ratio, peer.bytes_ratio) == (4.0, 2.0, 0.25)
