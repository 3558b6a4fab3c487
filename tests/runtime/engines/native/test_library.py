"""The library and its interface: as edgeloop.h declares it, small, and an error in one line where it is not there."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from mode_models import model, write_bundle

from edgeloop.apps.cli import main
from edgeloop.runtime.engines.native import build, decoder_structs, drafts, library
from edgeloop.runtime.errors import EngineError
from edgeloop.runtime.session import Session

HEADER = "".join(
    (build.SOURCES / f"{name}.h").read_text(encoding="utf-8")
    for name in ("edgeloop_types", "edgeloop", "edgeloop_text", "edgeloop_tokens")
)
HEADERS = sorted(path.name for path in build.SOURCES.glob("edgeloop*.h"))
NUMBERS = {
    "int32_t": ctypes.c_int32,
    "int64_t": ctypes.c_int64,
    "uint32_t": ctypes.c_uint32,
    "uint64_t": ctypes.c_uint64,
    "float": ctypes.c_float,
    "double": ctypes.c_double,
}
STRUCTS = {**library.STRUCTS, **decoder_structs.STRUCTS, **drafts.STRUCTS}


@pytest.mark.parametrize("name", STRUCTS)
def test_a_struct_is_that_of_the_header_file(name: str) -> None:
    (body,) = re.findall(rf"^typedef struct {name} \{{(.*?)^\}} {name};", HEADER, re.MULTILINE | re.DOTALL)
    wanted = []
    for kind, field in re.findall(r"^\s*([^/;]+?)(\w+);", re.sub("//.*", "", body), re.MULTILINE):
        if kind.rstrip().endswith("*"):
            wanted.append((field, ctypes.c_char_p if "char" in kind else ctypes.c_void_p))
        else:
            wanted.append((field, NUMBERS[kind.strip()]))
    assert list(STRUCTS[name]._fields_) == wanted


def test_every_function_of_the_header_file_is_known() -> None:
    """By its name, and by how many arguments it takes."""
    text = re.sub(r"//.*", "", HEADER)
    found = re.findall(r"^EL_API\s+[^;(]*?(\w+)\(([^;]*)\);", text, re.MULTILINE)
    wanted = {name: 0 if args.strip() == "void" else args.count(",") + 1 for name, args in found}
    assert {name: len(taken) for name, (_, taken) in library.FUNCTIONS.items()} == wanted


@pytest.mark.parametrize(
    ("enum", "name"),
    [
        (library.Code, "code"),
        (library.Stage, "stage"),
        (library.Kv, "kv"),
        (decoder_structs.Rule, "rule"),
        (decoder_structs.Skipped, "skipped"),
        (decoder_structs.Squash, "squash"),
        (drafts.Drafts, "drafts"),
    ],
)
def test_an_enum_is_that_of_the_header_file(enum: type[library.Code], name: str) -> None:
    (body,) = re.findall(rf"typedef enum el_{name} \{{(.*?)\}}", HEADER, re.DOTALL)
    found = re.findall(r"EL_(\w+) = (\d+)", body)
    prefix = "" if name in ("code", "stage") else f"{name.upper()}_"
    assert [(n.removeprefix(prefix), int(v)) for n, v in found] == [(e.name, e.value) for e in enum]


@pytest.mark.parametrize("name", HEADERS)
@pytest.mark.parametrize("language", ["c -std=c11", "c++ -std=c++17"])
def test_a_header_file_compiles_alone(name: str, language: str) -> None:
    compiler = next((name for name in ("cc", "gcc", "clang") if shutil.which(name)), None)
    if compiler is None:
        pytest.skip("no C compiler")
    flags = ["-Wall", "-Wextra", "-Werror", "-pedantic", "-fsyntax-only", f"-I{build.SOURCES}", "-"]
    text = f'#include "{name}"\n'
    done = subprocess.run(
        [compiler, "-x", *language.split(), *flags], input=text, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_header_files_include_each_other_in_no_ring() -> None:
    """And edgeloop.h has all of them."""
    included = {
        name: re.findall(
            r'^#include "(.*)"', (build.SOURCES / name).read_text(encoding="utf-8"), re.MULTILINE
        )
        for name in HEADERS
    }
    assert list(TopologicalSorter(included).static_order())[-1] == "edgeloop.h"
    assert {"edgeloop.h", *included["edgeloop.h"]} == set(HEADERS)


def test_the_abi_is_that_of_the_header_file() -> None:
    assert f"#define EL_ABI {library.ABI} " in HEADER
    assert f"#define EL_ERROR_SIZE {library.ERROR_SIZE}\n" in HEADER


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    path = tmp_path / build.LIBRARY.name
    monkeypatch.setattr(library, "LIBRARY", path)
    library.library.cache_clear()
    yield path
    library.library.cache_clear()


def test_without_a_library(no_library: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Doctor says how to get it, and what wants it says so in one line."""
    with pytest.raises(EngineError, match="has no library here: install a C\\+\\+17 compiler"):
        library.library()
    assert main(["doctor"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"engine native has no library here: {build.ADVICE}" in said
    assert "target native without its engine" in said


def test_the_kernels_are_named(
    lane_engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By doctor too; a name that there is not is an error, and no other engine takes the place of this one."""
    bundle = write_bundle(tmp_path / "bundle", model("a window"), ("native", "onnx"))
    monkeypatch.setenv("EDGELOOP_KERNELS", "portable")
    assert library.kernels() == "portable"
    assert main(["doctor"]) == 0
    assert "kernels portable" in capsys.readouterr().out
    monkeypatch.setenv("EDGELOOP_KERNELS", "sse9")
    assert "has no kernels 'sse9' for this processor" in library.unavailable_reason()
    with pytest.raises(EngineError, match="engine native has no kernels 'sse9'"):
        Session.open(bundle)


def test_another_file_is_no_library(no_library: Path) -> None:
    no_library.write_bytes(b"no library")
    with pytest.raises(EngineError, match="cannot load libedgeloop") as caught:
        library.library()
    assert "\n" not in str(caught.value)


def test_the_library_is_small_and_needs_the_c_library_only(lane_engine: Path) -> None:
    assert lane_engine.stat().st_size < 1_000_000
    data = lane_engine.read_bytes()
    assert b"libstdc++.so" not in data
    assert b"libgcc_s" not in data
    assert b"terminate called" not in data  # src/terminate.cpp: 50 KB less


def test_a_build_compiles_what_changed(
    lane_engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A file that is as it was is not compiled again, and a header counts for those that include it."""
    source = tmp_path / "src"
    (source / "kernels").mkdir(parents=True)
    (source / "one.h").write_text("#define ONE 1\n", encoding="utf-8")
    (source / "one.cpp").write_text('#include "one.h"\nint one() { return ONE; }\n', encoding="utf-8")
    (source / "two.cpp").write_text("int two() { return 2; }\n", encoding="utf-8")
    (source / "test_two.cpp").write_text("no C++\n", encoding="utf-8")
    monkeypatch.setattr(build, "SOURCES", source)
    made, objects = tmp_path / "lib.so", tmp_path / "objects"

    def compiled() -> list[str]:
        caplog.clear()
        with caplog.at_level("INFO", build.log.name):
            build.build(made, objects)
        return sorted(record.getMessage().removeprefix("compiling ") for record in caplog.records)

    assert compiled() == ["one.cpp", "two.cpp"]
    assert made.is_file()
    assert compiled() == []
    (source / "one.h").write_text("#define ONE 2\n", encoding="utf-8")
    assert compiled() == ["one.cpp"]
    assert len(list(objects.glob("*.o"))) == 2
    (source / "two.cpp").write_text("int two() { return }\n", encoding="utf-8")
    with pytest.raises(build.BuildError, match="failed: .*error") as caught:
        build.build(made, objects)
    assert "\n" not in str(caught.value)
    assert made.is_file()  # of what compiled


@pytest.mark.skipif(shutil.which("nm") is None or sys.platform != "linux", reason="nm lists symbols")
def test_nothing_but_the_c_interface_is_exported() -> None:
    listed = subprocess.run(
        ["nm", "-D", "--defined-only", str(build.LIBRARY)], capture_output=True, text=True, check=True
    ).stdout
    names = {line.split()[-1] for line in listed.splitlines()}
    assert [name for name in names if not name.startswith("el_")] == []
    assert {"el_open", "el_text_open", "el_context_new", "el_bundle_verify"} <= names
