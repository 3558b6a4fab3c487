"""The text section: numpy has the records of the header file, and bad bytes are refused."""

from __future__ import annotations

import re
import shutil
import zlib
from contextlib import suppress
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from native_texts import write_file
from native_tokenizers import byte_level, special, split, tokenizer
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Engine

from edgeloop.export.targets.native.text.section import tokenizer_tables
from edgeloop.runtime.engines.native import text_format
from edgeloop.runtime.engines.native.build import SOURCES
from edgeloop.runtime.engines.native.file import LanesFile
from edgeloop.runtime.engines.native.format import HEADER as FILE_HEADER
from edgeloop.runtime.engines.native.text import NativeText
from edgeloop.runtime.engines.native.text_format import Kind, Tag, section, tables
from edgeloop.runtime.errors import BundleError, ExportError, UsageError

SOURCE = (SOURCES / "text" / "format.h").read_text(encoding="utf-8")
STRUCTS = {
    "Header": text_format.HEADER,
    "Record": text_format.RECORD,
    "String": text_format.STRING,
    "Table": text_format.TABLE,
    "Rules": text_format.RULES,
    "Merge": text_format.MERGE,
    "Added": text_format.ADDED,
    "Step": text_format.STEP,
    "Mapped": text_format.MAPPED,
    "Composed": text_format.COMPOSED,
}
NUMBERS = {"uint32_t": "<u4", "uint64_t": "<u8", "double": "<f8"}
ENUMS: dict[str, Any] = {
    "Tag": text_format.Tag,
    "ModelKind": text_format.ModelKind,
    "Flag": text_format.Flag,
    "AddedFlag": text_format.AddedFlag,
    "Stage": text_format.Stage,
    "Kind": text_format.Kind,
    "Behavior": text_format.Behavior,
    "Code": text_format.Code,
}
COUNTS = ("MODEL_KINDS", "STAGES", "BEHAVIORS", "CODES", "TYPED")


@pytest.mark.parametrize("name", STRUCTS)
def test_a_record_is_that_of_the_header_file(name: str) -> None:
    (body,) = re.findall(rf"^struct {name} \{{(.*?)^\}};", SOURCE, re.MULTILINE | re.DOTALL)
    wanted: list[tuple[Any, ...]] = []
    for kind, names in re.findall(r"^\s*(\w+) ([^;]+);", re.sub("//.*", "", body), re.MULTILINE):
        for field in names.split(","):
            plain, size = re.fullmatch(r"\s*(\w+)(?:\[(.*)\])?\s*", field).groups()  # type: ignore[union-attr]
            base = "S8" if kind == "char" else STRUCTS.get(kind, NUMBERS.get(kind))
            count = () if size is None or kind == "char" else (int(size),)
            wanted.append((plain, base, *count))
    assert np.dtype(wanted) == STRUCTS[name]


@pytest.mark.parametrize("name", ENUMS)
def test_an_enum_is_that_of_the_header_file(name: str) -> None:
    (body,) = re.findall(rf"^enum {name} : uint32_t \{{(.*?)\}};", SOURCE, re.MULTILINE | re.DOTALL)
    found, value = {}, -1
    for each, given in re.findall(r"(\w+)(?: = (\d+))?\s*(?:,|$)", re.sub("//.*", "", body), re.MULTILINE):
        value = int(given) if given else value + 1
        found[each] = value
    enum: type[IntEnum] = ENUMS[name]
    known = {each: value for each, value in found.items() if each not in COUNTS}
    assert known == {each: int(value) for each, value in enum.__members__.items()}


@pytest.mark.parametrize(
    "name", ["VERSION", "MAX_TABLES", "MAX_PROBES", "MAX_STEPS", "BLOCK", "CODE_POINTS", "HASH"]
)
def test_constants_are_those_of_the_header_file(name: str) -> None:
    (found,) = re.findall(rf"\b{name} = (\w+);", SOURCE)
    assert int(found, 0) == getattr(text_format, name)


def test_tables_come_back() -> None:
    wanted = {Tag.PIECES: b"abc", Tag.RULES: bytes(112), Tag.MAPS: b""}
    data = section({int(tag): data for tag, data in wanted.items()})
    assert {tag: data[first:last] for tag, (first, last) in tables(data).items()} == {
        tag: data for tag, data in wanted.items() if data
    }
    for bad in (b"", data[:-1], data + b"\0", b"x" + data[1:], data[:20] + b"\1" + data[21:]):
        with pytest.raises(BundleError):
            tables(bad)


def test_any_changed_byte_is_a_line_or_other_tokens(lane_engine: Path, tmp_path: Path) -> None:
    """No change of a section does harm: it is refused in a line, or encodes and decodes something."""
    whole = write_file(tmp_path, tokenizer("albert")).read_bytes()
    start = int(np.frombuffer(whole, FILE_HEADER, 1)[0]["text"])
    dice, refused, path = np.random.default_rng(0), 0, tmp_path / "changed"
    for turn in range(150):
        data = bytearray(whole)
        at = start + int(dice.integers(600 if turn % 2 else len(whole) - start))
        data[at] ^= 1 << int(dice.integers(8))
        path.write_bytes(data)
        said = None
        try:
            text = NativeText(path)
        except BundleError as error:
            refused, said = refused + 1, str(error)
        else:
            with suppress(BundleError, UsageError):
                ids = text.encode("Once upon a time, ½ ﬁ ́ 他  e\u0301[MASK]!")
                text.decode(ids)
            text.close()
        assert said is None or "\n" not in said
    assert refused > 20


def test_a_suffix_of_no_bytes_is_refused(lane_engine: Path, tmp_path: Path) -> None:
    """It would be found behind itself without end."""
    whole = bytearray(write_file(tmp_path, tokenizer("suffix")).read_bytes())
    start = int(np.frombuffer(whole, FILE_HEADER, 1)[0]["text"])
    first, last = tables(bytes(whole[start:]))[Tag.STEPS]
    steps = np.frombuffer(whole, STRUCTS["Step"], (last - first) // STRUCTS["Step"].itemsize, start + first)
    step = steps[steps["kind"] == Kind.SUFFIX]
    assert len(step) == 1
    steps["a"]["bytes"][steps["kind"] == Kind.SUFFIX] = 0
    (tmp_path / "changed").write_bytes(whole)
    with pytest.raises(BundleError, match=f"incomplete is a step of kind {int(Kind.SUFFIX)}"):
        NativeText(tmp_path / "changed")


def test_what_is_no_text_is_refused(lane_engine: Path, tmp_path: Path) -> None:
    text = NativeText(write_file(tmp_path, tokenizer("gpt2")))
    for bad in (b"\xff", b"ab\xc3", b"\xed\xa0\x80", b"\xf5\x80\x80\x80", b"\xc0\x80"):
        with pytest.raises(UsageError, match="no UTF-8"):
            text.encode(bad)
    with pytest.raises(UsageError, match="stop string 0 has 0 bytes"):
        text.writer(stops=[""])
    assert text.decode([-1, 1 << 40]) == ""
    text.close()


def test_a_file_without_text_says_so(lane_engine: Path, tmp_path: Path) -> None:
    data = bytearray(write_file(tmp_path, tokenizer("gpt2")).read_bytes())
    header = np.frombuffer(bytes(data), FILE_HEADER, 1)[0].copy()
    end, start = int(header["text"]), int(header["data_start"])
    header["text"] = header["text_bytes"] = header["checksum"] = 0
    header["file_bytes"] = end
    header["checksum"] = zlib.crc32(header.tobytes() + data[header.nbytes : start])
    path = tmp_path / "without"
    path.write_bytes(header.tobytes() + data[header.nbytes : end])
    with pytest.raises(UsageError, match="has no text section"):
        NativeText(path)


@pytest.mark.parametrize("text", ["a" * 100_000, "é" * 50_000, " " * 50_000, "a " * 50_000, "'" * 50_000])
def test_long_texts_of_few_characters(lane_engine: Path, tmp_path: Path, text: str) -> None:
    """In time that grows as the text does; a queue and patterns that go on where they stopped see to it."""
    for name in ("o200k", "llama2"):
        folder = tmp_path / name
        folder.mkdir()
        engine = tokenizer(name)
        found = NativeText(write_file(folder, engine))
        assert found.encode(text) == engine.encode(text).ids
        found.close()


def _of(model: Any = None, **parts: Any) -> Engine:
    engine = Engine(model or models.BPE({"a": 0}, []))
    for name, part in parts.items():
        setattr(engine, name, part)
    return engine


REFUSED = {
    "pre-tokenizer is UnicodeScripts": lambda: _of(pre_tokenizer=pre_tokenizers.UnicodeScripts()),
    "decoder is CTC": lambda: _of(decoder=decoders.CTC()),
    "decoder is BPEDecoder without a suffix": lambda: _of(decoder=decoders.BPEDecoder(suffix="")),
    "normalizer is ByteLevel": lambda: _of(normalizer=normalizers.ByteLevel()),
    "its words are bytes and its decoder is none": lambda: _of(pre_tokenizer=pre_tokenizers.ByteLevel()),
    r"\(\?<n": lambda: _of(pre_tokenizer=split("(?<n>a)")),
    r"as little as can be": lambda: _of(pre_tokenizer=split("a+?b")),
    r"\\\\b": lambda: _of(pre_tokenizer=split(r"a\b")),
    "matches no characters": lambda: _of(normalizer=normalizers.Replace(Regex("a*"), "b")),
    "either case": lambda: _of(pre_tokenizer=split("(?i:ss)")),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_not_read_is_named(what: str, tmp_path: Path) -> None:
    REFUSED[what]().save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ExportError, match=what):
        tokenizer_tables(tmp_path / "tokenizer.json", False)


def test_special_tokens_may_be_text(lane_engine: Path, tmp_path: Path) -> None:
    """As the manifest's split_special_tokens has it."""
    engine = byte_level(size=300)
    engine.add_special_tokens(special("<|x|>"))
    engine.add_tokens([AddedToken("<y>", normalized=False)])
    found = NativeText(write_file(tmp_path, engine, split_special=True))
    engine.encode_special_tokens = True
    text = "a<|x|>b<y><|begin|>"
    assert found.encode(text) == engine.encode(text).ids
    found.close()


def test_the_section_is_the_file_end(tmp_path: Path) -> None:
    from programs import PROGRAMS

    path = write_file(tmp_path, tokenizer("gpt2"))
    shutil.copy(path, tmp_path / "copy")
    file = LanesFile(tmp_path / "copy", PROGRAMS["gpt"]())
    assert file.text == section(tokenizer_tables(tmp_path / "tokenizer.json", False))
    assert set(tables(file.text)) <= set(Tag)
