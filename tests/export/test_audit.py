"""A bundle has no room for what nobody asked for: whatever is put into it is found, at its place."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from editing import relist
from msgspec.structs import replace
from onnx import TensorProto, helper
from safetensors.numpy import load_file, save_file

from edgeloop.apps.cli import main
from edgeloop.runtime.audit import audit
from edgeloop.runtime.bundle.manifest import read_manifest, write_manifest
from edgeloop.runtime.engines.executorch.flat import Flat
from edgeloop.runtime.errors import BundleError

PAYLOAD = b"something that nobody asked for"
BLOCK, WEIGHTS, TOKENIZER = "onnx/block.onnx", "onnx/weights.safetensors", "tokenizer.json"


@pytest.fixture
def folder(exported: Callable[..., Path], tmp_path: Path) -> Path:
    """Groups of 64 do not divide rows of 96: the weights have padding inside."""
    return Path(shutil.copytree(exported("edgeloop", "int4", 64), tmp_path / "bundle"))


def test_all_is_accounted_for(folder: Path) -> None:
    found = audit(folder)
    assert found.findings == ()
    sizes = {p.relative_to(folder).as_posix(): p.stat().st_size for p in folder.rglob("*") if p.is_file()}
    assert {file.file: file.bytes for file in found.files} == sizes
    for file in found.files:
        assert sum(file.kinds.values()) == file.bytes


def test_heads_are_accounted_for(exported: Callable[..., Path]) -> None:
    found = audit(exported("mor-expert", "int8"))
    assert found.findings == ()
    assert "heads.safetensors" in {file.file for file in found.files}


def findings(folder: Path, file: str) -> list[tuple[int, int, str]]:
    found = audit(folder).findings
    assert {finding.file for finding in found} == {file}
    return [(finding.start, finding.bytes, finding.what) for finding in found]


def test_files_that_the_manifest_does_not_name(folder: Path) -> None:
    (folder / "onnx" / "deeper").mkdir()
    (folder / "onnx" / "deeper" / "payload").write_bytes(PAYLOAD)
    (folder / "link").symlink_to(folder.parent, target_is_directory=True)
    os.mkfifo(folder / "pipe")
    found = {finding.file: finding for finding in audit(folder).findings}
    assert set(found) == {"onnx/deeper/payload", "link", "pipe"}
    assert found["onnx/deeper/payload"].bytes == len(PAYLOAD)


def test_a_file_that_is_listed_and_of_no_use(folder: Path) -> None:
    (folder / "payload").write_bytes(PAYLOAD)
    relist(folder, "payload")
    assert findings(folder, "payload") == [(0, len(PAYLOAD), "no part of the bundle uses this file")]


def test_a_table_that_no_layout_describes(folder: Path) -> None:
    (folder / "table.bin").write_bytes(PAYLOAD)
    manifest = read_manifest(folder)
    flat = replace(
        manifest.targets["onnx"],
        graphs={"model": "table.bin"},
        weights="table.bin",
        details=Flat({}, 1),
    )
    write_manifest(folder, replace(manifest, targets={**manifest.targets, "executorch-flat": flat}))
    relist(folder, "table.bin")
    assert findings(folder, "table.bin") == [(0, len(PAYLOAD), "nothing in the file refers to it")]


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text + " " * 100,
        lambda text: text.replace("{", "{ \n", 1),
        lambda text: text.replace('"format"', '"format": 1,\n "format"', 1),
        lambda text: text.replace('"parameters"', '"exits": {},\n "exits": {},\n "parameters"', 1),
    ],
    ids=["blanks behind it", "blanks inside", "a key twice", "another key twice"],
)
def test_a_manifest_with_more_in_it(folder: Path, change: Callable[[str], str]) -> None:
    path = folder / "manifest.json"
    before = path.read_text()
    path.write_text(change(before))
    ((start, size, what),) = findings(folder, "manifest.json")
    assert what == "not as edgeloop writes a manifest"
    assert size > 0
    assert start + size <= path.stat().st_size


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda t: {**t, "model": {**t["model"], "note": "x"}}, r"$.model.note, which"),
        (
            lambda t: {**t, "added_tokens": [{**t["added_tokens"][0], "note": "x"}, *t["added_tokens"][1:]]},
            r"$.added_tokens[0].note, which",
        ),
    ],
)
def test_a_tokenizer_with_more_in_it(folder: Path, change: Callable[..., object], told: str) -> None:
    path = folder / TOKENIZER
    path.write_text(json.dumps(change(json.loads(path.read_text())), ensure_ascii=False))
    relist(folder, TOKENIZER)
    ((start, size, what),) = findings(folder, TOKENIZER)
    assert what.startswith(told)
    assert size > 0
    assert path.read_bytes()[start : start + 1] == b'"'


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda text: text.replace('"version"', '"version": "secret", "version"', 1),
            "key 'version' more than once",
        ),
        (lambda text: text.replace('"version"', '"payload": "secret", "version"', 1), "no tokenizer"),
        (lambda text: text + "\n" * 500, "blanks"),
        (lambda text: text + PAYLOAD.decode(), "no tokenizer"),
    ],
)
def test_a_tokenizer_that_says_more(folder: Path, change: Callable[[str], str], told: str) -> None:
    path = folder / TOKENIZER
    path.write_text(change(path.read_text()))
    relist(folder, TOKENIZER)
    assert any(what.startswith(told) for _, _, what in findings(folder, TOKENIZER))


def header_of(path: Path) -> tuple[int, dict[str, dict[str, object]]]:
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    return size, json.loads(data[8 : 8 + size])


def rewrite_header(path: Path, text: bytes) -> None:
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    path.write_bytes(data[:8] + text.ljust(size) + data[8 + size :])


def test_bytes_behind_the_tensors(folder: Path) -> None:
    path = folder / WEIGHTS
    size = path.stat().st_size
    path.write_bytes(path.read_bytes() + PAYLOAD)
    relist(folder, WEIGHTS)
    assert findings(folder, WEIGHTS) == [(size, len(PAYLOAD), "nothing in the file refers to it")]


def test_bytes_behind_the_header(folder: Path) -> None:
    path = folder / WEIGHTS
    size, _ = header_of(path)
    data = bytearray(path.read_bytes())
    data[8 + size - len(PAYLOAD) : 8 + size] = PAYLOAD
    path.write_bytes(data)
    relist(folder, WEIGHTS)
    ((start, length, what),) = findings(folder, WEIGHTS)
    assert what == "a header with something behind its end"
    assert start + length == 8 + size


def test_a_tensor_that_the_model_does_not_have(folder: Path) -> None:
    path = folder / WEIGHTS
    save_file({**load_file(path), "payload": np.frombuffer(PAYLOAD, np.uint8)}, path)
    relist(folder, WEIGHTS)
    ((start, size, what),) = findings(folder, WEIGHTS)
    assert what == "tensor payload, which the model does not have"
    assert path.read_bytes()[start : start + size] == PAYLOAD


@pytest.mark.parametrize("name", ["norm.weight", "embed.scales"])
def test_a_tensor_that_is_larger_than_the_models(folder: Path, name: str) -> None:
    path = folder / WEIGHTS
    tensors = load_file(path)
    tensors[name] = np.concatenate((tensors[name], tensors[name]))
    save_file(tensors, path)
    relist(folder, WEIGHTS)
    ((_, size, what),) = findings(folder, WEIGHTS)
    assert size == tensors[name].nbytes
    assert what.startswith(f"tensor {name}, which is F")


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('"data_offsets":[', '"data_offsets":[1e999,', "a header that cannot be read"),
        ('"shape":[', '"shape":[1e999,', "a header that cannot be read"),
        ('"dtype":"U8"', '"dtype":"F32"', "tensor "),
    ],
)
def test_a_header_with_other_numbers(folder: Path, old: str, new: str, told: str) -> None:
    path = folder / WEIGHTS
    _, header = header_of(path)
    rewrite_header(path, json.dumps(header, separators=(",", ":")).replace(old, new, 1).encode())
    relist(folder, WEIGHTS)
    assert any(what.startswith(told) for _, _, what in findings(folder, WEIGHTS))


def test_a_tokenizer_that_says_everything_twice(folder: Path) -> None:
    """In a time that grows with the file: the test would not end in an hour."""
    path = folder / TOKENIZER
    keys = "".join(f'"key {i // 2}": 1, ' for i in range(400_000))
    path.write_text(path.read_text().replace('"vocab": {', '"vocab": {' + keys, 1))
    relist(folder, TOKENIZER)
    assert "more than once" in findings(folder, TOKENIZER)[0][2]


def test_metadata_of_a_header(folder: Path) -> None:
    path = folder / WEIGHTS
    save_file(load_file(path), path, metadata={"note": PAYLOAD.decode()})
    relist(folder, WEIGHTS)
    ((_, size, what),) = findings(folder, WEIGHTS)
    assert what == "metadata of the header"
    assert size > len(PAYLOAD)


def test_a_header_that_says_a_tensor_twice(folder: Path) -> None:
    path = folder / WEIGHTS
    _, header = header_of(path)
    text = json.dumps(header, separators=(",", ":"))
    rewrite_header(path, text.replace("{", '{"norm.weight":{"note":1},', 1).encode())
    relist(folder, WEIGHTS)
    assert "a header with more in it" in findings(folder, WEIGHTS)[0][2]


def test_codes_behind_the_last_column(folder: Path) -> None:
    path = folder / WEIGHTS
    tensors = load_file(path)
    name = next(n for n in tensors if n.endswith("down_proj.codes"))  # 96 columns in groups of 64
    tensors[name][0, -1, -1] ^= 0x11
    save_file(tensors, path)
    relist(folder, WEIGHTS)
    ((_, _, what),) = findings(folder, WEIGHTS)
    assert what == f"tensor {name} has values behind its last column"


def noted(model: onnx.ModelProto) -> str:
    model.graph.node[3].doc_string = PAYLOAD.decode()
    return "doc_string of Node, which engines do not read"


def with_properties(model: onnx.ModelProto) -> str:
    model.metadata_props.add(key="note", value=PAYLOAD.decode())
    return "metadata_props of Model, which engines do not read"


def with_a_constant(model: onnx.ModelProto) -> str:
    values = np.frombuffer(PAYLOAD, np.uint8)
    model.graph.initializer.append(helper.make_tensor("payload", TensorProto.UINT8, values.shape, values))
    return "constant payload, which no operator uses"


def with_an_operator(model: onnx.ModelProto) -> str:
    values = helper.make_tensor("v", TensorProto.UINT8, [len(PAYLOAD)], list(PAYLOAD))
    model.graph.node.insert(0, helper.make_node("Constant", [], ["payload"], value=values))
    return "operator Constant, whose results nothing uses"


def with_a_long_name(model: onnx.ModelProto) -> str:
    model.graph.node[0].name = "x" * 1000
    return "name of Node, longer than 256 bytes"


def with_two_kinds_of_numbers(model: onnx.ModelProto) -> str:
    tensor = next(t for t in model.graph.initializer if t.raw_data)
    tensor.int64_data.extend(PAYLOAD)
    return "a tensor with numbers in raw_data and int64_data"


def with_a_longer_constant(model: onnx.ModelProto) -> str:
    tensor = next(t for t in model.graph.initializer if t.raw_data)
    size = len(tensor.raw_data)
    tensor.raw_data += PAYLOAD
    return f"a tensor of {size} bytes, written in others"


def with_numbers_behind_the_shape(model: onnx.ModelProto) -> str:
    tensor = next(t for t in model.graph.initializer if t.raw_data and t.data_type == TensorProto.INT64)
    values = onnx.numpy_helper.to_array(tensor).reshape(-1)
    tensor.ClearField("raw_data")
    tensor.int64_data.extend([*values.tolist(), *PAYLOAD])
    return f"a tensor of {len(values)} numbers, written as {len(values) + len(PAYLOAD)}"


def with_texts(model: onnx.ModelProto) -> str:
    tensor = next(t for t in model.graph.initializer if t.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_type = TensorProto.STRING
    tensor.string_data.append(PAYLOAD)
    return "a tensor of texts"


def with_a_function(model: onnx.ModelProto) -> str:
    model.functions.add(name=PAYLOAD.decode(), domain="d")
    return "functions of Model: graphs inside of graphs are not looked into"


def with_a_shape(model: onnx.ModelProto) -> str:
    model.graph.value_info.append(helper.make_tensor_value_info(PAYLOAD.decode(), 1, [1]))
    return f"the shape of {PAYLOAD.decode()}, which is not in the graph"


@pytest.mark.parametrize(
    "change",
    [
        noted,
        with_properties,
        with_a_constant,
        with_an_operator,
        with_a_long_name,
        with_two_kinds_of_numbers,
        with_a_longer_constant,
        with_numbers_behind_the_shape,
        with_texts,
        with_a_function,
        with_a_shape,
    ],
)
def test_a_graph_with_more_in_it(folder: Path, change: Callable[[onnx.ModelProto], str]) -> None:
    path = folder / BLOCK
    model = onnx.load(path, load_external_data=False)
    told = change(model)
    path.write_bytes(model.SerializeToString())
    relist(folder, BLOCK)
    assert told in [what for _, _, what in findings(folder, BLOCK)]


@pytest.mark.parametrize(
    ("field", "told"),
    [
        (b"\xfa\x3f" + bytes([len(PAYLOAD)]) + PAYLOAD, "field 1023 of Model, which is not known"),
        (b"\x12" + bytes([len(PAYLOAD)]) + PAYLOAD, "a second producer_name of Model"),
        (b"\x0a\x01x", "ir_version of Model, written as something else"),
    ],
)
def test_fields_that_are_not_known_or_come_twice(folder: Path, field: bytes, told: str) -> None:
    path = folder / BLOCK
    size = path.stat().st_size
    path.write_bytes(path.read_bytes() + field)
    relist(folder, BLOCK)
    assert (size, len(field), told) in findings(folder, BLOCK)


def test_a_graph_that_is_none(folder: Path) -> None:
    (folder / BLOCK).write_bytes(PAYLOAD)
    relist(folder, BLOCK)
    ((start, size, what),) = findings(folder, BLOCK)
    assert (start, size) == (0, len(PAYLOAD))
    assert what.startswith("no ONNX graph: ")


def test_a_damaged_bundle_is_not_accounted_for(folder: Path) -> None:
    (folder / BLOCK).write_bytes(PAYLOAD)
    with pytest.raises(BundleError, match="the manifest says"):
        audit(folder)


def test_the_verb(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", str(folder)]) == 0
    assert "files are accounted for" in capsys.readouterr().out
    (folder / "payload").write_bytes(PAYLOAD)
    assert main(["audit", str(folder)]) == 1
    out, err = capsys.readouterr()
    assert "the manifest does not name this file" in out
    assert err.count("\n") == 1
    assert f"{len(PAYLOAD)} bytes in 1 places are not accounted for" in err
    assert main(["audit", str(folder), "--json"]) == 1
    out, _ = capsys.readouterr()
    report = json.loads(out)
    assert report["unaccounted_bytes"] == len(PAYLOAD)
    assert {
        "file": "payload",
        "start": 0,
        "bytes": len(PAYLOAD),
        "what": "the manifest does not name this file",
    } in [finding for file in report["files"] for finding in file["findings"]]
