"""Huginn: what its authors' code computes, at several depths and cached, on the engines; and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from editing import edit, edit_weights, read
from plain_decoding import Plain
from safetensors.numpy import load_file

from edgeloop.export.family import Reading
from edgeloop.runtime.decode.exits import ExitRule
from edgeloop.runtime.errors import CheckpointError, UsageError
from edgeloop.runtime.model.checks import problems
from edgeloop.runtime.model.facts import LayerRun, runs
from edgeloop.runtime.model.stored import read_tensors
from edgeloop.runtime.session import Session

ENGINES = ("onnx", "reference", "native")
NAME = "huginn_tiny"
F32 = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def authors(checkpoint: Callable[[str], Path]) -> dict[str, npt.NDArray[Any]]:
    """The authors' logits [S, V] by their names, and the ``input_ids`` [S]."""
    return {name: array[0] for name, array in load_file(checkpoint(NAME) / "reference.safetensors").items()}


@pytest.fixture
def copy(checkpoint: Callable[[str], Path], tmp_path: Path) -> Path:
    """A checkpoint to change."""
    return Path(shutil.copytree(checkpoint(NAME), tmp_path / NAME))


def decoded(session: Session, ids: npt.NDArray[np.int64]) -> F32:
    """Logits [S, V] as the authors' cached decode makes them: a prompt of nine tokens, then one by one."""
    with session:
        loop = session._start(len(ids))
        parts = [loop.prompt(ids[:9], "all").copy()]
        parts += [loop.prompt(ids[i : i + 1]).copy() for i in range(9, len(ids))]
    return np.concatenate(parts)


def test_the_program(reading: Callable[[str], Reading]) -> None:
    program = reading(NAME).program
    assert not list(problems(program))
    assert runs(program) == [LayerRun(2, 1), LayerRun(4, 5), LayerRun(2, 1)]
    assert (program.depths, program.width, program.kv_slots, program.tied_embedding) == (5, 128, 5, True)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_authors_logits(
    exported: Callable[..., Path], authors: dict[str, npt.NDArray[Any]], engine: str
) -> None:
    with Session.open(exported(NAME), engine=engine) as session:
        found = session.logits(authors["input_ids"])
    np.testing.assert_allclose(found, authors["logits_full_r5"], atol=2e-5)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("kv", "name"), [(None, "full"), ("last", "latest-m4-compress-s4"), ("last-2", "latest-m4-compress-s8")]
)
def test_the_authors_cached_decode(
    exported: Callable[..., Path],
    authors: dict[str, npt.NDArray[Any]],
    engine: str,
    kv: str | None,
    name: str,
) -> None:
    """With K and V of every depth, which is the full forward again, and with one slot that every depth writes, or two
    that they take in turn."""
    found = decoded(Session.open(exported(NAME), engine=engine, kv=kv), authors["input_ids"])
    np.testing.assert_allclose(found, authors[f"logits_incr_{name}"], atol=2e-5)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("stops", [(5, 5, 5, 5, 5), (5, 2, 3, 1, 5)])
@pytest.mark.parametrize("kv", ["last", "last-2", "last-4"])
def test_slots_that_depths_take_in_turn(
    exported: Callable[..., Path],
    authors: dict[str, npt.NDArray[Any]],
    engine: str,
    kv: str,
    stops: tuple[int, ...],
) -> None:
    """As a plain forward has it: rows stay until a depth of the same slot writes them; of a token that left before a
    slot's first depth they are its last ones.
    """
    ids = authors["input_ids"].astype(np.int64)
    with Session.open(exported(NAME), engine=engine, exit="depth:5", kv=kv) as session:
        loop = session._start(len(ids))
        found = [loop.prompt(ids[:9]).copy()[0]]
        stored = read_tensors(session.bundle.path(session.bundle.manifest.targets["onnx"].weights))
        plain = Plain(session.program, stored, {}, "depth:5", kv, "shared")
        wanted = [plain.prompt(ids[:9].tolist())[0]]
        for position, stop in enumerate(stops, 9):
            loop.sequence.rule = ExitRule("depth", stop)
            plain.numbers = [stop]
            found.append(loop.step(int(ids[position])).copy()[0])
            wanted.append(plain.step(int(ids[position]), position)[0])
    np.testing.assert_allclose(found, wanted, atol=2e-5)


@pytest.mark.parametrize(
    ("name", "advice"), [("always-last-m4", "it is not there"), ("full", "give --kv per-depth")]
)
def test_lookups_by_their_authors_names(exported: Callable[..., Path], name: str, advice: str) -> None:
    with pytest.raises(UsageError, match=f"'{name}' is a lookup of Huginn's cache: {advice}"):
        Session.open(exported(NAME), kv=name)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["latest-m4", "available-m4"])
def test_the_authors_decode_with_a_depth_for_each_token(
    exported: Callable[..., Path], authors: dict[str, npt.NDArray[Any]], engine: str, name: str
) -> None:
    """What a token sees of one that stopped earlier is of the last depth that it ran."""
    ids, depths = authors["input_ids"], (5, 2, 3, 1, 5)
    with Session.open(exported(NAME), engine=engine, exit="depth:5", skipped_kv="latest") as session:
        loop = session._start(len(ids))
        parts, ran = [loop.prompt(ids[:9], "all").copy()], []
        for token, depth in zip(ids[9:], depths, strict=True):
            loop.sequence.rule = ExitRule("depth", depth)
            parts.append(loop.step(int(token)).copy())
            ran.append(loop.depth)
    assert tuple(ran) == depths
    np.testing.assert_allclose(np.concatenate(parts), authors[f"logits_vardepth_5-2-3-1-5_{name}"], atol=2e-5)


def test_without_biases_and_with_a_head_of_its_own(
    copy: Path, reading: Callable[[str], Reading], tmp_path: Path
) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name in [n for n in tensors if n.endswith("qk_bias")]:
            del tensors[name]
        tensors["lm_head.weight"] += 1

    edit_weights(copy, change)
    edit(copy / "config.json", qk_bias=False, tie_embeddings=False)
    found = read(copy)
    assert not list(problems(found.program))
    assert not found.program.tied_embedding
    assert torch.equal(found.tensors["head.weight"](), reading(NAME).tensors["embed.weight"]() + 1)
    assert set(reading(NAME).tensors) - set(found.tensors) == {
        name for name in reading(NAME).tensors if name.endswith(".bias")
    }


def test_v_has_no_bias(reading: Callable[[str], Reading], checkpoint: Callable[[str], Path]) -> None:
    found = reading(NAME).tensors
    stored = load_file(checkpoint(NAME) / "model.safetensors")["transformer.core_block.3.attn.qk_bias"]
    for side, wanted in zip("qkv", (*stored, np.zeros(64)), strict=True):
        np.testing.assert_array_equal(found[f"core_block.3.{side}_proj.bias"](), wanted.flatten())


def test_numbers_that_the_authors_code_derives(copy: Path, reading: Callable[[str], Reading]) -> None:
    config = json.loads((copy / "config.json").read_text())
    for key in ("init_values", "padded_vocab_size", "head_dim", "num_key_value_heads"):
        del config[key]
    (copy / "config.json").write_text(json.dumps(config))
    assert read(copy).program == reading(NAME).program


REFUSALS: list[tuple[dict[str, Any], str]] = [
    ({"block_class_name": "PreNormBlock"}, "block_class_name is 'PreNormBlock'"),
    ({"injection_type": "add"}, "injection_type is 'add', which is not supported"),
    ({"state_init": "embed"}, "state_init is 'embed'"),
    ({"nonlin_name": "GELU"}, "nonlin_name"),
    ({"mlp_class_name": "BaseMLP"}, "mlp_class_name"),
    ({"norm_class_name": "LayerNorm"}, "norm_class_name"),
    ({"test_time_noise": 0.1}, "test_time_noise is 0.1"),
    ({"bias": True}, "bias is True"),
    ({"rope_theta": 5e5}, "rope_theta is 500000.0, and this family does not know the key"),
    ({"use_fused_attn_norm": True}, "use_fused_attn_norm"),
    ({"num_key_value_heads": 2}, "num_key_value_heads is 2, .* wanted 4"),
    ({"head_dim": 32}, "head_dim is 32"),
    ({"n_heads": 3}, "n_embd 64 with n_heads 3"),
    ({"mean_recurrence": 5000}, "5000 depths"),
    ({"mean_recurrence": 0}, "mean_recurrence is 0"),
    ({"n_layers_in_coda": 1}, r"coda\.1\.attn\.Wqkv\.weight is part of a layer and not understood"),
    ({"n_layers_in_coda": 3}, r"coda\.2"),
    ({"init_values": [1]}, "init_values is"),
    ({"rope_base": 10000.0}, "freqs_cis holds other rotations than those of rope_base 10000"),
    ({"qk_bias": False}, "qk_bias is part of a layer and not understood"),
    ({"intermediate_size": 64}, r"mlp\.fc\.weight has shape"),
]


@pytest.mark.parametrize(("keys", "match"), REFUSALS)
def test_what_is_not_understood_is_refused(copy: Path, keys: dict[str, Any], match: str) -> None:
    edit(copy / "config.json", **keys)
    with pytest.raises(CheckpointError, match=match):
        read(copy)
