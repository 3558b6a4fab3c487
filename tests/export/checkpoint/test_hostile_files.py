"""Files of a stranger: what they may cost, and that nothing in them is read as other numbers."""

from __future__ import annotations

import json
import pickle
import resource
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from edgeloop.export.checkpoint.safetensors_file import SafetensorsFile
from edgeloop.export.checkpoint.torch_file import TorchFile
from edgeloop.export.checkpoint.yaml_file import parse_yaml
from edgeloop.runtime.errors import CheckpointError

GIGA = b"\x8a\x05\x00\xf2\x05\x2a\x01"  # LONG1 5,000,000,000
STORAGE = (
    b"((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu%stQ"
    b"K\x00K\x02\x85K\x01\x85\x89}tR"
)
A = b"X\x01\x00\x00\x00a"  # the string "a"
TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n" + STORAGE
"""A tensor of two numbers, in a storage whose size is filled in."""


def _zip(path: Path, content: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", content)
        archive.writestr("a/byteorder", "little")
        archive.writestr("a/version", "3\n")
        archive.writestr("a/data/0", bytes(8))


def _legacy(path: Path, content: bytes) -> None:
    """The format before torch 1.6: magic, version, system, the object, the storages' keys, the storages."""
    head = [pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    content = content.replace(b"tQ", b"NtQ")  # no view
    path.write_bytes(b"".join([*head, content, pickle.dumps(["0"], 2), struct.pack("<q", 2), bytes(8)]))


PICKLES: list[tuple[bytes, str]] = [
    (b"\x80\x02}X\x01\x00\x00\x00acbuiltins\nbytearray\n" + GIGA + b"\x85Rs.", "names builtins.bytearray"),
    (b"\x80\x02c_codecs\nencode\n.", "names _codecs.encode"),
    (b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00id\x85R.", "names os.system"),
    (b"\x80\x02]r\xff\xff\xff\x7f.", "remembers entry 2147483647"),
    (b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x00.", "is damaged"),
    (b"\x80\x04\x8f.", "operation EMPTY_SET"),
    (b"\x80\x02]q\x00(" + b"h\x00" * 9 + b"lq\x01.", "operation LIST"),
    (b"\x80\x02ccollections\nOrderedDict\n]\x85R.", "builds an OrderedDict from a list"),
    (b"\x80\x02X\x01\x00\x00\x00aQ.", "refers to 'a', which is no storage"),
    (b"\x80\x02}" + A + TENSOR % GIGA + b"s.", "storage '0' .* 20000000000 bytes|5000000000 numbers"),
    (b"\x80\x02}" + A + TENSOR % b"J\xff\xff\xff\xff" + b"s.", "storage '0' has -1 numbers"),
    (b"\x80\x02}(" + A + TENSOR % b"K\x02" + A + TENSOR % b"K\x03" + b"u.", "two sizes"),
]  # fmt: skip


@pytest.mark.parametrize("write", [_zip, _legacy])
@pytest.mark.parametrize(("content", "message"), PICKLES)
def test_a_pickle_is_refused_before_torch_reads_it(
    tmp_path: Path, write: Callable[[Path, bytes], None], content: bytes, message: str
) -> None:
    path = tmp_path / "pytorch_model.bin"
    write(path, content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError, match=message) as caught:
        TorchFile(path)
    assert "\n" not in str(caught.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10  # kB


@pytest.mark.parametrize("write", [_zip, _legacy])
def test_the_same_files_are_read_where_they_say_the_truth(
    tmp_path: Path, write: Callable[[Path, bytes], None]
) -> None:
    """So that the refusals above are for what is written there, and not for how these tests write files."""
    path = tmp_path / "pytorch_model.bin"
    write(path, b"\x80\x02}" + A + TENSOR % b"K\x02" + b"s.")
    assert TorchFile(path).read("a").tolist() == [0.0, 0.0]


@pytest.mark.parametrize("zipped", [True, False])
def test_what_torch_reads_is_what_is_read(tmp_path: Path, zipped: bool) -> None:
    torch.manual_seed(0)
    base = torch.randn(6, 4)
    layer = torch.nn.Linear(3, 2)
    tensors = {
        "a": base, "rows": base[2:4], "t": base.T, "half": base.half(), "bf16": base.bfloat16(), "empty": base[:0],
        "scalar": torch.tensor(2.0), "int": torch.arange(3), "parameter": layer.weight, "alias": base,
        "bool": torch.tensor([True]),
    }  # fmt: skip
    if zipped:  # torch cannot read its own older format with this
        tensors["f8"] = base.to(torch.float8_e4m3fn)
    path = tmp_path / "pytorch_model.bin"
    for state in (tensors, layer.state_dict()):
        torch.save(state, path, _use_new_zipfile_serialization=zipped)
        file, theirs = TorchFile(path), torch.load(path, weights_only=True)
        assert file.names == set(theirs)
        for name, tensor in theirs.items():
            assert file.shape(name) == tuple(tensor.shape)
            assert file.read(name).dtype == tensor.dtype
            assert torch.equal(file.read(name).float(), tensor.float())
    torch.save(tensors, path, _use_new_zipfile_serialization=zipped)
    again = TorchFile(path)
    assert again.storage("a") == again.storage("alias") != again.storage("t")


def _saved(path: Path) -> Path:
    torch.manual_seed(0)
    torch.save({f"t{i}": torch.randn(30, 40) for i in range(9)}, path)
    return path


def _rezip(path: Path, method: int = zipfile.ZIP_STORED, twice: bool = False, comment: bytes = b"") -> None:
    with zipfile.ZipFile(path) as archive:
        records = {i.filename: archive.read(i) for i in archive.infolist()}
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in records.items():
            archive.writestr(name, content)
        if twice:
            with pytest.warns(UserWarning, match="Duplicate"):
                archive.writestr(next(n for n in records if n.endswith("data/0")), bytes(4800))
        archive.comment = comment


def _without(path: Path, part: str) -> None:
    with zipfile.ZipFile(path) as archive:
        records = {i.filename: archive.read(i) for i in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in records.items():
            if not name.endswith(part):
                archive.writestr(name, content)


def _patch_directory(path: Path, at: int, value: int) -> None:
    """Overwrite four bytes of the directory's entry of the last record of numbers."""
    data = bytearray(path.read_bytes())
    entry = data.rfind(b"PK\x01\x02", 0, data.rfind(b"data/8"))
    data[entry + at : entry + at + 4] = struct.pack("<I", value)
    path.write_bytes(data)


BOMB = b"\x80\x02}X\x01\x00\x00\x00acbuiltins\nbytearray\nJ\x00\x00\x00\x10\x85Rs."
"""A pickle that takes 256 MB."""


def _other_case(path: Path) -> None:
    """A second data.pkl, which torch finds and a reader that looks at the case does not."""
    with zipfile.ZipFile(path, "a") as archive:
        pickle = next(n for n in archive.namelist() if n.endswith("data.pkl"))
        archive.writestr(pickle.replace("data.pkl", "DATA.PKL"), BOMB)


def _two_directories(path: Path, long: bool = True) -> None:
    """The end of the archive leads to another directory, in which data.pkl is the bomb; Python finds the first."""
    with zipfile.ZipFile(path, "a") as archive:
        folder = archive.namelist()[0].split("/")[0]
        archive.writestr(f"{folder}/bomb", BOMB)
        archive.writestr(f"{folder}/room", bytes(8192))
        bomb, count = archive.getinfo(f"{folder}/bomb"), len(archive.namelist())
        start = archive.start_dir
    data = bytearray(path.read_bytes())
    ends = data.rfind(b"PK\x05\x06")
    size = struct.unpack_from("<I", data, ends + 12)[0]
    directory = data[start : start + size]
    entry = directory.rfind(b"PK\x01\x02", 0, directory.rfind(b"data.pkl"))
    struct.pack_into("<III", directory, entry + 16, bomb.CRC, len(BOMB), len(BOMB))
    struct.pack_into("<I", directory, entry + 42, bomb.header_offset)
    room = data.find(bytes(8192))

    def end(at: int) -> bytes:
        return struct.pack("<4sQHHIIQQQQ", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, size, at)

    other = end(room + 56) + directory
    data[room : room + len(other)] = other
    tail = end(start) + struct.pack("<4sIQI", b"PK\x06\x07", 0, room, 1) if long else b""
    short = (-1, -1, -1, -1) if long else (count, count, size, room + 56)
    mask = 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF
    fields = (value & m for value, m in zip(short, mask, strict=True))
    path.write_bytes(data[:ends] + tail + struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, *fields, 0))


ARCHIVES: list[tuple[Callable[[Path], Any], str]] = [
    (lambda p: _rezip(p, zipfile.ZIP_DEFLATED), "data.pkl' is compressed"),
    (lambda p: _rezip(p, zipfile.ZIP_LZMA), "is compressed"),
    (lambda p: _rezip(p, twice=True), "two records 'data/0'"),
    (_other_case, "two records 'data.pkl'"),
    (_two_directories, "with other bytes around it"),
    (lambda p: _two_directories(p, long=False), "with other bytes around it"),
    (lambda p: _rezip(p, comment=b"PK\x05\x06"), "with other bytes around it|damaged"),
    (lambda p: _without(p, "data.pkl"), "without data.pkl"),
    (lambda p: _without(p, "data/3"), "storage '3' has 4800 bytes, and 0 are there"),
    (lambda p: _patch_directory(p, 42, 64), "record .*data/8' that is not there|overlap"),
    (lambda p: _patch_directory(p, 42, 0), "overlap"),
    (lambda p: _patch_directory(p, 42, 1 << 30), "not there|damaged"),
    (lambda p: _patch_directory(p, 20, 1 << 30), "not there|overlap"),
    (lambda p: _patch_directory(p, 24, 1 << 30), "not there|overlap"),
    (lambda p: p.write_bytes(p.read_bytes()[:-9]), "damaged"),
    (lambda p: p.write_bytes(p.read_bytes()[:9000]), "damaged"),
]


@pytest.mark.parametrize(("damage", "message"), ARCHIVES)
def test_an_archive_that_is_not_what_torch_writes(
    tmp_path: Path, damage: Callable[[Path], Any], message: str
) -> None:
    path = _saved(tmp_path / "pytorch_model.bin")
    damage(path)
    with pytest.raises(CheckpointError, match=message) as caught:
        TorchFile(path)
    assert "\n" not in str(caught.value)


def test_an_archive_stored_again_is_read(tmp_path: Path) -> None:
    path = _saved(tmp_path / "pytorch_model.bin")
    wanted = torch.load(path, weights_only=True)
    _rezip(path)
    file = TorchFile(path)
    assert all(torch.equal(file.read(name), tensor) for name, tensor in wanted.items())


def test_a_cut_legacy_file(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    torch.save({"a": torch.ones(100)}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(CheckpointError, match="has 400 bytes, and 360 are there"):
        TorchFile(path)


def _laughs(depth: int = 30) -> str:
    lines = ["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, depth)]
    return "\n".join(lines)


YAMLS: list[tuple[str, str]] = [
    (_laughs(), "more than 20000 values, aliases"),
    (_laughs().replace("[", "{k: ").replace(", ", ", l: ").replace("]", "}"), "aliases"),
    ("base: &b {x: &c [*b]}", "aliases"),
    ("a: &a {k: 0, l: 1}\n" + "\n".join(f"b{i}: {{<<: [{', '.join(['*a'] * 900)}]}}" for i in range(30)), "aliases"),
    ("x: 0\n" * 100_000, "500000 characters of YAML"),
    ("a: " + "[" * 5000, "not valid YAML"),
    ("a: " + "{a: " * 5000, "not valid YAML"),
    ("a: " + "1" * 5000, "not valid YAML"),
    ("a: 2001-99-99", "not valid YAML"),
    ("a: 1\n---\nb: 2", "not valid YAML"),
    ("a: &x 1\nb: *y", "not valid YAML"),
    ("", "holds a YAML NoneType"),
    ("- 1", "holds a YAML list"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), YAMLS)
def test_yaml_that_is_refused(text: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        parse_yaml(text, Path("conf.yaml"))
    assert "\n" not in str(caught.value)


def test_yaml_with_honest_aliases() -> None:
    text = "a: &a {lr: 1.0, list: &l [q_proj, v_proj]}\nb:\n  <<: *a\n  lr: 2.0\nc: *l"
    assert parse_yaml(text, Path("conf.yaml")) == {
        "a": {"lr": 1.0, "list": ["q_proj", "v_proj"]},
        "b": {"lr": 2.0, "list": ["q_proj", "v_proj"]},
        "c": ["q_proj", "v_proj"],
    }


def _header(path: Path, header: bytes, data: bytes = bytes(16)) -> None:
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)


def _entry(start: int, stop: int, shape: object = (2,), dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


FIRST, SECOND = _entry(0, 8), _entry(8, 16)
HEADERS: list[tuple[dict[str, Any] | bytes, str]] = [
    (b'{"a": %b, "a": %b}' % (json.dumps(FIRST).encode(), json.dumps(SECOND).encode()), "'a' occurs twice"),
    (b'{"a": %b, "a": %b}' % (json.dumps(FIRST).encode(), json.dumps(FIRST).encode()), "'a' occurs twice"),
    ({"a": FIRST, "b": _entry(4, 16, (3,))}, "not a whole"),  # overlap
    ({"a": FIRST, "b": _entry(12, 16, (1,))}, "not a whole"),  # a gap
    ({"a": FIRST}, "not a whole"),  # bytes that nobody names
    ({"a": FIRST, "b": _entry(8, 24, (4,))}, "not a whole"),  # beyond the end
    ({"a": FIRST, "b": _entry(8, 16, (3,))}, "not a whole"),  # shape and bytes
    ({"a": FIRST, "b": _entry(8, 16, (1 << 62, 1 << 62))}, "not a whole"),  # overflow
    ({"a": FIRST, "b": _entry(16, 8)}, "not a whole"),
    ({"a": FIRST, "b": _entry(-8, 16)}, "not a whole"),
    ({"a": FIRST, "b": _entry(8, 16, (-2,))}, "not a whole"),
    ({"a": FIRST, "b": _entry(8, 16, dtype="F7")}, "not a whole"),
    ({"a": FIRST, "b": _entry(8, 16, [1] * 20_000 + [2])}, "'b' has no shape of at most 8"),
    ({"a": FIRST, "b": _entry(8, 16, 2)}, "'b' has no shape"),
    ({"a": FIRST, "b": 3}, "'b' has no shape"),
    (b"[]", "a header that is no object"),
    (b"{" + b'"a":' * 9, "not a whole"),
    (b"[" * 100_000, "not a whole"),
]  # fmt: skip


@pytest.mark.parametrize(("header", "message"), HEADERS)
def test_a_safetensors_header_is_checked(
    tmp_path: Path, header: dict[str, Any] | bytes, message: str
) -> None:
    path = tmp_path / "model.safetensors"
    _header(path, header if isinstance(header, bytes) else json.dumps(header).encode())
    with pytest.raises(CheckpointError, match=message) as caught:
        SafetensorsFile(path)
    assert "\n" not in str(caught.value)


def test_a_header_out_of_proportion(tmp_path: Path) -> None:
    """99 MB of spaces: the library takes it."""
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 99 << 20) + b"{}")
        file.truncate(8 + (99 << 20))
    with pytest.raises(CheckpointError, match=r"a header of 103809024 bytes, at most 16777216 wanted"):
        SafetensorsFile(path)


def test_ten_thousand_tensors_are_no_bomb(tmp_path: Path) -> None:
    names = [f"model.layers.{i}.weight" for i in range(10_000)]
    save_file({name: torch.ones(1) for name in names}, tmp_path / "model.safetensors")
    torch.save({name: torch.ones(1) for name in names}, tmp_path / "pytorch_model.bin")
    assert SafetensorsFile(tmp_path / "model.safetensors").names == frozenset(names)
    assert TorchFile(tmp_path / "pytorch_model.bin").names == frozenset(names)


def test_show_of_a_bomb_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    _zip(tmp_path / "pytorch_model.bin", PICKLES[0][0])
    command = [sys.executable, "-m", "edgeloop.apps.cli", "show", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1
    assert "names builtins.bytearray" in done.stderr
    assert len(done.stderr.splitlines()) == 1
