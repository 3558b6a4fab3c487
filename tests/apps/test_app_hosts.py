"""apps/android/hosts: depth loops in Java on ONNX Runtime's and ExecuTorch's APIs write what a session writes.

ONNX Runtime's is its own Java, where ``make app-hosts`` put it, and everywhere a stand-in with its names; ExecuTorch's
is such a stand-in, since its classes are for Android. Behind stand-ins the engine runs in another process, from Python.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jvm
import onnxruntime_java
import pytest
from jvm import ENGINE, compiled
from pages import ROOT, blocks

from edgeloop.runtime import Session

HOSTS = ROOT / "apps" / "android" / "hosts" / "src"
MAIN = HOSTS / "main" / "java" / "edgeloop"
COMMON = [
    MAIN / "DepthProgram.java",
    MAIN / "GreedyLoop.java",
    ENGINE / "main" / "java" / "edgeloop" / "Json.java",
]
CHECK = HOSTS / "test" / "java" / "edgeloop" / "LoopCheck.java"
STAND_INS = HOSTS / "test" / "java"
PYTORCH = STAND_INS / "org" / "pytorch" / "executorch"
KINDS = ("ouro", "mor-lora")
"""A loop and no layers around it; layers on both sides, and matrices that differ between depths."""
PROMPT = [3, 141, 59, 26, 53, 58]
COUNT, CAPACITY = 10, 24
TALE = "Once upon a time \u4f60\u597d"

pytestmark = pytest.mark.skipif(
    not (shutil.which("javac") and shutil.which("java")),
    reason="no JDK (apt install openjdk-17-jdk-headless)",
)
BundleOf = Callable[[str, str], Path]


def wanted(bundle: Path, engine: str, depths: int) -> list[int]:
    """What a session writes, which is not one token over and over, nor with an exit the same as without."""
    whole = written(bundle, engine, 0)
    assert len(set(whole)) > 3
    left = written(bundle, engine, depths)
    assert not depths or left != whole
    return left


def written(bundle: Path, engine: str, depths: int) -> list[int]:
    options = {"exit": f"depth:{depths}"} if depths else {}
    with Session.open(bundle, engine=engine, **options) as session:
        return [step.token for step in session.generate(PROMPT, max_tokens=COUNT)]


Java = tuple[list[str], str, dict[str, str]]
"""Options of java, the class path, and the environment."""


@pytest.fixture(scope="module")
def onnx_or_pte(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Java]:
    """A loop compiled with stand-ins; or ``own``: OnnxLoop with ONNX Runtime's own classes, or a skip."""
    found: dict[str, Java] = {}

    def onnx(folder: Path) -> Java:
        if why := onnxruntime_java.missing():
            pytest.skip(why)
        sources = [MAIN / "OnnxLoop.java", CHECK, *COMMON]
        path = compiled(sources, folder / "classes", str(onnxruntime_java.CLASSES))
        options, environment = onnxruntime_java.options(folder)
        return options, path, environment

    def graphs(folder: Path) -> Java:
        sources = [MAIN / "OnnxLoop.java", CHECK, *COMMON, *(STAND_INS / "ai" / "onnxruntime").glob("*.java")]
        path = compiled(sources, folder / "classes")
        command = f"{sys.executable}\n{ROOT / 'tests' / 'onnx_graphs.py'}"
        return [f"-Dedgeloop.graphs={command}"], path, dict(os.environ)

    def pte(folder: Path) -> Java:
        if importlib.util.find_spec("executorch") is None:
            pytest.skip("no executorch")
        sources = [
            MAIN / "PteLoop.java",
            MAIN / "EmbeddingRows.java",
            CHECK,
            *COMMON,
            *PYTORCH.glob("*.java"),
        ]
        path = compiled(sources, folder / "classes")
        methods = "\n".join(map(str, (sys.executable, ROOT / "tests" / "pte_methods.py", folder / "calls")))
        return [f"-Dedgeloop.methods={methods}"], path, dict(os.environ)

    def get(name: str) -> Java:
        if name not in found:
            found[name] = {"own": onnx, "OnnxLoop": graphs, "PteLoop": pte}[name](
                tmp_path_factory.mktemp(name)
            )
        return found[name]

    return get


Checked = Callable[[Path, int, object], list[str]]


@pytest.fixture(scope="module")
def onnx_java(onnx_or_pte: Callable[[str], Java]) -> Checked:
    return lambda *words: ran("OnnxLoop", onnx_or_pte("own"), words)


@pytest.fixture(scope="module")
def pte_java(onnx_or_pte: Callable[[str], Java]) -> Checked:
    return lambda *words: ran("PteLoop", onnx_or_pte("PteLoop"), words)


ORT_SWIFT = {
    "ORTEnv": {"loggingLevel:"},
    "ORTSession": {"env:modelPath:sessionOptions:"},
    "ORTSessionOptions": {""},
    "ORTValue": {"tensorData:elementType:shape:"},
    "ORTTensorElementDataType": set(),
}
"""Types of onnxruntime's Objective-C header files, and how Swift makes them."""
ORT_CALLS = (
    r"\.inputNames\(\)",
    r"\.outputNames\(\)",
    r"\.run\(withInputs: [^\n]*, outputs: [^\n]*, runOptions: nil\)",
    r"\.setIntraOpNumThreads\(\w+\)",
    r"\.tensorData\(\)",
)
"""Methods of theirs, as Swift calls them: a getter has no ``WithError``."""


def test_the_swift_calls_what_onnx_runtime_has() -> None:
    text = (ROOT / "apps" / "ios" / "Hosts" / "OnnxLoop.swift").read_text(encoding="utf-8")
    code = re.sub(r"(?m)//.*$", "", text)
    assert set(re.findall(r"\bORT\w+", code)) == ORT_SWIFT.keys()
    for name, given in re.findall(r"\b(ORT\w+)\(([^()]*)", code):
        assert "".join(re.findall(r"\b\w+:(?= )", given)) in ORT_SWIFT[name], (name, given)
    assert [call for call in ORT_CALLS if len(re.findall(call, code)) != 1] == []


def ran(loop: str, java: Java, words: tuple[object, ...]) -> list[str]:
    """The lines that the check writes of a bundle, how many depths, and where profiles go."""
    (bundle, depths, traces), (options, path, environment) = words, java
    given = [loop, bundle, CAPACITY, depths, COUNT, traces, *PROMPT]
    command = ["java", "-Xmx256m", "-XX:+UseSerialGC", *options, "-cp", path]
    command += ["edgeloop.LoopCheck", *map(str, given)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


def told(lines: list[str], depths: int) -> list[int]:
    """The answer, after what has to be so of any: three ways to it, and a prompt behind tokens that left early."""
    assert lines[0] == lines[1] == lines[2]
    early = f"{COUNT - 1} tokens left early; go back to {len(PROMPT)} and begin the prompt with them"
    assert lines[3:] == ([early] if depths else [])
    return [int(word) for word in lines[0].split()]


@pytest.mark.parametrize("depths", [0, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_onnx_runtime(kind: str, depths: int, bundle_of: BundleOf, onnx_java: Checked) -> None:
    bundle = bundle_of(kind, "onnx")
    assert told(onnx_java(bundle, depths, "-"), depths) == wanted(bundle, "onnx", depths)


@pytest.mark.parametrize("kind", KINDS)
def test_onnx_runtime_by_stand_ins(
    kind: str, bundle_of: BundleOf, onnx_or_pte: Callable[[str], Java]
) -> None:
    bundle = bundle_of(kind, "onnx")
    lines = ran("OnnxLoop", onnx_or_pte("OnnxLoop"), (bundle, 2, "-"))
    assert told(lines, 2) == wanted(bundle, "onnx", 2)


def test_a_profile_of_onnx_runtime(bundle_of: BundleOf, onnx_java: Checked, tmp_path: Path) -> None:
    assert len(onnx_java(bundle_of("mor-lora", "onnx"), 2, tmp_path)) == 4
    (block,) = tmp_path.glob("block.onnx*.json")
    events = json.loads(block.read_text(encoding="utf-8"))
    runs = sum(event["name"] == "model_run" for event in events)
    depths = json.loads((bundle_of("mor-lora", "onnx") / "manifest.json").read_text())["program"]["loop"]
    prompts = (1 + 1 + len(PROMPT)) * len(depths["schedule"])
    assert runs == prompts + 3 * (COUNT - 1) * 2


@pytest.mark.parametrize("depths", [0, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_executorch(kind: str, depths: int, bundle_of: BundleOf, onnx_or_pte: Callable[[str], Java]) -> None:
    bundle = bundle_of(kind, "executorch")
    java = onnx_or_pte("PteLoop")
    assert told(ran("PteLoop", java, (bundle, depths, "-")), depths) == wanted(bundle, "executorch", depths)
    calls = Path(java[0][0].split("\n")[-1]).read_text(encoding="utf-8")
    called = [line.split()[0] for line in calls.splitlines()]
    program = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))["program"]
    around = kind == "mor-lora"
    count = len(program["loop"]["schedule"])

    def token(blocks: int, head: bool) -> list[str]:
        stages = [*["prologue_m1"] * around, *["block_m1"] * blocks, *["epilogue_m1"] * around]
        return [*stages, *["head_m1"] * head]

    prompt = [*token(count, False) * (len(PROMPT) - 1), *token(count, True)]
    answer = token(depths or count, True) * (COUNT - 1)
    assert called[: len(prompt) + len(answer)] == prompt + answer


@pytest.fixture(scope="module")
def text_java(lane_engine: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """The module engine's classes, and its library."""
    if why := jvm.missing():
        pytest.skip(why)
    folder = tmp_path_factory.mktemp("engine")
    return jvm.classes(folder), jvm.jni_library(lane_engine, folder)


@pytest.mark.parametrize("loop", ["OnnxLoop", "PteLoop"])
def test_the_host_of_the_page(
    loop: str,
    bundle_of: BundleOf,
    onnx_or_pte: Callable[[str], Java],
    text_java: tuple[str, Path],
    tmp_path: Path,
) -> None:
    """As it stands for ONNX Runtime, and with another constructor for ExecuTorch: a session's text, by text.lanes."""
    (source,) = blocks(ROOT / "docs" / "in-your-app.md", "java")
    if loop == "PteLoop":
        source = source.replace("OnnxLoop", loop).replace(", 48, 2, null)", ", 48, 2)")
    options, path, _ = onnx_or_pte(loop)
    classes, library = text_java
    (tmp_path / "Tell.java").write_text(source, encoding="utf-8")
    path = compiled([tmp_path / "Tell.java"], tmp_path / "page", os.pathsep.join((path, classes)))
    target = {"OnnxLoop": "onnx", "PteLoop": "executorch"}[loop]
    bundle = bundle_of("ouro", target)
    words = str(bundle), "2", TALE
    options = [*options, "-Dfile.encoding=UTF-8"]
    found = jvm.ran(path, library, "Tell", *words, options=options, loud=True)
    with Session.open(bundle, engine=target, exit="depth:2") as session:
        wanted = "".join(step.text for step in session.generate(TALE, max_tokens=16))
    assert len(set(wanted)) > 3
    assert found == wanted.splitlines()


def test_what_the_loops_do_not_know(bundle_of: BundleOf, pte_java: Checked, tmp_path: Path) -> None:
    """One line each, before anything runs."""
    bundle = tmp_path / "bundle"
    shutil.copytree(bundle_of("ouro", "executorch"), bundle)
    layout, manifest = bundle / "executorch" / "layout.json", bundle / "manifest.json"

    def said(path: Path, **changed: object) -> str:
        before = path.read_text(encoding="utf-8")
        path.write_text(json.dumps(json.loads(before) | changed), encoding="utf-8")
        (line,) = pte_java(bundle, 0, "-")
        path.write_text(before, encoding="utf-8")
        return line

    assert "weights in .ptd files" in said(layout, data=["deltas.ptd"])
    embedding = json.loads(layout.read_text(encoding="utf-8"))["embedding"]
    assert "they come from two exports" in said(layout, embedding=embedding | {"check": 1})
    assert "numbers in 7 groups" in said(layout, embedding=embedding | {"groups": 7})
    assert "has format 3, this loop reads 4" in said(manifest, format=3)
    program = json.loads(manifest.read_text(encoding="utf-8"))["program"]
    assert "a router" in said(manifest, program=program | {"routing": {}})
    assert "it has no vocab_size" in said(manifest, program={**program, "vocab_size": None})
