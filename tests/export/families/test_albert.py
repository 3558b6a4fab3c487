"""ALBERT on both engines: as transformers computes it, whole texts with padding, after every depth; and refusals."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from editing import edit, edit_weights, read
from safetensors.numpy import load_file
from transformers import AlbertConfig, AlbertForMaskedLM, AlbertModel

from edgeloop.export.checkpoint import Checkpoint
from edgeloop.export.families import find_family, read_checkpoint, unused
from edgeloop.export.pipeline import export_bundle
from edgeloop.runtime import Session
from edgeloop.runtime.errors import CheckpointError, ContextError, UsageError
from edgeloop.runtime.model.facts import LayerRun, runs, stored_layers

ENGINES = ("reference", "onnx")
BOUND = 5e-5  # of logits up to 60: measured 7e-6 at most; without the mask 0.6 off, GELU without tanh 1e-3
PADDED = "albert_g2_inner2_padded"
Reference = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def bundles(
    parity_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Path, Reference]]:
    """The bundle of each fixture in float32, and what transformers computed."""
    root, found = tmp_path_factory.mktemp("albert"), {}
    for name in ("albert_tiny", PADDED):
        export_bundle(parity_folder / name, root / name, quant="none")
        found[name] = root / name, load_file(parity_folder / name / "reference.safetensors")
    return found


@pytest.mark.parametrize("engine", [*ENGINES, "native"])
def test_every_depth_of_padded_texts(bundles: dict[str, tuple[Path, Reference]], engine: str) -> None:
    bundle, reference = bundles[PADDED]
    mask = reference["attention_mask"].astype(bool)
    texts = [ids[seen] for ids, seen in zip(reference["input_ids"], mask, strict=True)]
    with Session.open(bundle, engine=engine) as session:
        assert session.program.loop.schedule == (0, 1, 0, 1, 2, 3, 2, 3)
        assert stored_layers(session.program) == 4
        assert runs(session.program) == [LayerRun(2, 2), LayerRun(2, 2)]
        for depth in range(1, 9):
            found = session.encode(texts, depth=depth, logits=True)
            assert found.logits is not None
            wanted = reference[f"logits_after_block_{depth}"]
            assert np.abs(found.states - reference["hidden_states"][depth])[mask].max() <= BOUND
            assert np.abs(found.logits - wanted)[mask].max() <= BOUND
            assert not found.states[~mask].any()
            assert not found.logits[~mask].any()
        assert np.abs(session.encode(texts).states - reference["hidden_states"][-1])[mask].max() <= BOUND


@pytest.mark.parametrize("engine", [*ENGINES, "native"])
def test_texts_alone_and_with_types(bundles: dict[str, tuple[Path, Reference]], engine: str) -> None:
    bundle, reference = bundles[PADDED]
    mask = reference["attention_mask"].astype(bool)
    texts, types = (
        [row[seen] for row, seen in zip(reference[name], mask, strict=True)]
        for name in ("input_ids", "token_type_ids")
    )
    with Session.open(bundle, engine=engine) as session:
        for text, name in zip(texts, ("logits_row0_alone", "logits_row1_unpadded"), strict=True):
            found = session.encode(text, logits=True).logits
            assert found is not None
            assert np.abs(found - reference[name]).max() <= BOUND
        found = session.encode(texts, types, logits=True).logits
        assert found is not None
        assert np.abs(found - reference["logits_token_types"])[mask].max() <= BOUND
        assert np.abs(reference["logits_token_types"] - reference["logits_use_cache_False"])[mask].max() > 0.1


@pytest.mark.parametrize("engine", [*ENGINES, "native"])
def test_the_head_s_bias_under_both_names(bundles: dict[str, tuple[Path, Reference]], engine: str) -> None:
    bundle, reference = bundles["albert_tiny"]
    with Session.open(bundle, engine=engine) as session:
        found = session.encode(reference["input_ids"], logits=True).logits
        assert found is not None
        assert np.abs(found - reference["logits_full"]).max() <= BOUND


def random_albert(folder: Path, cls: type[Any], **config: Any) -> Any:
    """A checkpoint in which every number is away from where it would do nothing; its model."""
    sizes = {"vocab_size": 50, "embedding_size": 12, "hidden_size": 24, "intermediate_size": 40}
    sizes |= {"num_attention_heads": 2, "max_position_embeddings": 40, "attn_implementation": "eager"}
    torch.manual_seed(0)
    model = cls(AlbertConfig(**{**sizes, **config})).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2 + (name.endswith("orm.weight")))
    model.save_pretrained(folder)
    return model


IDS = np.random.default_rng(4).integers(0, 50, (3, 17))


def test_without_a_head_and_groups_that_do_not_divide(tmp_path: Path) -> None:
    """An AlbertModel: keys without a prefix, 7 layers in 3 groups, exact GELU; its pooler is named as unused."""
    config = {"num_hidden_layers": 7, "num_hidden_groups": 3, "hidden_act": "gelu", "layer_norm_eps": 1e-5}
    model = random_albert(tmp_path / "model", AlbertModel, **config)
    report = export_bundle(tmp_path / "model", tmp_path / "bundle", quant="none")
    assert report.unused == ("pooler.bias", "pooler.weight")
    with torch.no_grad():
        wanted = model(torch.from_numpy(IDS)).last_hidden_state.numpy()
    for engine in ENGINES:
        with Session.open(tmp_path / "bundle", engine=engine) as session:
            assert session.program.loop.schedule == (0, 0, 0, 1, 1, 2, 2)
            assert np.abs(session.encode(IDS).states - wanted).max() <= BOUND
            with pytest.raises(UsageError, match="logits of a model that has no head"):
                session.encode(IDS, logits=True)


@pytest.mark.parametrize(
    ("layers", "groups", "inner", "order"),
    [
        (5, 2, 3, [0, 0, 0, 1, 1]),
        (4, 3, 2, [0, 0, 1, 2]),
        # Here ⌊i · groups / layers⌋ would run group 7 as layer 9, and transformers' quotient of floats is below 7.
        (18, 14, 1, [0, 0, 1, 2, 3, 3, 4, 5, 6, 6, 7, 8, 9, 10, 10, 11, 12, 13]),
    ],
)
def test_several_layers_in_groups_that_do_not_divide(
    tmp_path: Path, layers: int, groups: int, inner: int, order: list[int]
) -> None:
    """With a head, exact GELU, padding, and after every layer: transformers runs the first ones alone."""
    config = {"num_hidden_layers": layers, "num_hidden_groups": groups, "inner_group_num": inner}
    model = random_albert(tmp_path / "model", AlbertForMaskedLM, hidden_act="gelu", **config)
    export_bundle(tmp_path / "model", tmp_path / "bundle", targets=["onnx", "native"], quant="none")
    after = list[np.ndarray]()
    for group in model.albert.encoder.albert_layer_groups:
        for layer in group.albert_layers:
            layer.register_forward_hook(lambda module, given, out: after.append(np.asarray(out.detach())))
    mask = np.ones_like(IDS, bool)
    mask[1, 11:] = False
    with torch.no_grad():
        wanted = model(torch.from_numpy(IDS), torch.from_numpy(mask).long()).logits.numpy()
    assert len(after) == layers * inner
    texts = [ids[seen] for ids, seen in zip(IDS, mask, strict=True)]
    for engine in (*ENGINES, "native"):
        with Session.open(tmp_path / "bundle", engine=engine) as session:
            assert session.program.loop.schedule == tuple(g * inner + k for g in order for k in range(inner))
            found = session.encode(texts, logits=True).logits
            assert found is not None
            assert np.abs(found - wanted)[mask].max() <= BOUND
            for depth, states in enumerate(after, 1):
                assert np.abs(session.encode(texts, depth=depth).states - states)[mask].max() <= BOUND


@pytest.mark.parametrize("function", ["relu", "silu", "gelu_new", "gelu_python", "gelu_pytorch_tanh", None])
def test_every_activation_on_every_engine(tmp_path: Path, function: str | None) -> None:
    """None: the key is absent, which means gelu_new. Core ML, in float16 here, is held to the reference at export."""
    config = {"num_hidden_layers": 3, "embedding_size": 24, "hidden_act": function or "gelu_new"}
    model = random_albert(tmp_path / "model", AlbertForMaskedLM, **config)
    if function is None:
        edit(tmp_path / "model" / "config.json", hidden_act=None)
    targets = ["onnx", "native", "coreml"] if function == "relu" else ["onnx", "native"]
    export_bundle(tmp_path / "model", tmp_path / "bundle", targets=targets, quant="none")
    with torch.no_grad():
        wanted = model(torch.from_numpy(IDS)).logits.numpy()
    for engine in (*ENGINES, "native"):
        with Session.open(tmp_path / "bundle", engine=engine) as session:
            found = session.encode(IDS, logits=True).logits
        assert found is not None
        assert np.abs(found - wanted).max() <= BOUND


def test_a_head_of_its_own(tmp_path: Path) -> None:
    model = random_albert(
        tmp_path / "model", AlbertForMaskedLM, tie_word_embeddings=False, num_hidden_layers=2
    )
    report = export_bundle(tmp_path / "model", tmp_path / "bundle", quant="none")
    assert not {
        name for name in report.unused if name != "predictions.bias"
    }  # which transformers adds nowhere
    with torch.no_grad():
        wanted = model(torch.from_numpy(IDS)).logits.numpy()
    for engine in ENGINES:
        with Session.open(tmp_path / "bundle", engine=engine) as session:
            assert not session.program.tied_embedding
            found = session.encode(IDS, logits=True).logits
            assert found is not None
            assert np.abs(found - wanted).max() <= BOUND


@pytest.mark.parametrize("quant", ["int8", "int4", "int8-channel"])
def test_codes(parity_folder: Path, tmp_path: Path, quant: str) -> None:
    """Held to the reference engine at export; both engines then encode alike."""
    export_bundle(parity_folder / PADDED, tmp_path / "bundle", quant=quant)
    found = []
    for engine in ENGINES:
        with Session.open(tmp_path / "bundle", engine=engine) as session:
            found.append(session.encode(IDS).mean)
    apart = (found[0] * found[1]).sum(1) / np.linalg.norm(found[0], axis=1) / np.linalg.norm(found[1], axis=1)
    assert apart.min() > 0.98  # measured 0.998: int8 activations


def test_a_shorter_context(parity_folder: Path, tmp_path: Path) -> None:
    export_bundle(parity_folder / PADDED, tmp_path / "bundle", quant="none", context=9)
    reference = load_file(parity_folder / PADDED / "reference.safetensors")
    with Session.open(tmp_path / "bundle") as session:
        assert session.encode(reference["input_ids"][:, :9]).states.shape == (2, 9, 32)
        with pytest.raises(ContextError, match="a text has 10 tokens, the model reads 9"):
            session.encode(reference["input_ids"][:, :10])


def test_a_package(parity_folder: Path, tmp_path: Path) -> None:
    """Core ML's functions read texts at once; in float16 here, as on a device."""
    export_bundle(parity_folder / PADDED, tmp_path / "bundle", targets=("coreml",), quant="none")
    reference = load_file(parity_folder / PADDED / "reference.safetensors")
    mask = reference["attention_mask"].astype(bool)
    texts, types = (
        [row[seen] for row, seen in zip(reference[name], mask, strict=True)]
        for name in ("input_ids", "token_type_ids")
    )
    with Session.open(tmp_path / "bundle", engine="coreml-reference") as session:
        found = session.encode(texts, types, logits=True).logits
    assert found is not None
    wanted = reference["logits_token_types"]
    assert np.abs(found - wanted)[mask].max() < 5e-3 * np.abs(wanted).max()


def without(name: str) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda tensors: tensors.pop(name)


BROKEN: dict[str, tuple[dict[str, Any], Callable[[dict[str, torch.Tensor]], object] | None, str]] = {
    "relative positions": (
        {"position_embedding_type": "relative_key"}, None,
        "position_embedding_type is 'relative_key', which is not supported",
    ),
    "groups": ({"num_hidden_groups": 3}, None, "num_hidden_groups is 3, and the weights have 2 groups"),
    "activation": ({"hidden_act": "mish"}, None, "hidden_act is 'mish'; wanted one of gelu"),
    "heads": ({"num_attention_heads": 5}, None, "hidden_size 64 is not a multiple of num_attention_heads 5"),
    "another key": ({"num_memory_blocks": 2}, None, "num_memory_blocks is 2, which is not supported"),
    "two biases": (
        {}, lambda t: t.update({"predictions.bias": t["predictions.bias"] + 1}),
        "predictions.bias and predictions.decoder.bias should be shared, but differ",
    ),
    "no head": (
        {}, lambda t: [t.pop(name) for name in list(t) if name.startswith("predictions")],
        "no tensor predictions",
    ),
    "no weight": (
        {}, without("albert.encoder.albert_layer_groups.1.albert_layers.0.ffn.bias"), "albert_layers.0.ffn.bias"
    ),
    "another layer": (
        {"inner_group_num": 1},
        lambda t: t.update({"albert.encoder.albert_layer_groups.0.albert_layers.1.ffn.bias": torch.zeros(96)}),
        "albert_layers.1.ffn.bias is part of a layer and not understood",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_refusals(parity_folder: Path, tmp_path: Path, case: str) -> None:
    changes, change, line = BROKEN[case]
    folder = Path(shutil.copytree(parity_folder / "albert_tiny", tmp_path / "model"))
    edit(folder / "config.json", **changes)
    if change is not None:
        edit_weights(folder, change)
    with pytest.raises(CheckpointError) as caught:
        read(folder)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nothing_is_left_over(parity_folder: Path) -> None:
    for name in ("albert_tiny", PADDED):
        checkpoint = Checkpoint.open(parity_folder / name)
        assert find_family(checkpoint).name == "albert"
        assert unused(checkpoint, read_checkpoint(checkpoint)) == []
