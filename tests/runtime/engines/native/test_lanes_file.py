"""The lane engine's file: what is written is what was stored, bit for bit, and nothing else fits a manifest."""

from __future__ import annotations

import re
import zlib
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lanes_files import QUANTS, stored
from programs import PROGRAMS
from random_programs import random_program

from edgeloop.runtime.engines.native import file, tables
from edgeloop.runtime.engines.native import format as records
from edgeloop.runtime.engines.native.build import SOURCES
from edgeloop.runtime.engines.native.file import NAME, LanesFile, write_lanes
from edgeloop.runtime.errors import BundleError
from edgeloop.runtime.model.program import Program
from edgeloop.runtime.model.rotary import frequencies

HEADER = (SOURCES / "format.h").read_text(encoding="utf-8")
STRUCTS = {
    "Table": records.TABLE,
    "Range": records.RANGE,
    "Header": records.HEADER,
    "Stage": records.STAGE,
    "Depth": records.DEPTH,
    "Cache": records.CACHE,
    "Op": records.OP,
    "Matrix": records.MATRIX,
    "Part": records.PART,
    "Vector": records.VECTOR,
    "Rotation": records.ROTATION,
}
NUMBERS = {"uint8_t": "u1", "uint32_t": "<u4", "uint64_t": "<u8", "float": "<f4", "double": "<f8"}
CONSTANTS = {"STAGES_WITH_CACHES": 3, "TABLES": len(records.TableNumber)}
ENUMS = (
    records.TableNumber,
    records.Host,
    records.OpKind,
    records.Norm,
    records.Mask,
    records.Function,
    records.Storage,
)


@pytest.mark.parametrize("name", STRUCTS)
def test_a_record_is_that_of_the_header_file(name: str) -> None:
    """Its fields in order, their types and how many there are of each."""
    (body,) = re.findall(rf"^struct {name} \{{(.*?)^\}};", HEADER, re.MULTILINE | re.DOTALL)
    wanted: list[tuple[Any, ...]] = []
    for kind, names in re.findall(r"^\s*(\w+) ([^;]+);", re.sub("//.*", "", body), re.MULTILINE):
        for field in names.split(","):
            plain, size = re.fullmatch(r"\s*(\w+)(?:\[(.*)\])?\s*", field).groups()  # type: ignore[union-attr]
            base = "S8" if kind == "char" else STRUCTS.get(kind, NUMBERS.get(kind))
            count = () if size is None or kind == "char" else (eval(size, {}, CONSTANTS),)
            wanted.append((plain, base, *count))
    assert np.dtype(wanted) == STRUCTS[name]


@pytest.mark.parametrize("enum", ENUMS, ids=lambda e: e.__name__)
def test_an_enum_is_that_of_the_header_file(enum: type[IntEnum]) -> None:
    (body,) = re.findall(rf"^enum {enum.__name__} : uint32_t \{{(.*?)\}};", HEADER, re.MULTILINE | re.DOTALL)
    names = re.findall(r"(\w+),?\s*(?:$|,|\s)", re.sub("//.*", "", body))
    assert names[: len(enum)] == [each.name for each in enum]
    assert [each.value for each in enum] == list(range(len(enum)))
    assert len(names) <= len(enum) + 1  # a count of them


def test_constants_are_those_of_the_header_file() -> None:
    for name, value in (
        ("VERSION", records.VERSION),
        ("TILE", records.TILE),
        ("ALIGNMENT", records.ALIGNMENT),
    ):
        assert re.search(rf"\b{name} = {value};", HEADER), name
    flags = re.findall(r"(\w+) = (\d+)", re.search(r"enum Flag .*", HEADER)[0])  # type: ignore[index]
    assert {name: int(value) for name, value in flags} == {flag.name: flag.value for flag in records.Flag}


def check_round_trip(program: Program, quant: str, folder: Path) -> None:
    wanted, group = stored(program, quant)
    write_lanes(folder / NAME, program, wanted, group)
    found = {name: np.concatenate([*pieces]) for name, pieces in LanesFile(folder / NAME, program).tensors()}
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name].dtype == value.dtype, name
        assert found[name].tobytes() == value.tobytes(), name


@pytest.mark.parametrize("quant", QUANTS)
@pytest.mark.parametrize("kind", PROGRAMS)
def test_what_is_stored_comes_back(kind: str, quant: str, tmp_path: Path) -> None:
    check_round_trip(PROGRAMS[kind](), quant, tmp_path)


@pytest.mark.parametrize("quant", QUANTS)
@pytest.mark.parametrize("kind", PROGRAMS)
def test_pieces_of_a_few_rows_are_the_same_file(
    kind: str, quant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A matrix of a large model has many pieces; here each has one tile."""
    program = PROGRAMS[kind]()
    wanted, group = stored(program, quant)
    write_lanes(tmp_path / "whole", program, wanted, group)
    monkeypatch.setattr(file, "_PIECE", 1)
    check_round_trip(program, quant, tmp_path)
    assert (tmp_path / NAME).read_bytes() == (tmp_path / "whole").read_bytes()
    assert all(same for _, same in LanesFile(tmp_path / NAME, program).sections())


@pytest.mark.parametrize("seed", range(20))
def test_random_programs(seed: int, tmp_path: Path) -> None:
    check_round_trip(random_program(seed), QUANTS[seed % len(QUANTS)], tmp_path)
    first = (tmp_path / NAME).read_bytes()
    check_round_trip(random_program(seed), QUANTS[seed % len(QUANTS)], tmp_path)
    assert (tmp_path / NAME).read_bytes() == first


def test_the_checksum_is_of_header_and_tables(tmp_path: Path) -> None:
    write_lanes(tmp_path / NAME, PROGRAMS["relaxed"](), *stored(PROGRAMS["relaxed"](), "int4"))
    data = bytearray((tmp_path / NAME).read_bytes())
    header = np.frombuffer(bytes(data), records.HEADER, 1)[0]
    place = records.HEADER.fields["checksum"][1]  # type: ignore[index]
    data[place : place + 4] = bytes(4)
    assert header["checksum"] == zlib.crc32(data[: header["data_start"]])
    assert header["file_bytes"] == len(data)


@pytest.mark.parametrize(("factor", "fits"), [(1 + 2.0**-52, True), (1 - 2.0**-51, True), (1 + 1e-9, False)])
def test_powers_of_another_processor(
    factor: float, fits: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last bit of numpy's float64 powers is another one with AVX-512, without, and on Arm; files go to all."""
    program = PROGRAMS["relaxed"]()
    with monkeypatch.context() as patch:
        patch.setattr(tables, "frequencies", lambda by: factor * frequencies(by))
        write_lanes(tmp_path / NAME, program, *stored(program, QUANTS[0]))
    if fits:
        assert LanesFile(tmp_path / NAME, program).data[:] == (tmp_path / NAME).read_bytes()
    else:
        with pytest.raises(BundleError, match="of another model than the manifest describes"):
            LanesFile(tmp_path / NAME, program)


def test_what_is_no_file_of_the_program_is_refused(tmp_path: Path) -> None:
    """Cut, longer, of another version, of another program, or with any byte of its tables changed: one line."""
    program, path = PROGRAMS["relaxed"](), tmp_path / NAME
    write_lanes(path, program, *stored(program, "int4"))
    whole = path.read_bytes()
    start = int(np.frombuffer(whole, records.HEADER, 1)[0]["data_start"])
    random = np.random.default_rng(0)
    version = whole[:8] + bytes([records.VERSION + 1]) + whole[9:]
    changed = [bytearray(whole) for _ in range(60)]
    for data in changed:
        data[random.integers(start)] ^= 1 << int(random.integers(8))
    for data in (
        b"",
        whole[:100],
        whole[:-1],
        whole + b"\0",
        version,
        b"x" * len(whole),
        *map(bytes, changed),
    ):
        path.write_bytes(data)
        with pytest.raises(BundleError) as caught:
            LanesFile(path, program)
        assert "\n" not in str(caught.value)
    path.write_bytes(whole)
    with pytest.raises(BundleError, match="of another model|matrices"):
        LanesFile(path, PROGRAMS["gpt"]())
