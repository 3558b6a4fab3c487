"""docs/in-your-app.md and docs/c-abi.md: their hosts write what a session writes, and their tables are what exported
files take and give."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import onnx
import pytest
from pages import ROOT, blocks, page_table
from safetensors.numpy import load_file, save_file

from edgeloop.export import export_bundle
from edgeloop.runtime import Session

PAGE = ROOT / "docs" / "in-your-app.md"
C_ABI = ROOT / "docs" / "c-abi.md"
DEMO = ROOT / "apps" / "demo" / "checkpoint"
HEADER = ROOT / "runtime" / "engines" / "native" / "src"
PROMPT = [3, 141, 59, 26, 53, 58]
KINDS = ("ouro", "mor-lora")
"""Random weights that do not write one token over and over: a loop and no layers around it; layers on both sides."""
COUNT = 12
NO_TOKEN = -1
"""An end that no token is."""


@pytest.fixture(scope="module")
def exported(
    tiny_once: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("app")

    def get(kind: str) -> Path:
        if not (root / kind).exists():
            export_bundle(tiny_once(kind), root / kind, targets=["native", "onnx"], quant="int4")
        return root / kind

    return get


def written(bundle: Path, engine: str, **options: Any) -> list[int]:
    with Session.open(bundle, engine=engine, **options) as session:
        return [step.token for step in session.generate(PROMPT, max_tokens=COUNT)]


def host(source: str, library: Path, folder: Path) -> Path:
    """``source``, compiled with a relative path of the library as on the page: it runs from everywhere."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    (folder / "host.c").write_text(source, encoding="utf-8")
    command = [compiler, "-std=c99", "-Wall", "-Wextra", "-Werror", f"-I{HEADER}", str(folder / "host.c")]
    link = (f"./{library.name}", f"-Wl,-rpath,{library.parent}", "-o", str(folder / "host"))
    subprocess.run([*command, *link], check=True, cwd=library.parent)
    return folder / "host"


def told(program: Path, model: Path, end: int = NO_TOKEN) -> list[int]:
    command = [str(program), str(model), str(COUNT), str(end), *map(str, PROMPT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [int(line) for line in done.stdout.split()]


def test_the_host_in_c_takes_and_writes_text(lane_engine: Path, tmp_path: Path) -> None:
    (source,) = blocks(PAGE, "c")
    bundle = export_bundle(DEMO, tmp_path / "demo", targets=["native"], quant="int4").bundle
    program, prompt = host(source, lane_engine, tmp_path), "Once upon a time there was a king"
    with Session.open(bundle, engine="native", kv_bits=16) as session:
        wanted = "".join(step.text for step in session.generate(prompt, max_tokens=64))
    command = [str(program), str(bundle / "native" / "model.lanes"), prompt]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == wanted
    assert re.fullmatch(r"\d+ tokens in \d+ ms\n", done.stderr)
    failed = subprocess.run([*command[:2], ""], capture_output=True, text=True, check=False)
    assert (failed.returncode, failed.stderr.count("\n")) == (1, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_the_host_in_c(kind: str, exported: Callable[[str], Path], lane_engine: Path, tmp_path: Path) -> None:
    whole, _ = blocks(C_ABI, "c")
    program = host(whole, lane_engine, tmp_path)
    model = exported(kind) / "native" / "model.lanes"
    wanted = written(exported(kind), "native", kv_bits=16)
    assert len(set(wanted)) > 3
    assert told(program, model) == wanted
    assert told(program, model, end=wanted[2]) == wanted[: wanted.index(wanted[2])]
    failed = subprocess.run(
        [str(program), str(PAGE), "1", "0", "1"], capture_output=True, text=True, check=False
    )
    assert failed.returncode == 1
    assert failed.stderr.count("\n") == 1


def test_an_exit_in_c(exported: Callable[[str], Path], lane_engine: Path, tmp_path: Path) -> None:
    whole, policy = blocks(C_ABI, "c")
    place = "  el_decoder* decoder;\n"
    assert whole.count(place) == 1
    (numbers,) = re.findall(r"thresholds\[\] = \{(.*)\};", policy)
    thresholds = numbers.replace("f", "").replace(" ", "")
    bundle = exported("ouro")
    wanted = written(bundle, "native", kv_bits=16, exit=f"latent:{thresholds}", skipped_kv="propagate")
    assert wanted != written(bundle, "native", kv_bits=16)
    program = host(whole.replace(place, policy + place), lane_engine, tmp_path)
    assert told(program, bundle / "native" / "model.lanes") == wanted


@pytest.mark.parametrize("kind", KINDS)
def test_the_host_on_onnxruntime(kind: str, exported: Callable[[str], Path], tmp_path: Path) -> None:
    """In a process of its own, as a host has: onnxruntime's threads are set up once in a process."""
    (code,) = blocks(PAGE, "py")
    (prompt,) = re.findall(r"^text = (\[.*?\])", code, re.MULTILINE)
    code = code.replace(prompt, str(PROMPT)).replace("range(8)", f"range({COUNT})")
    assert "edgeloop" not in code
    (tmp_path / "bundle").symlink_to(exported(kind))
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == PROMPT + written(exported(kind), "onnx")


TYPES = {"float32": onnx.TensorProto.FLOAT, "int32": onnx.TensorProto.INT32, "int64": onnx.TensorProto.INT64}
Interface = dict[str, tuple[int, list[str | int]]]


def interface(values: Iterable[onnx.ValueInfoProto]) -> Interface:
    """Type and sizes of each input or output, by its name with I for a number."""
    return {
        re.sub(r"\d+", "I", value.name): (
            value.type.tensor_type.elem_type,
            [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim],
        )
        for value in values
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("stage", "gives"), [("prologue", "state"), ("block", "next"), ("epilogue", "logits")]
)
def test_inputs_of_the_graphs(stage: str, gives: str, kind: str, exported: Callable[[str], Path]) -> None:
    graph = onnx.load(exported(kind) / "onnx" / f"{stage}.onnx", load_external_data=False).graph
    table = {
        name: row
        for name, row in page_table("in-your-app", "ONNX Runtime").items()
        if row[1] == "all" or stage in row[1]
    }
    found = interface(graph.input)
    # Ouro has no layers before and behind its loop, and no deltas: a graph has the inputs that it needs.
    assert set(found) < set(table) if kind == "ouro" else set(found) == set(table)
    for name, (element, sizes) in found.items():
        written_type, letters = table[name][0].rstrip("]").split(" [")
        assert element == TYPES[written_type]
        assert len(sizes) == len(letters.split(", "))
        # A size that is free has its letter in the graph, too; D and others are numbers there.
        for letter, size in zip(letters.split(", "), sizes, strict=True):
            assert size == letter if isinstance(size, str) else letter in ("1", "D", "K", "d", "d/2")
    assert {name for name in interface(graph.output) if not name.startswith("present.")} == {gives}


def test_inputs_of_the_graph_that_fills_in(exported: Callable[[str], Path]) -> None:
    graph = onnx.load(exported("mor-lora") / "onnx" / "fill.onnx", load_external_data=False).graph
    assert set(interface(graph.input)) == {"state", "depth", "positions", "cos", "sin"}
    assert set(interface(graph.output)) == {"key.I", "value.I"}
    assert all(sizes[:2] == ["B", "S"] for _, sizes in interface(graph.output).values())


def test_new_deltas_change_the_files_that_are_named(tiny_once: Callable[[str], Path], tmp_path: Path) -> None:
    shutil.copytree(tiny_once("edgeloop"), tmp_path / "other")
    path = tmp_path / "other" / "model.safetensors"
    tensors = load_file(path)
    deltas = [name for name in tensors if ".lora_" in name]
    assert deltas
    save_file(tensors | {name: tensors[name] * 1.5 for name in deltas}, path, metadata={"format": "pt"})
    for name, source in (("before", tiny_once("edgeloop")), ("after", tmp_path / "other")):
        export_bundle(source, tmp_path / name, targets=["native", "onnx"], quant="int4")
    files = [p.relative_to(tmp_path / "after") for p in (tmp_path / "after").rglob("*") if p.is_file()]
    assert {
        str(file)
        for file in files
        if (tmp_path / "before" / file).read_bytes() != (tmp_path / "after" / file).read_bytes()
    } == {"manifest.json", "native/model.lanes", "onnx/weights.safetensors"}
