"""Expert choice from before the authors tied attention over recursions: q, k, v and o for each depth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from editing import edit, read
from msgspec import structs
from routed_forward import logits as routed_logits
from safetensors.numpy import load_file as load_arrays
from safetensors.torch import load_file
from tiny import altered

from edgeloop.apps.cli import main
from edgeloop.export.families.llama_program import spec_of
from edgeloop.export.families.llama_spec import Segment
from edgeloop.export.family import Reading
from edgeloop.export.overrides import overridden
from edgeloop.export.pipeline import export_bundle
from edgeloop.export.reference import reference_engine
from edgeloop.export.stored import write_weights
from edgeloop.quant.pack import quantize
from edgeloop.quant.recipe import Recipe
from edgeloop.runtime.decode.sequential import SequentialDecoder
from edgeloop.runtime.errors import ExportError, UsageError
from edgeloop.runtime.model.checks import problems
from edgeloop.runtime.model.transform import sharing_kv
from edgeloop.runtime.session import Session

IDS = np.random.default_rng(5).integers(0, 320, 24)
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
AUTHORS = "mor_expert_middle_cycle_eager"


def written_out(reading: Reading) -> Reading:
    """The same model, with a copy of its attention for each depth."""
    program, tensors = reading.program, dict(reading.tensors)
    segments = tuple(
        structs.replace(s, per_repeat_attention=s.repeats > 1) for s in spec_of(program).segments
    )
    for s, segment in enumerate(segments):
        for j in range(segment.layers if segment.per_repeat_attention else 0):
            for part in ATTENTION:
                name = f"segments.{s}.layers.{j}.{part}.weight"
                tensors[name] = partial(_copies, tensors[name], segment.repeats)
    return replace(reading, program=altered(program, segments=segments), tensors=tensors)


def _copies(load: Callable[[], torch.Tensor], count: int) -> torch.Tensor:
    return torch.stack([load()] * count)


def full_depth(reading: Reading, path: Path, quant: str = "none") -> np.ndarray:
    """Logits [S, V] of the reference engine over stored weights, every token at every depth."""
    recipe = Recipe.named(quant, 32)
    write_weights(reading, recipe, path)
    model = reference_engine(reading.program, path, recipe)
    return (
        SequentialDecoder(model, model.new_cache(1, len(IDS)))
        .prompt(IDS % reading.program.vocab_size, rows="all")
        .copy()
    )


def test_each_depth_has_its_own_and_the_rest_is_shared(tiny_once: Callable[[str], Path]) -> None:
    folder = tiny_once("mor-own-attention")
    reading, state = read(folder), torch.load(folder / "pytorch_model.bin", weights_only=True)
    looped = Segment(2, 3, per_repeat_attention=True)
    assert spec_of(reading.program).segments == (Segment(1), looped, Segment(1))
    for r in range(3):
        for j in range(2):
            for part in ATTENTION:
                ours = reading.tensors[f"segments.1.layers.{j}.{part}.weight"]()
                theirs = state[f"model.layers.{1 + r}.block.{j}.self_attn.{part}.weight"]
                assert torch.equal(ours[r], theirs)
                assert not torch.equal(ours[r], ours[r - 1])
    assert reading.tensors["segments.1.layers.0.up_proj.weight"]().ndim == 2


def test_a_copy_for_each_depth_computes_the_authors_logits(parity_folder: Path, tmp_path: Path) -> None:
    """The authors' own checkpoint, its attention written out for each depth: their logits all the same."""
    reading = written_out(read(parity_folder / AUTHORS))
    reference = load_file(parity_folder / AUTHORS / "reference.safetensors")
    ours, _ = routed_logits(reading, reference["input_ids"][0])
    assert (ours - reference["logits_use_cache_False"][0]).abs().max() <= 2e-5
    tied = full_depth(read(parity_folder / AUTHORS), tmp_path / "tied")
    np.testing.assert_allclose(full_depth(reading, tmp_path / "own"), tied, atol=1e-5)


@pytest.fixture(scope="module")
def bundle(tiny_once: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exported with float weights, each stage held against the reference engine after every depth."""
    out = tmp_path_factory.mktemp("own") / "bundle"
    report = export_bundle(tiny_once("mor-own-attention"), out, quant="none")
    assert report.unused == ()
    assert report.manifest.targets["onnx"].parity.logits < 1e-5
    return out


@pytest.mark.parametrize("engine", ["onnx", "reference"])
def test_engines_run_the_authors_forward(bundle: Path, tiny_once: Callable[[str], Path], engine: str) -> None:
    """The forward written in the tests, from the description alone: the authors' files have no such checkpoint."""
    reading = read(tiny_once("mor-own-attention"))
    wanted, _ = routed_logits(reading, torch.from_numpy(IDS))
    with Session.open(bundle, engine=engine, exit="chunk-topk") as session:
        found = session.logits(IDS.tolist())
    np.testing.assert_allclose(found, wanted.numpy(), atol=2e-5)
    shared = replace(reading, tensors=_first_depth(reading), program=_tied(reading))
    other, _ = routed_logits(shared, torch.from_numpy(IDS))
    assert np.abs(other.numpy() - found).max() > 1e-2


def _first_depth(reading: Reading) -> dict[str, Callable[[], torch.Tensor]]:
    """The attention of depth 0 for all depths."""

    def first(load: Callable[[], torch.Tensor]) -> torch.Tensor:
        tensor = load()
        return tensor[0] if tensor.ndim == 3 else tensor

    return {name: partial(first, load) for name, load in reading.tensors.items()}


def _tied(reading: Reading) -> object:
    segments = tuple(
        structs.replace(s, per_repeat_attention=False) for s in spec_of(reading.program).segments
    )
    return altered(reading.program, segments=segments)


@pytest.mark.parametrize(
    "options", [{}, {"exit": "router:0.45"}, {"exit": "depth:2"}, {"decode": "pipelined"}]
)
def test_engines_agree_token_by_token(bundle: Path, options: dict[str, str]) -> None:
    """Generation, where lanes of several depths ride in one call."""
    texts = []
    for engine in ("onnx", "reference"):
        with Session.open(bundle, engine=engine, **options) as session:
            texts.append([(step.token, step.depth) for step in session.generate(IDS[:9].tolist(), 12)])
    assert texts[0] == texts[1]


@pytest.mark.parametrize("quant", ["int4", "int8", "int8-channel"])
def test_codes_are_those_of_each_matrix(tiny_once: Callable[[str], Path], tmp_path: Path, quant: str) -> None:
    """Stored one under the other, and quantized as each would be alone."""
    reading, recipe = read(tiny_once("mor-own-attention")), Recipe.named(quant, 32)
    write_weights(reading, recipe, tmp_path / "w")
    stored = load_arrays(tmp_path / "w")
    for r in range(3):
        parts = [
            reading.tensors[f"segments.1.layers.1.{p}.weight"]()[r] for p in ("q_proj", "k_proj", "v_proj")
        ]
        packed = quantize(torch.cat(parts), recipe.bits, recipe.group_size)
        rows = slice(r * len(packed.codes), (r + 1) * len(packed.codes))
        assert np.array_equal(stored["segments.1.layers.1.qkv_proj.codes"][rows], packed.codes)
        assert np.array_equal(stored["segments.1.layers.1.qkv_proj.scales"][rows], packed.scales)


@pytest.mark.parametrize("quant", ["int4", "int8-channel"])
def test_quantized_exports_pass_parity(tiny_once: Callable[[str], Path], tmp_path: Path, quant: str) -> None:
    report = export_bundle(tiny_once("mor-own-attention"), tmp_path / "b", quant=quant)
    assert report.manifest.targets["onnx"].parity.logits < 1e-4


@pytest.mark.parametrize(("target", "layout"), [("executorch", "staged"), ("executorch", "flat")])
def test_targets_that_cannot_say_so(
    tiny_once: Callable[[str], Path], tmp_path: Path, target: str, layout: str
) -> None:
    with pytest.raises(ExportError, match="export to onnx|--layout staged"):
        export_bundle(tiny_once("mor-own-attention"), tmp_path / "b", targets=[target], layouts=[layout])
    assert not (tmp_path / "b").exists()
    # Without the router, for which some are refused already:
    from edgeloop.export.targets import open_target

    program = structs.replace(read(tiny_once("mor-own-attention")).program, routing=None)
    with pytest.raises(
        ExportError, match=f"attention has matrices of its own .* target {target} does not take"
    ):
        open_target(target, layout).check(program, Recipe.named("int4", 32))


def test_depths_cannot_share_k_and_v(tiny_once: Callable[[str], Path]) -> None:
    reading = read(tiny_once("mor-own-attention"))
    program = structs.replace(reading.program, routing=None)
    with pytest.raises(UsageError, match="attention has matrices for each depth"):
        overridden(replace(reading, program=program), kv="shared")
    assert any("makes K/V that depths share" in line for line in problems(sharing_kv(program, True)))


def test_show_says_what_differs(tiny_once: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(tiny_once("mor-own-attention"))]) == 0
    assert "own attention" in capsys.readouterr().out


def test_a_lora_on_top(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """A delta on a matrix of a depth's own: against the same with the delta merged into it."""
    folder = tiny("mor-own-attention")
    state = dict(torch.load(folder / "pytorch_model.bin", weights_only=True))
    torch.manual_seed(4)
    name, merged = "model.layers.{}.block.{}.self_attn.q_proj", dict(state)
    for r in range(3):
        for j in range(2):
            a, b = torch.randn(4, 64) * 0.1, torch.randn(64, 4) * 0.1
            stem = name.format(1 + r, j)
            merged[f"{stem}.weight"] = state[f"{stem}.weight"] + 2.0 * b @ a
            state |= {f"{stem}.lora_A.default.weight": a, f"{stem}.lora_B.default.weight": b}
    torch.save(merged, folder / "pytorch_model.bin")
    wanted, _ = routed_logits(read(folder), torch.from_numpy(IDS))
    torch.save(state, folder / "pytorch_model.bin")
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4, "lora_alpha": 8}')
    reading = read(folder)
    assert spec_of(reading.program).segments[1] == Segment(
        2, 3, lora={"q_proj": 4}, per_repeat_attention=True
    )
    assert (routed_logits(reading, torch.from_numpy(IDS))[0] - wanted).abs().max() < 2e-5
    merged_reading = full_depth(_merged(reading), tmp_path / "merged")
    np.testing.assert_allclose(full_depth(reading, tmp_path / "delta"), merged_reading, atol=2e-5)


def _merged(reading: Reading) -> Reading:
    def add(weight: Callable[[], torch.Tensor], stem: str) -> torch.Tensor:
        return weight() + reading.tensors[f"{stem}.lora_b"]() @ reading.tensors[f"{stem}.lora_a"]()

    tensors = {n: load for n, load in reading.tensors.items() if "lora" not in n}
    for j in range(2):
        stem = f"segments.1.layers.{j}.q_proj"
        tensors[f"{stem}.weight"] = partial(add, tensors[f"{stem}.weight"], stem)
    segments = tuple(structs.replace(s, lora={}) for s in spec_of(reading.program).segments)
    return replace(reading, program=altered(reading.program, segments=segments), tensors=tensors)


def test_a_training_config_with_more_in_it(
    tiny: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    """conf.yaml as people write it: paths, tracking, data; the model is the same."""
    folder = tiny("mor-own-attention")
    plain = read(folder).program
    more = {
        "name": None, "wandb": True, "wandb_mode": "online", "wandb_project": "mor", "resume_from_checkpoint": False,
        "resume_step": None, "dataset": "fineweb_edu", "weights": None, "total_batch_size": 1024,
        "global_shuffling": False, "tokenizer": "smollm", "model": "smollm", "model_config": {"num_hidden_layers": 32},
        "model_name_or_path": "HuggingFaceTB/SmolLM-135M", "attn_implementation": "flash_attention_2",
        "use_pretrained_weights": False, "optimizer": {"lr": 1e-3, "betas": [0.9, 0.95]}, "deepspeed": "ds.json",
    }  # fmt: skip
    conf = yaml.safe_load((folder / "conf.yaml").read_text())
    (folder / "conf.yaml").write_text(yaml.safe_dump(conf | more))
    assert read(folder).program == plain
    assert not caplog.messages
    edit(folder / "conf.yaml", note="mine", lucky_number=7, off=None)
    assert read(folder).program == plain
    assert caplog.messages[0].endswith("does not know and takes no notice of: 'lucky_number', 'note'")
    edit(
        folder / "conf.yaml", relaxation={"enable": True, "method": None, "lora": {"r": None, "alpha": None}}
    )
    with pytest.raises(Exception, match=r"relaxation\.method is None"):
        read(folder)
