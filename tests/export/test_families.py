"""Each family's reading computes what its authors' code computes, and says no to what it does not know."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from editing import edit, edit_weights, read
from forward import logits
from safetensors.torch import load_file
from tiny import KINDS, demo_model, shard

from edgeloop.apps.demo.model import DemoConfig
from edgeloop.export.checkpoint import Checkpoint
from edgeloop.export.families import FAMILIES, find_family, unused
from edgeloop.export.families.llama_config import read_llama_config
from edgeloop.export.families.llama_layers import read_layers
from edgeloop.export.families.llama_ties import LlamaNames, find_loop, find_runs, plain
from edgeloop.runtime.errors import CheckpointError
from edgeloop.runtime.spec import Segment

IDS = torch.tensor([5, 260, 3, 3, 99, 0, 41, 7])
PARITY = {
    "rec_middle_cycle": "logits_use_cache_False",
    "rec_cycle_kvshare": "logits_use_cache_False",
    "relax_lora_middle_cycle": "logits_use_cache_False",
    "mobilellm_ls_eager": "logits_use_cache_False",
    "ouro_tiny": "logits_default_T4",
}


@pytest.mark.parametrize("name", PARITY)
def test_reading_computes_the_authors_logits(parity_folder: Path, name: str) -> None:
    reference = load_file(parity_folder / name / "reference.safetensors")
    ours = logits(read(parity_folder / name), reference["input_ids"][0])
    assert (ours - reference[PARITY[name]][0]).abs().max() <= 2e-5


def test_specs_of_the_fixtures(parity_folder: Path) -> None:
    specs = {name: read(parity_folder / name).spec for name in PARITY}
    once = Segment(1)
    assert specs["rec_middle_cycle"].segments == (once, Segment(2, 3), once)
    assert specs["rec_cycle_kvshare"].segments == (Segment(2, 3),)
    lora = Segment(2, 3, lora={"q_proj": 4, "v_proj": 4})
    assert specs["relax_lora_middle_cycle"].segments == (once, lora, once)
    assert specs["mobilellm_ls_eager"].segments == (Segment(1, 2),) * 3
    assert specs["mobilellm_ls_eager"].tied_embedding
    ouro = specs["ouro_tiny"]
    assert ouro.segments == (Segment(3, 4),)
    assert (ouro.sandwich_norms, ouro.loop_norm, ouro.tied_embedding, ouro.rope_theta) == (
        True,
        True,
        False,
        1e6,
    )
    assert specs["rec_middle_cycle"].eos_token_ids == (2,)
    assert specs["rec_middle_cycle"].bos_token_id == 1


def test_kv_sharing_is_read_with_a_warning(parity_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    read(parity_folder / "rec_cycle_kvshare")
    assert "read as per-depth KV" in caplog.text


def test_unused_tensors_are_reported(parity_folder: Path) -> None:
    checkpoint = Checkpoint.open(parity_folder / "ouro_tiny")
    gates = ["model.early_exit_gate.bias", "model.early_exit_gate.weight"]
    assert unused(checkpoint, find_family(checkpoint).read(checkpoint)) == gates


@pytest.mark.parametrize("kind", KINDS)
def test_every_tiny_checkpoint_reads_whole(tiny_once: Callable[[str], Path], kind: str) -> None:
    checkpoint = Checkpoint.open(tiny_once(kind))
    family = find_family(checkpoint)
    reading = family.read(checkpoint)
    assert kind.startswith(family.name)
    assert [n for n in unused(checkpoint, reading) if "early_exit_gate" not in n] == []
    assert logits(reading, IDS).isfinite().all()
    loaded = [load() for load in reading.tensors.values()]
    assert all(t.dtype == torch.float32 and t.is_contiguous() for t in loaded)


@pytest.mark.parametrize("kind", ["mor-cycle", "mor-sequence", "mor-middle-cycle", "mor-middle-sequence"])
def test_looped_equals_unrolled(tiny_once: Callable[[str], Path], kind: str) -> None:
    _compare_with_unrolled(tiny_once(kind))


def test_per_repeat_norms(tiny_once: Callable[[str], Path]) -> None:
    reading = read(tiny_once("mor-norms"))
    assert [s.per_repeat_norms for s in reading.spec.segments] == [False, True, False]
    _compare_with_unrolled(tiny_once("mor-norms"))


def _compare_with_unrolled(folder: Path) -> None:
    checkpoint = Checkpoint.open(folder)
    names = LlamaNames(checkpoint)
    unrolled = read_layers(names, read_llama_config(checkpoint), [plain(range(names.layers))], "llama")
    assert torch.equal(logits(read(folder), IDS), logits(unrolled, IDS))


def test_demo_model(tiny_once: Callable[[str], Path]) -> None:
    config = json.loads((tiny_once("edgeloop") / "config.json").read_text())
    model = demo_model(
        DemoConfig(**{k: v for k, v in config.items() if k not in ("model_type", "architectures")})
    )
    with torch.no_grad():
        reference = model(IDS[None])[-1][0]
    reading = read(tiny_once("edgeloop"))
    assert (logits(reading, IDS) - reference).abs().max() < 2e-5
    assert reading.spec.segments[1].lora == dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj"), 4)


def test_llama_as_transformers_computes_it(tiny_once: Callable[[str], Path]) -> None:
    transformers = pytest.importorskip("transformers")
    model = transformers.LlamaForCausalLM.from_pretrained(tiny_once("llama")).eval()
    with torch.no_grad():
        reference = model(IDS[None]).logits[0]
    reading = read(tiny_once("llama"))
    assert reading.spec.segments == (Segment(1), Segment(2, 2), Segment(1))
    assert reading.spec.rope_theta == 10000.0
    assert (logits(reading, IDS) - reference).abs().max() < 2e-5


@pytest.mark.parametrize(
    ("classes", "loop"),
    [
        ([0, 1, 2], (0, 1, 1)),
        ([0, 1, 0, 1, 0, 1], (0, 2, 3)),
        ([0, 0, 0, 0], (0, 1, 4)),
        ([9, 1, 2, 1, 2, 8], (1, 2, 2)),
        ([9, 1, 2, 1, 2, 1, 8], (1, 2, 2)),
        ([0, 0, 1, 1], (0, 1, 2)),
        ([0, 0, 1, 0, 0, 1], (0, 3, 2)),
        ([0], (0, 1, 1)),
    ],
)
def test_find_loop(classes: list[int], loop: tuple[int, int, int]) -> None:
    assert find_loop(classes) == loop


def test_find_runs() -> None:
    assert find_runs([9, 1, 1, 2, 2, 2, 8]) == [(0, 1), (1, 2), (3, 3), (6, 1)]


def test_llama_runs_become_segments(tiny: Callable[[str], Path]) -> None:
    folder = tiny("mor-middle-sequence")
    (folder / "conf.yaml").unlink()
    assert read(folder).spec.segments == (Segment(1), Segment(1, 3), Segment(1, 3), Segment(1))


def test_llama_finds_norms_a_depth(tiny: Callable[[str], Path]) -> None:
    folder = tiny("mor-norms")
    (folder / "conf.yaml").unlink()
    assert [s.per_repeat_norms for s in read(folder).spec.segments] == [False, True, False]


@pytest.mark.parametrize(("alpha_pattern", "factor"), [(2.0, 2.0), (None, 0.5), (0, 0.5)])
def test_lora_scale_of_conf_yaml(
    tiny: Callable[[str], Path], alpha_pattern: float | None, factor: float
) -> None:
    folder = tiny("mor-lora")  # rank 4
    name = "segments.1.layers.0.q_proj.lora_b"
    before = read(folder).tensors[name]()
    edit(folder / "conf.yaml", relaxation__lora__alpha_pattern=alpha_pattern, relaxation__lora__alpha=2)
    assert torch.equal(read(folder).tensors[name](), before * factor)


def test_lora_scale_of_peft(tiny: Callable[[str], Path]) -> None:
    folder = tiny("mor-lora")
    name = "segments.1.layers.0.{}.lora_b"
    before = {p: read(folder).tensors[name.format(p)]() for p in ("q_proj", "v_proj")}
    adapter = {"peft_type": "LORA", "r": 4, "lora_alpha": 2, "alpha_pattern": {"v_proj": 8}}
    (folder / "adapter_config.json").write_text(json.dumps(adapter))
    tensors = read(folder).tensors
    assert torch.equal(tensors[name.format("q_proj")](), before["q_proj"] * 0.5)
    assert torch.equal(tensors[name.format("v_proj")](), before["v_proj"] * 2)
    edit(folder / "adapter_config.json", use_dora=True)
    with pytest.raises(CheckpointError, match="use_dora"):
        read(folder)


def test_a_depth_without_lora_has_a_delta_of_zero(tiny: Callable[[str], Path]) -> None:
    folder = tiny("mor-lora")

    def drop(tensors: dict[str, torch.Tensor]) -> None:
        stem = "base_model.model.model.layers.1.self_attn.q_proj"
        for x in "AB":
            del tensors[f"{stem}.lora_{x}.default.weight"]
        tensors[f"{stem}.weight"] = tensors.pop(f"{stem}.base_layer.weight")

    edit_weights(folder, drop)
    b = read(folder).tensors["segments.1.layers.0.q_proj.lora_b"]()
    assert not b[0].any()
    assert b[1].any()


def test_resharding_changes_nothing(tiny: Callable[[str], Path]) -> None:
    folder = tiny("edgeloop")
    before = logits(read(folder), IDS)
    shard(folder)
    assert torch.equal(logits(read(folder), IDS), before)


def test_table_names_are_the_families_names() -> None:
    assert [entry.load().name for entry in FAMILIES] == [entry.name for entry in FAMILIES]
