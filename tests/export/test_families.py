"""Each family's reading computes what its authors' code computes, and says no to what it does not know."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from editing import edit, edit_weights, read
from forward import AUTHORS, logits, states
from msgspec import structs
from routed_forward import logits as routed_logits
from safetensors.torch import load_file
from tiny import KINDS, ROUTERS, WINDOW, altered, demo_model, shard

from edgeloop.apps.demo.model import DemoConfig, rotary
from edgeloop.apps.demo.routed import RoutedConfig, RoutedModel
from edgeloop.export.checkpoint import Checkpoint
from edgeloop.export.families import FAMILIES, find_family, unused
from edgeloop.export.families.llama_config import read_llama_config
from edgeloop.export.families.llama_layers import read_layers
from edgeloop.export.families.llama_names import LlamaNames
from edgeloop.export.families.llama_program import spec_of
from edgeloop.export.families.llama_spec import Segment
from edgeloop.export.families.ties import find_loop, find_runs, plain
from edgeloop.runtime.bundle.heads import head_shapes
from edgeloop.runtime.errors import CheckpointError
from edgeloop.runtime.model.program import Routing

IDS = torch.tensor([5, 260, 3, 3, 99, 0, 41, 7])
ROUTED = {"mor_expert_middle_cycle_eager": "expert", "mor_token_middle_cycle": "token"}


@pytest.mark.parametrize("name", AUTHORS)
def test_reading_computes_the_authors_logits(parity_folder: Path, name: str) -> None:
    reference = load_file(parity_folder / name / "reference.safetensors")
    ours = logits(read(parity_folder / name), reference["input_ids"][0])
    assert (ours - reference[AUTHORS[name]][0]).abs().max() <= 2e-5


def test_specs_of_the_fixtures(parity_folder: Path) -> None:
    specs = {name: spec_of(read(parity_folder / name).program) for name in AUTHORS}
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


@pytest.mark.parametrize("name", ROUTED)
def test_routing_computes_the_authors_logits(parity_folder: Path, name: str) -> None:
    reading, folder = read(parity_folder / name), parity_folder / name
    reference = load_file(folder / "reference.safetensors")
    ours, ran = routed_logits(reading, reference["input_ids"][0])
    assert (ours - reference["logits_use_cache_False"][0]).abs().max() <= 2e-5
    facts = json.loads((folder / "reference.json").read_text())
    # The caches of the first layer, of each recursion's two, and of the last, hold the tokens that ran there.
    assert [shape[2] for shape in facts["cache_shapes"]] == [14, *(len(w) for w in ran for _ in range(2)), 14]
    if ROUTED[name] == "expert":
        assert ran == [depth[0] for depth in facts["selected_use_cache_False"]]


def test_routing_of_the_fixtures(parity_folder: Path) -> None:
    specs = {kind: spec_of(read(parity_folder / name).program) for name, kind in ROUTED.items()}
    assert specs["expert"].segments == specs["token"].segments == (Segment(1), Segment(2, 3), Segment(1))
    assert specs["expert"].routing == Routing(
        kind="expert", squash="sigmoid", alpha=0.1, capacity=(1.0, 0.6666666666666666, 0.3333333333333333)
    )
    assert specs["token"].routing == Routing(kind="token", squash="softmax", alpha=1.0)


def test_heads_of_the_fixtures(parity_folder: Path) -> None:
    expert = parity_folder / "mor_expert_middle_cycle_eager"
    state = torch.load(expert / "pytorch_model.bin", weights_only=True)
    rows = [state[f"model.layers.{1 + r}.mor_router.router.weight"] for r in range(3)]
    assert torch.equal(read(expert).heads["router.weight"](), torch.cat(rows))
    heads = read(parity_folder / "mor_token_middle_cycle").heads
    assert heads["router.weight"]().shape == (3, 64)
    assert not heads["router.bias"]().any()


def test_gate_of_ouro(parity_folder: Path) -> None:
    reading = read(parity_folder / "ouro_tiny")
    reference = load_file(parity_folder / "ouro_tiny" / "reference.safetensors")
    after, _ = states(reading, reference["input_ids"][0])
    weight, bias = reading.heads["gate.weight"](), reading.heads["gate.bias"]()
    gate = torch.stack([(state @ weight + bias).sigmoid() for state in after], dim=1)
    assert (gate - reference["gate_lambda"][0]).abs().max() <= 2e-5
    assert reading.program.exit_gate


def test_ouro_without_a_gate(tiny: Callable[[str], Path], caplog: pytest.LogCaptureFixture) -> None:
    folder = tiny("ouro")
    edit(folder / "config.json", early_exit_threshold=0.9)
    edit_weights(folder, lambda t: [t.pop(n) for n in list(t) if "early_exit_gate" in n])
    reading = read(folder)
    assert not reading.program.exit_gate
    assert not reading.heads
    assert "runs all 3 steps unless generation is run with --exit gate:q" in caplog.text


def test_kv_sharing_is_read(parity_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    reading = read(parity_folder / "rec_cycle_kvshare")
    assert (spec_of(reading.program).kv, reading.program.kv_slots) == ("shared", 1)
    assert "kv_sharing" not in caplog.text


def test_kv_sharing_of_config_json(tiny: Callable[[str], Path]) -> None:
    folder = tiny("mor-middle-cycle")
    assert spec_of(read(folder).program).kv == "per-depth"
    for copy in (True, {"enable": True, "sharing": "middle_cycle"}):
        edit(folder / "config.json", kv_sharing=copy)
        assert spec_of(read(folder).program).kv == "shared"


def test_unused_tensors_are_reported(tiny: Callable[[str], Path]) -> None:
    folder = tiny("ouro")
    edit_weights(folder, lambda t: t.update({"model.second_gate.weight": torch.ones(1, 64)}))
    checkpoint = Checkpoint.open(folder)
    assert unused(checkpoint, find_family(checkpoint).read(checkpoint)) == ["model.second_gate.weight"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_tiny_checkpoint_reads_whole(tiny_once: Callable[[str], Path], kind: str) -> None:
    checkpoint = Checkpoint.open(tiny_once(kind))
    family = find_family(checkpoint)
    reading = family.read(checkpoint)
    assert kind.startswith(family.name)
    assert unused(checkpoint, reading) == []
    assert logits(reading, IDS).isfinite().all()
    loaded = [load() for load in (reading.tensors | reading.heads).values()]
    assert all(t.dtype == torch.float32 and t.is_contiguous() for t in loaded)


@pytest.mark.parametrize("kind", ["mor-cycle", "mor-sequence", "mor-middle-cycle", "mor-middle-sequence"])
def test_looped_equals_unrolled(tiny_once: Callable[[str], Path], kind: str) -> None:
    _compare_with_unrolled(tiny_once(kind))


def test_per_repeat_norms(tiny_once: Callable[[str], Path]) -> None:
    reading = read(tiny_once("mor-norms"))
    assert [s.per_repeat_norms for s in spec_of(reading.program).segments] == [False, True, False]
    _compare_with_unrolled(tiny_once("mor-norms"))


def _compare_with_unrolled(folder: Path) -> None:
    checkpoint = Checkpoint.open(folder)
    names = LlamaNames(checkpoint)
    unrolled = read_layers(names, read_llama_config(checkpoint), [plain(range(names.layers))], "llama")
    assert torch.equal(logits(read(folder), IDS), logits(unrolled, IDS))


@pytest.mark.parametrize("kind", ["edgeloop", "edgeloop-wide"])
def test_demo_model(tiny_once: Callable[[str], Path], kind: str) -> None:
    config = json.loads((tiny_once(kind) / "config.json").read_text())
    model = demo_model(
        DemoConfig(**{k: v for k, v in config.items() if k not in ("model_type", "architectures")})
    )
    with torch.no_grad():
        reference = model(IDS[None])[-1][0]
    reading = read(tiny_once(kind))
    assert (logits(reading, IDS) - reference).abs().max() < 2e-5
    assert spec_of(reading.program).segments[1].lora == dict.fromkeys(
        ("q_proj", "k_proj", "v_proj", "o_proj"), 4
    )


def test_llama_as_transformers_computes_it(tiny_once: Callable[[str], Path]) -> None:
    transformers = pytest.importorskip("transformers")
    model = transformers.LlamaForCausalLM.from_pretrained(tiny_once("llama")).eval()
    with torch.no_grad():
        reference = model(IDS[None]).logits[0]
    reading = read(tiny_once("llama"))
    assert spec_of(reading.program).segments == (Segment(1), Segment(2, 2), Segment(1))
    assert spec_of(reading.program).rope_theta == 10000.0
    assert (logits(reading, IDS) - reference).abs().max() < 2e-5


def test_a_window_as_transformers_computes_it(tiny_once: Callable[[str], Path]) -> None:
    """Tokens at most, the newest included: longer ids than the window, so that one more or less shows."""
    transformers = pytest.importorskip("transformers")
    folder, ids = tiny_once("llama-window"), torch.cat((IDS, IDS.flip(0)))
    model = transformers.MistralForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        reference = model(ids[None]).logits[0]
    reading = read(folder)
    assert spec_of(reading.program).sliding_window == WINDOW
    assert (logits(reading, ids) - reference).abs().max() < 2e-5
    for window in (WINDOW - 1, WINDOW + 1, None):
        other = replace(reading, program=altered(reading.program, sliding_window=window))
        assert (logits(other, ids) - reference).abs().max() > 1e-3


WINDOWS: list[tuple[str, dict[str, Any], int | None, bool]] = [
    ("llama", {"sliding_window": 5}, None, True),
    ("llama", {"sliding_window": 5, "use_sliding_window": True, "max_window_layers": 0}, None, True),
    ("llama", {"sliding_window": 5, "use_sliding_window": False}, None, False),
    ("llama", {"sliding_window": 5, "layer_types": ["sliding_attention"] * 6}, None, True),
    ("llama-window", {"sliding_window": 5}, 5, False),
    ("llama-window", {"sliding_window": 5, "use_sliding_window": False}, 5, True),
    ("llama-window", {"sliding_window": None, "use_sliding_window": True}, None, True),
    ("llama-window", {"sliding_window": 5, "layer_types": ["full_attention"] * 6}, None, True),
    ("llama-window", {"sliding_window": 5, "layer_types": ["sliding_attention"] * 6}, 5, False),
    ("llama-window", {"sliding_window": 5, "max_window_layers": 6}, 5, False),
]
"""A checkpoint, its keys, the window that is read, and is it said that some key is not what counts?"""


@pytest.mark.parametrize(("kind", "keys", "window", "said"), WINDOWS)
def test_keys_of_a_window_are_those_of_transformers(
    tiny: Callable[[str], Path],
    caplog: pytest.LogCaptureFixture,
    kind: str,
    keys: dict[str, Any],
    window: int | None,
    said: bool,
) -> None:
    transformers = pytest.importorskip("transformers")
    folder = tiny(kind)
    edit(folder / "config.json", **keys)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        reference = model(IDS[None]).logits[0]
    reading = read(folder)
    assert spec_of(reading.program).sliding_window == window
    assert (logits(reading, IDS) - reference).abs().max() < 2e-5
    other = replace(reading, program=altered(reading.program, sliding_window=None if window else 5))
    assert (logits(other, IDS) - reference).abs().max() > 1e-3
    assert ("is not what the code of model_type" in caplog.text) == said


def test_a_mistral_without_the_key_has_the_window_of_transformers(tiny: Callable[[str], Path]) -> None:
    transformers = pytest.importorskip("transformers")
    folder = tiny("llama-window")
    config = json.loads((folder / "config.json").read_text())
    del config["sliding_window"]
    (folder / "config.json").write_text(json.dumps(config))
    assert (
        spec_of(read(folder).program).sliding_window
        == transformers.AutoConfig.from_pretrained(folder).sliding_window
    )


@pytest.mark.parametrize(
    ("keys", "window"),
    [
        ({"sliding_window": 16}, None),
        ({"sliding_window": 16, "use_sliding_window": False}, None),
        ({"sliding_window": None, "use_sliding_window": True}, None),
        ({"sliding_window": 16, "use_sliding_window": True, "layer_types": ["full_attention"] * 2}, None),
        ({"sliding_window": 16, "use_sliding_window": True, "layer_types": ["sliding_attention"] * 2}, 16),
        ({"sliding_window": 16, "use_sliding_window": True, "max_window_layers": 0}, 16),
        ({"sliding_window": 16, "use_sliding_window": True, "max_window_layers": 2}, None),
    ],
)
def test_keys_of_ouros_window(tiny: Callable[[str], Path], keys: dict[str, Any], window: int | None) -> None:
    """As the authors' configuration_ouro.py reads them (and Qwen2's, which it is made from)."""
    folder = tiny("ouro")
    edit(folder / "config.json", **keys)
    assert spec_of(read(folder).program).sliding_window == window


def test_routed_demo_model(tiny_once: Callable[[str], Path]) -> None:
    config = json.loads((tiny_once("edgeloop-routed") / "config.json").read_text())
    own = {k: v for k, v in config.items() if k not in ("model_type", "architectures")}
    model = demo_model(RoutedConfig(**own))
    assert isinstance(model, RoutedModel)
    ids = torch.cat((IDS, IDS.flip(0)))
    with torch.no_grad():
        x, _ = model.routed(ids[None])
        cos, sin = rotary(len(ids), 16, 10000.0)
        for layer in model.epilogue:
            x = layer(x, 0, cos, sin)
        reference = (model.norm(x) @ model.embed_tokens.weight.T)[0]
    ours, ran = routed_logits(read(tiny_once("edgeloop-routed")), ids)
    assert (ours - reference).abs().max() < 2e-5
    assert [len(who) for who in ran] == [16, 10, 5]


@pytest.mark.parametrize("kind", ["mor-expert", "mor-token", *ROUTERS])
def test_tiny_routers(tiny_once: Callable[[str], Path], kind: str) -> None:
    checkpoint = Checkpoint.open(tiny_once(kind))
    reading = find_family(checkpoint).read(checkpoint)
    assert unused(checkpoint, reading) == []
    assert set(reading.heads) == set(head_shapes(reading.program))
    ours, ran = routed_logits(reading, IDS)
    assert ours.isfinite().all()
    routing = reading.program.routing
    assert routing is not None
    if routing.kind == "expert":
        assert [len(who) for who in ran] == [int(share * len(IDS)) for share in routing.capacity]
    else:
        assert len(IDS) == len(ran[0]) >= len(ran[1]) >= len(ran[2]) > 0
        assert len(ran[2]) < len(IDS)
    assert (routing.hidden, routing.auxiliary) == (
        "mlp" in kind,
        kind in ("mor-expert-mlp", "mor-expert-auxiliary"),
    )
    assert routing.temperature == 0.8
    shared = kind.endswith("-shared")
    shares = (0.75, 0.5, 0.25) if shared else (1.0, 2 / 3, 1 / 3)
    assert routing.capacity == (shares if routing.kind == "expert" else ())
    assert spec_of(reading.program).kv == ("shared" if shared else "per-depth")


def test_heads_of_an_mlp_router(tiny_once: Callable[[str], Path]) -> None:
    """The auxiliary router sees an input that is not divided by the temperature."""
    folder = tiny_once("mor-expert-mlp")
    state, heads = torch.load(folder / "pytorch_model.bin", weights_only=True), read(folder).heads
    for head, module, factor in (("router", "mor_router", 1.0), ("auxiliary", "mlp_router", 0.8)):
        for r in range(3):
            stem = f"model.layers.{1 + r}.{module}.router"
            assert torch.equal(heads[f"{head}.hidden"]()[r], state[f"{stem}.0.weight"] * factor)
            assert torch.equal(heads[f"{head}.weight"]()[r : r + 1], state[f"{stem}.2.weight"])


def test_the_bias_of_token_choice(tiny: Callable[[str], Path]) -> None:
    """The authors add it to α·p: it is stored for p."""
    folder = tiny("mor-token")
    bias = torch.tensor([-0.1, 0.05, 0.1])
    assert torch.equal(read(folder).heads["router.bias"](), bias)
    edit(folder / "conf.yaml", mor__token__alpha=0.5)
    assert torch.equal(read(folder).heads["router.bias"](), bias * 2)
    edit(folder / "conf.yaml", mor__token__balancing="loss")
    with pytest.raises(CheckpointError, match="router_bias is part of a layer"):
        read(folder)
    edit_weights(folder, lambda t: t.pop("model.layers.1.router_bias"))
    assert not read(folder).heads["router.bias"]().any()


def test_settings_of_expert_choice(tiny: Callable[[str], Path]) -> None:
    folder = tiny("mor-expert")

    def routing(**changes: Any) -> Routing | None:
        edit(folder / "conf.yaml", **changes)
        return read(folder).program.routing

    base = Routing(kind="expert", squash="sigmoid", alpha=0.5, temperature=0.8, capacity=(1.0, 2 / 3, 1 / 3))
    assert routing() == base
    assert routing(mor__expert__router_func="tanh") == structs.replace(base, squash="tanh")
    # The authors scale neither raw scores nor an ungated output.
    assert routing(mor__expert__router_func=None) == structs.replace(base, squash="none", alpha=1.0)
    added = routing(mor__expert__router_func="sigmoid", mor__expert__gating="additive")
    assert added == structs.replace(base, gated=False, alpha=1.0)
    some = routing(mor__expert__gating="weighted", mor__capacity="0.9, 0.5, 0.5")
    assert some == structs.replace(base, capacity=(0.9, 0.5, 0.5))


@pytest.mark.parametrize("kind", ["expert", "token"])
def test_routing_without_first_and_last_layer(tiny: Callable[[str], Path], kind: str) -> None:
    folder = tiny(f"mor-{kind}")
    last = 4 if kind == "expert" else 2

    def only_blocks(tensors: dict[str, torch.Tensor]) -> None:
        for name in [n for n in tensors if n.startswith("model.layers.")]:
            _, _, layer, rest = name.split(".", 3)
            tensor = tensors.pop(name)
            if layer not in ("0", str(last)):
                tensors[f"moved.{int(layer) - 1}.{rest}"] = tensor
        for name in [n for n in tensors if n.startswith("moved.")]:
            tensors[name.replace("moved.", "model.layers.")] = tensors.pop(name)

    name = "layers.1.up_proj.weight"
    whole = read(folder)
    before = whole.heads["router.weight"](), whole.tensors[f"segments.1.{name}"]()
    edit_weights(folder, only_blocks)
    edit(folder / "config.json", num_hidden_layers=6)
    edit(folder / "conf.yaml", recursive__sharing="cycle")
    reading = read(folder)
    assert spec_of(reading.program).segments == (Segment(2, 3),)
    assert torch.equal(reading.heads["router.weight"](), before[0])
    assert torch.equal(reading.tensors[f"segments.0.{name}"](), before[1])


def test_routing_with_a_lora_a_depth(tiny: Callable[[str], Path]) -> None:
    """The keys of PEFT are the same inside a block."""
    folder = tiny("mor-expert")
    torch.manual_seed(2)

    def adapt(tensors: dict[str, torch.Tensor]) -> None:
        for r in range(3):
            for j in range(2):
                stem = f"model.layers.{1 + r}.block.{j}.self_attn.q_proj"
                tensors[f"{stem}.base_layer.weight"] = tensors.pop(f"{stem}.weight")
                tensors[f"{stem}.lora_A.default.weight"] = torch.randn(4, 64)
                tensors[f"{stem}.lora_B.default.weight"] = torch.randn(64, 4)
        tensors |= {f"base_model.model.{name}": tensors.pop(name) for name in list(tensors)}

    edit_weights(folder, adapt)
    edit(folder / "conf.yaml", relaxation__enable=True, relaxation__lora__alpha_pattern=2.0)
    reading = read(folder)
    assert spec_of(reading.program).segments[1].lora == {"q_proj": 4}
    state = torch.load(folder / "pytorch_model.bin", weights_only=True)
    b = state["base_model.model.model.layers.3.block.1.self_attn.q_proj.lora_B.default.weight"]
    assert torch.equal(reading.tensors["segments.1.layers.1.q_proj.lora_b"]()[2], 2 * b)
    assert set(reading.heads) == {"router.weight"}


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
    assert spec_of(read(folder).program).segments == (Segment(1), Segment(1, 3), Segment(1, 3), Segment(1))


def test_llama_finds_norms_a_depth(tiny: Callable[[str], Path]) -> None:
    folder = tiny("mor-norms")
    (folder / "conf.yaml").unlink()
    assert [s.per_repeat_norms for s in spec_of(read(folder).program).segments] == [False, True, False]


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
