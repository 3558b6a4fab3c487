"""Reading folders of configs and weights, whole, sharded, damaged and hostile."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file, save_model

from edgeloop.export.checkpoint import Checkpoint
from edgeloop.runtime.errors import CheckpointError

Q = "model.layers.{}.self_attn.q_proj.weight"


def folder_of(path: Path, tensors: dict[str, torch.Tensor], binary: bool = False) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text("{}")
    if binary:
        torch.save(tensors, path / "pytorch_model.bin")
    else:
        save_file(tensors, path / "model.safetensors")
    return path


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_tensors_are_float32_copies(tmp_path: Path, binary: bool, dtype: torch.dtype) -> None:
    stored = torch.randn(3, 4).to(dtype)
    checkpoint = Checkpoint.open(folder_of(tmp_path, {"a": stored}, binary))
    tensor = checkpoint.tensor("a", (3, 4))
    assert tensor.dtype == torch.float32
    assert torch.equal(tensor, stored.float())
    tensor.zero_()
    assert torch.equal(checkpoint.tensor("a"), stored.float())


def test_transposed_storage_is_read_contiguous(tmp_path: Path) -> None:
    stored = torch.arange(6.0).reshape(2, 3)
    checkpoint = Checkpoint.open(
        folder_of(tmp_path, {"a": stored.T, "b": stored.T.contiguous()}, binary=True)
    )
    assert checkpoint.tensor("a").is_contiguous()
    assert torch.equal(checkpoint.tensor("a"), stored.T)
    assert checkpoint.same("a", "b")


def test_sharded_reads_as_whole(tiny: Callable[[str], Path]) -> None:
    whole, shards = Checkpoint.open(tiny("llama")), Checkpoint.open(tiny("llama-sharded"))
    assert whole.names == shards.names
    assert all(torch.equal(whole.tensor(n), shards.tensor(n)) for n in whole.names)
    assert shards.same(Q.format(1), Q.format(3))
    assert not shards.same(Q.format(1), Q.format(2))


def test_sharded_bin(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    for i in (1, 2):
        torch.save({f"t{i}": torch.full((2,), float(i))}, tmp_path / f"pytorch_model-{i}.bin")
    index = {"weight_map": {f"t{i}": f"pytorch_model-{i}.bin" for i in (1, 2)}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    checkpoint = Checkpoint.open(tmp_path)
    assert checkpoint.tensor("t2").tolist() == [2.0, 2.0]


def test_legacy_bin(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, {"a": torch.ones(2)})
    (folder / "model.safetensors").unlink()
    torch.save({"a": torch.ones(2)}, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert Checkpoint.open(folder).tensor("a").tolist() == [1.0, 1.0]


def test_ties(tmp_path: Path, parity_folder: Path) -> None:
    aliased = Checkpoint.open(parity_folder / "rec_middle_cycle")
    assert aliased.same(Q.format(1), Q.format(3))
    assert not aliased.same(Q.format(1), Q.format(2))
    assert not aliased.same("lm_head.weight", "model.embed_tokens.weight")
    a = torch.randn(8, 4)
    late = a.clone()
    late[-1, -1] += 1  # the first row is equal, the rest is not
    tensors = {"a": a, "copy": a.clone(), "late": late, "half": a.half(), "flat": a.reshape(-1).clone()}
    checkpoint = Checkpoint.open(folder_of(tmp_path, tensors))
    assert {n for n in tensors if checkpoint.same("a", n)} == {"a", "copy"}


def test_names_dropped_as_ties_by_save_model_are_there(tmp_path: Path) -> None:
    a, b = torch.nn.Linear(2, 2, bias=False), torch.nn.Linear(2, 2, bias=False)
    b.weight = a.weight
    (tmp_path / "config.json").write_text("{}")
    save_model(torch.nn.ModuleDict({"a": a, "b": b}), str(tmp_path / "model.safetensors"))
    checkpoint = Checkpoint.open(tmp_path)
    assert checkpoint.names == {"a.weight", "b.weight"}
    assert checkpoint.same("a.weight", "b.weight")
    assert torch.equal(checkpoint.tensor("b.weight"), a.weight.detach())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite(tmp_path: Path, value: float) -> None:
    checkpoint = Checkpoint.open(folder_of(tmp_path, {"w.x": torch.tensor([1.0, value])}))
    with pytest.raises(CheckpointError, match=r"w\.x holds NaN or infinite"):
        checkpoint.tensor("w.x")


def test_shape_dtype_and_absence(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(
        folder_of(tmp_path, {"a": torch.ones(2, 3), "i": torch.ones(2).to(torch.int8)})
    )
    with pytest.raises(CheckpointError, match=r"a has shape \[2, 3\].*says \[3, 2\]"):
        checkpoint.tensor("a", (3, 2))
    with pytest.raises(CheckpointError, match="no tensor gone"):
        checkpoint.tensor("gone")
    with pytest.raises(CheckpointError, match="i is stored as I8"):
        checkpoint.tensor("i")


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise SystemExit('code ran')",))


def _cut(path: Path, fraction: float = 0.5) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * fraction)])


def _no_config(p: Path) -> None:
    (p / "config.json").unlink()


def _bad_json(p: Path) -> None:
    (p / "config.json").write_text("{")


def _list_json(p: Path) -> None:
    (p / "config.json").write_text("[]")


def _deep_json(p: Path) -> None:
    (p / "config.json").write_text("[" * 100_000)


def _not_text(p: Path) -> None:
    (p / "config.json").write_bytes(b"\xff\xfe\x00")


def _bad_yaml(p: Path) -> None:
    (p / "conf.yaml").write_text("a: [")


def _unsafe_yaml(p: Path) -> None:
    (p / "conf.yaml").write_text("a: !!python/object/apply:os.getcwd []")


def _no_weights(p: Path) -> None:
    (p / "model.safetensors").unlink()


def _cut_weights(p: Path) -> None:
    _cut(p / "model.safetensors")


def _empty_weights(p: Path) -> None:
    (p / "model.safetensors").write_bytes(b"")


def _huge_header(p: Path) -> None:
    (p / "model.safetensors").write_bytes(b"\xff" * 64)


def _index(p: Path, shard: object) -> None:
    (p / "model.safetensors").rename(p / "s.safetensors")
    (p / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))


def _bin(p: Path, content: object) -> None:
    (p / "model.safetensors").unlink()
    torch.save(content, p / "pytorch_model.bin")


def _cut_bin(p: Path) -> None:
    _bin(p, {"a": torch.ones(1000)})
    _cut(p / "pytorch_model.bin")


def _pickle(p: Path) -> None:
    (p / "model.safetensors").unlink()
    (p / "pytorch_model.bin").write_bytes(pickle.dumps(Evil(), protocol=2))


DAMAGE: list[tuple[Callable[[Path], None], str]] = [
    (_no_config, "has no config.json"),
    (_bad_json, "config.json is not valid JSON"),
    (_list_json, "holds a JSON list"),
    (_deep_json, "config.json is not valid JSON"),
    (_not_text, "cannot be read as UTF-8"),
    (_bad_yaml, "conf.yaml is not valid YAML"),
    (_unsafe_yaml, "conf.yaml is not valid YAML"),
    (_no_weights, "has no weights"),
    (_cut_weights, "not a whole safetensors file"),
    (_empty_weights, "model.safetensors is empty"),
    (_huge_header, "not a whole safetensors file"),
    (lambda p: _index(p, "../other.safetensors"), "plain file name"),
    (lambda p: _index(p, "/etc/passwd"), "plain file name"),
    (lambda p: _index(p, ".."), "plain file name"),
    (lambda p: _index(p, 7), "lacks 7"),
    (lambda p: _index(p, "gone.safetensors"), "lacks gone.safetensors"),
    (_cut_bin, "cannot be opened as plain weights"),
    (_pickle, "cannot be opened as plain weights"),
    (lambda p: _bin(p, Evil()), "cannot be opened as plain weights"),
    (lambda p: _bin(p, [torch.ones(2)]), "holds a list"),
    (lambda p: _bin(p, {"a": 3}), "entry 'a' is a int"),
    (lambda p: _bin(p, {"a": torch.ones(1).expand(1 << 40)}), "holds fewer bytes"),
    (lambda p: _bin(p, {"a": torch.eye(3).to_sparse()}), "_rebuild_sparse_tensor"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGE)
def test_damage_is_one_clear_line(tmp_path: Path, damage: Callable[[Path], None], message: str) -> None:
    folder = folder_of(tmp_path, {"a": torch.ones(4, 4)})
    damage(folder)
    with pytest.raises(CheckpointError, match=message) as caught:
        Checkpoint.open(folder)
    assert "\n" not in str(caught.value)


def test_index_that_misplaces_a_tensor(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, {"a": torch.ones(2)})
    (folder / "model.safetensors").rename(folder / "s.safetensors")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"b": "s.safetensors"}}')
    with pytest.raises(CheckpointError, match=r"s\.safetensors has no tensor b"):
        Checkpoint.open(folder)


def test_not_a_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a folder"):
        Checkpoint.open(tmp_path / "gone")


def test_the_first_tensor_that_is_the_same(tmp_path: Path) -> None:
    """By all of their bytes: a first row alone, a shape or a dtype does not make two tensors one."""
    a, b = torch.ones(3, 2), torch.ones(3, 2)
    b[2, 1] = 2
    tensors = {"a": a, "b": b, "c": a.clone(), "d": a.half(), "e": a.reshape(2, 3).clone(), "f": b.clone()}
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    assert Checkpoint.open(tmp_path).first_same([*"abcdef", "a"]) == [0, 1, 0, 3, 4, 1, 0]
