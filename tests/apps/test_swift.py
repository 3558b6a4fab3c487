"""apps/ios, compiled on Linux with stand-ins for Apple's frameworks: its hosts write what Python writes.

The lane engine behind them is the library itself; Core ML, ONNX Runtime and ExecuTorch answer from a process of
Python's. ``make swift`` has a compiler; without one this is skipped.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import swift_compiler
from pages import ROOT, blocks

from edgeloop.apps.cli import main
from edgeloop.export import export_bundle
from edgeloop.runtime import SamplingOptions, Session
from edgeloop.runtime.engines.native.build import SOURCES

IOS = ROOT / "apps" / "ios"
HOSTS, CHECKS, STAND_INS = IOS / "Hosts", IOS / "Tests" / "Checks", IOS / "Tests" / "StandIns"
TALE, THEN = "Tell me a tale.", "And then?"
PROMPT = [3, 141, 59, 26, 53, 58]
COUNT, CAPACITY = 10, 24
LIBRARIES = {
    "ConversationCheck": ("Edgeloop", "EdgeloopNative", "CoreML", "edgeloop"),
    "DepthCheck": ("Edgeloop", "CoreML"),
    "ChatCheck": ("Edgeloop", "EdgeloopNative", "CoreML", "edgeloop"),
    "EdgeloopChat": ("Edgeloop", "EdgeloopNative", "CoreML", "edgeloop", "SwiftUI"),
    "OnnxCheck": ("OnnxRuntimeBindings",),
    "PteCheck": ("ExecuTorch",),
    "TellCheck": ("Edgeloop", "EdgeloopNative", "CoreML", "edgeloop"),
}

pytestmark = pytest.mark.skipif(
    bool(swift_compiler.missing()), reason=swift_compiler.missing() or "there is one"
)


def swift(folder: Path) -> list[Path]:
    return list(folder.glob("*.swift"))


@dataclass
class Built:
    """Modules and programs in a folder, each compiled when it is first asked for, without a warning."""

    folder: Path
    library: Path

    def __post_init__(self) -> None:
        self.programs: dict[str, list[str]] = {}
        self.modules: set[str] = set()

    def module(self, name: str) -> str:
        """The word that links to it."""
        if name not in self.modules:
            self.modules.add(name)
            if name == "edgeloop":
                shutil.copy(self.library, self.folder)
                header = SOURCES / "edgeloop.h"
                description = f'module CEdgeloop {{\n  header "{header}"\n  export *\n}}\n'
                (self.folder / "module.modulemap").write_text(description, encoding="utf-8")
            elif (STAND_INS / name).is_dir():
                swift_compiler.module(
                    name, [STAND_INS / "Child.swift", *swift(STAND_INS / name)], self.folder
                )
            else:
                needs = {"Edgeloop": ("CoreML",), "EdgeloopNative": ("Edgeloop", "edgeloop")}[name]
                link = [self.module(each) for each in needs]
                swift_compiler.module(name, swift(IOS / "Sources" / name), self.folder, link)
        return f"-l{name}"

    def program(self, name: str) -> list[str]:
        """The command that runs it."""
        if name not in self.programs:
            link = [self.module(each) for each in LIBRARIES[name]]
            self.programs[name] = swift_compiler.program(name, self.sources(name), self.folder, link)
        return self.programs[name]

    def sources(self, name: str) -> list[Path]:
        chat = IOS / "Sources" / "EdgeloopChat"
        loop = [HOSTS / "GreedyLoop.swift", HOSTS / "DepthProgram.swift", CHECKS / "LoopCheck.swift"]
        return {
            "ConversationCheck": [CHECKS / "ConversationCheck.swift"],
            "DepthCheck": [CHECKS / "DepthCheck.swift"],
            "ChatCheck": [CHECKS / "ChatCheck.swift", chat / "ChatState.swift"],
            "EdgeloopChat": swift(chat),
            "OnnxCheck": [*loop, HOSTS / "OnnxLoop.swift", CHECKS / "OnnxOpened.swift"],
            "PteCheck": [
                *loop, HOSTS / "PteLoop.swift", HOSTS / "EmbeddingRows.swift", CHECKS / "PteOpened.swift",
            ],
        }[name]  # fmt: skip

    def ran(self, name: str, *words: object, given: str = "", **answering: Path) -> list[str]:
        """The lines that a program writes; ``answering``: the scripts that answer for what stands behind a stand-in."""
        environment = {
            f"EDGELOOP_{kind.upper()}": f"{sys.executable}\n{script}" for kind, script in answering.items()
        }
        done = subprocess.run(
            [*self.program(name), *map(str, words)],
            input=given,
            capture_output=True,
            text=True,
            env={**os.environ, **environment},
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.splitlines()


@pytest.fixture(scope="module")
def built(lane_engine: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    return Built(tmp_path_factory.mktemp("swift"), lane_engine)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The story model for the lane engine and Core ML, with calibrated exits."""
    bundle = tmp_path_factory.mktemp("demo") / "bundle"
    export_bundle(
        ROOT / "apps" / "demo" / "checkpoint", bundle, targets=["native", "coreml", "onnx"], quant="int8"
    )
    text = bundle.with_name("text")
    text.write_text(
        (ROOT / "apps/demo/texts/grimm.txt").read_text(encoding="utf-8")[2000:6000], encoding="utf-8"
    )
    words = ["calibrate", str(bundle), "--text", str(text), "--skipped-kv", "propagate", "--engine", "native"]
    assert main(words) == 0
    return bundle


def model(bundle: Path) -> Path:
    return bundle / "native" / "model.lanes"


def answer(session: Session, count: int, **options: Any) -> str:
    """A line as the checks write it."""
    steps = list(session.generate(max_tokens=count, **options))
    columns = (",".join(str(getattr(step, name)) for step in steps) for name in ("token", "depth"))
    return "|".join((*columns, "".join(step.text for step in steps).replace("\n", "\\n")))


CASES: list[tuple[str, SamplingOptions, int, str]] = [
    ("never", SamplingOptions(), 40, ""),
    ("never", SamplingOptions(), 40, "tale"),
    ("never", SamplingOptions(temperature=0.8, seed=7), 30, ""),
    ("never", SamplingOptions(temperature=1.2, top_k=20, seed=2**63 + 5), 30, ""),
    ("depth:1", SamplingOptions(), 20, ""),
    ("latent", SamplingOptions(), 40, ""),
    ("probe", SamplingOptions(temperature=0.7, seed=3), 20, ""),
]


def test_the_lane_engine_writes_what_python_writes(built: Built, demo: Path) -> None:
    lines, wanted = [], []
    for rule, sampling, count, stop in CASES:
        given = (rule, sampling.temperature, sampling.top_k, sampling.seed, count, stop, TALE)
        lines.append("|".join(map(str, given)))
        with Session.open(demo, engine="native", kv_bits=16, exit=rule) as session:
            session.converse([{"role": "user", "content": TALE}])
            wanted.append(answer(session, count, sampling=sampling, stop=[stop] if stop else []))
    assert len(set(wanted)) == len(CASES)
    found = built.ran("ConversationCheck", "answers", "lanes", model(demo), given="\n".join(lines) + "\n")
    assert found == wanted


@pytest.mark.parametrize("host", ["lanes", "coreml"])
def test_conversations(host: str, built: Built, demo: Path) -> None:
    """Turns, an exit between them, and the last answer anew; Core ML's functions by the interpreter."""
    options: dict[str, Any] = {"engine": "native", "kv_bits": 16}
    words: list[object] = [host, model(demo)]
    if host == "coreml":
        options = {"engine": "coreml-reference"}
        words = [host, demo / "coreml" / "model.mlpackage", demo / "text.lanes"]
    found = built.ran("ConversationCheck", "talk", *words, functions=ROOT / "tests" / "coreml_functions.py")
    one = [{"role": "user", "content": TALE}]
    with Session.open(demo, **options) as session:
        session.converse(one)
        first = answer(session, 16)
        exits = sorted(session.exits) if hasattr(session, "exits") else None
        depths = session.program.depths
    said = first.split("|")[2]
    talk = [
        *one,
        {"role": "assistant", "content": said.replace("\\n", "\n")},
        {"role": "user", "content": THEN},
    ]
    with Session.open(demo, exit="depth:2", **options) as session:
        session.converse(talk)
        second = answer(session, 16)
    # The prompt ran all depths, so the token behind it did.
    tokens, _, text = second.split("|")
    assert [line.split("|")[::2] for line in found[1:3]] == [[tokens, text]] * 2
    assert found[0] == first
    assert found[3:-1] == [f"user: {TALE}", f"assistant: {said}", f"user: {THEN}", f"assistant: {text}"]
    assert found[-1].startswith(f"{depths} [")
    assert exits is None or all(name in found[-1] for name in exits)


def test_what_is_refused_and_how_an_answer_ends(built: Built, demo: Path) -> None:
    found = dict(
        line.split(": ", 1) for line in built.ran("ConversationCheck", "rules", "lanes", model(demo))[:-1]
    )
    with Session.open(demo, engine="native") as session:
        smile = list(
            session.tokenizer.encode("A caf\u00e9 \N{SLIGHTLY SMILING FACE}\0 \u6f22", special=False)
        )
    assert found == {
        "exit": "exit rule depth:none: wanted depth:1 to depth:3, the depths of this model",
        "again": "there is no answer at the end of the context",
        "file": "/nowhere/model.lanes: No such file or directory",
        "smile": f"true {smile}",
        "stopped": 'true ["user", "assistant"]',
        "left": '3 ["user"]',
        "cancelled": "true",
    }


def test_the_chat_shows_what_its_buttons_do(built: Built, demo: Path) -> None:
    found = dict(line.split(": ", 1) for line in built.ran("ChatCheck", model(demo)))
    rules = found.pop("rules")
    assert re.fullmatch(r'\["depth:1", "depth:2", .*"latent", .*"never"\] of 3', rules)
    assert found == {
        "nothing": "0 false",
        "sent": '["user", "assistant"] true 1',
        "meanwhile": "2",
        "stopped": "[1, 3] true" if "[1, 3]" in found["stopped"] else "[3, 1] true",
        "again": '["user", "assistant"] 0',
        "another": "true no problem",
        "problem": "exit rule depth:9: wanted depth:1 to depth:3, the depths of this model",
    }


def test_the_screen_fits_the_chat(built: Built) -> None:
    assert built.program("EdgeloopChat")


RULES = [
    "never",
    "depth 2",
    "confidence 0.05 0.03",
    "margin 0.02 0.02",
    "entropy 6.5 6.5",
    "kl 0.4 0.4",
    "entropy-diff 0.2 0.2",
    "stable 1 2",
    "latent 0.5 0.3",
    "probe",
]


def test_exit_rules_on_core_ml(built: Built, demo: Path) -> None:
    """Every measure, as Python's session decides, on the same numbers."""
    package = demo / "coreml" / "model.mlpackage"
    script = ROOT / "tests" / "coreml_functions.py"
    given = "\n".join(RULES) + "\n"
    found = built.ran("DepthCheck", package, COUNT, *PROMPT, given=given, functions=script)
    assert len(found) == len(RULES)
    depths = set()
    for rule, line in zip(RULES, found, strict=True):
        name, *numbers = rule.split()
        chosen = f"{name}:{','.join(numbers)}" if numbers else name
        with Session.open(demo, engine="coreml-reference", exit=chosen, skipped_kv="propagate") as session:
            steps = [*session.generate(PROMPT, max_tokens=COUNT + 1)]
        assert line == " ".join(f"{one.token}:{after.depth}" for one, after in pairwise(steps)), rule
        depths.add(tuple(step.depth for step in steps[1:]))
    assert len(depths) > 4


Exported = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def exported(tiny_once: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Exported:
    root = tmp_path_factory.mktemp("loops")

    def get(kind: str, target: str, **options: Any) -> Path:
        goal = root / target / "-".join((kind, *options))
        if not goal.exists():
            export_bundle(tiny_once(kind), goal, targets=[target], quant="int4", **options)
        return goal

    return get


LOOPS = {
    "onnx": ("OnnxCheck", "graphs", "onnx_graphs.py"),
    "executorch": ("PteCheck", "methods", "pte_methods.py"),
}


@pytest.mark.parametrize("depths", [0, 2])
@pytest.mark.parametrize("kind", ["ouro", "mor-lora"])
@pytest.mark.parametrize("target", LOOPS)
def test_loops(target: str, kind: str, depths: int, built: Built, exported: Exported, tmp_path: Path) -> None:
    if target == "executorch":
        pytest.importorskip("executorch")
    written_in_three_ways(built, target, exported(kind, target), depths, tmp_path)


def test_a_loop_with_weights_beside_the_program(
    built: Built, tiny_once: Callable[[str], Path], tmp_path: Path
) -> None:
    """In one file: the runtime behind the stand-in takes no second one, which the deltas would be."""
    pytest.importorskip("executorch")
    bundle = tmp_path / "bundle"
    export_bundle(tiny_once("ouro"), bundle, targets=["executorch"], options={"split_weights": True})
    assert [path.name for path in bundle.rglob("*.ptd")] == ["base.ptd"]
    written_in_three_ways(built, "executorch", bundle, 0, tmp_path)


@pytest.mark.parametrize("target", LOOPS)
def test_the_program_of_the_page(target: str, built: Built, exported: Exported, tmp_path: Path) -> None:
    """As it stands for ONNX Runtime, and with another loop for ExecuTorch: text in and text out."""
    if target == "executorch":
        pytest.importorskip("executorch")
    (text,) = blocks(ROOT / "docs" / "in-your-app.md", "swift")
    if target == "executorch":
        text = text.replace(
            "OnnxLoop(bundle: bundle, capacity: 48, threads: 2)", "PteLoop(bundle: bundle, capacity: 48)"
        )
        assert "PteLoop" in text
    page = built.folder / f"{target}.swift"
    page.write_text(text, encoding="utf-8")
    check, kind, script = LOOPS[target]
    loop = [path for path in built.sources(check) if path.parent == HOSTS]
    link = [built.module(name) for name in (*LIBRARIES[check], *LIBRARIES["TellCheck"])]
    sources = [page, CHECKS / "TellCheck.swift", *loop]
    program = swift_compiler.program(f"Tell{target}", sources, built.folder, link)
    path = f"{sys.executable}\n{ROOT / 'tests' / script}"
    if target == "executorch":
        path = f"{path}\n{tmp_path / 'calls'}"
    bundle = exported("ouro", target)
    done = subprocess.run(
        [*program, str(bundle), TALE, "2"],
        capture_output=True,
        env={**os.environ, f"EDGELOOP_{kind.upper()}": path},
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    with Session.open(bundle, engine=target, exit="depth:2") as session:
        wanted = "".join(step.text for step in session.generate(TALE, max_tokens=16))
    assert len(set(wanted)) > 2
    assert done.stdout.decode() == wanted + "\n"


def test_what_the_loops_do_not_know(built: Built, exported: Exported, tmp_path: Path) -> None:
    """One line each, before anything runs, as in test_app_hosts.py."""
    pytest.importorskip("executorch")
    bundle = tmp_path / "bundle"
    shutil.copytree(exported("ouro", "executorch"), bundle)
    layout, manifest = bundle / "executorch" / "layout.json", bundle / "manifest.json"

    def said(path: Path, **changed: object) -> str:
        before = path.read_text(encoding="utf-8")
        path.write_text(json.dumps(json.loads(before) | changed), encoding="utf-8")
        (line,) = loop(built, "executorch", bundle, 0, tmp_path)
        path.write_text(before, encoding="utf-8")
        return line

    found = json.loads(layout.read_text(encoding="utf-8"))
    assert "the embedding is not where" in said(layout, embedding=found["embedding"] | {"check": 1})
    assert "ends too early" in said(layout, embedding=found["embedding"] | {"values": 2**62})
    assert "a sliding window" in said(layout, sizes=found["sizes"] | {"window": 4})
    assert "has format 3, this loop reads 4" in said(manifest, format=3)
    program = json.loads(manifest.read_text(encoding="utf-8"))["program"]
    assert "a router" in said(manifest, program=program | {"routing": {"kind": "token"}})
    assert "has no vocab_size" in said(manifest, program={**program, "vocab_size": None})
    manifest.write_text("no JSON", encoding="utf-8")
    assert loop(built, "executorch", bundle, 0, tmp_path) == [
        f"{manifest} is not there, or not JSON; copy the bundle again"
    ]


def written_in_three_ways(built: Built, target: str, bundle: Path, depths: int, folder: Path) -> None:
    """The answer by three ways to it, and a prompt behind tokens that left early, as in test_app_hosts.py."""
    lines = loop(built, target, bundle, depths, folder)
    options = {"exit": f"depth:{depths}"} if depths else {}
    with Session.open(bundle, engine=target, **options) as session:
        wanted = [step.token for step in session.generate(PROMPT, max_tokens=COUNT)]
    assert len(set(wanted)) > (1 if depths else 3)
    assert [[int(word) for word in line.split()] for line in lines[:3]] == [wanted] * 3
    early = f"{COUNT - 1} tokens left early; go back to {len(PROMPT)} and begin the prompt with them"
    assert lines[3:] == ([early] if depths else [])


def loop(built: Built, target: str, bundle: Path, depths: int, folder: Path) -> list[str]:
    name, kind, script = LOOPS[target]
    path = ROOT / "tests" / script
    if target == "executorch":
        path = Path(f"{path}\n{folder / 'calls'}")
    return built.ran(name, bundle, CAPACITY, depths, COUNT, *PROMPT, **{kind: path})


def test_the_readme_and_the_page_compile(built: Built) -> None:
    """Each block in a function of its own, with what the text around it has."""
    for name in ("edgeloop", "CoreML", "Edgeloop", "EdgeloopNative"):
        built.module(name)
    found = blocks(IOS / "README.md", "swift")
    assert len(found) > 2
    for text in found:
        lines = text.splitlines()
        imports = {"import Edgeloop", "import EdgeloopNative", "import Foundation"}
        code = "\n".join(line for line in lines if not line.startswith("import "))
        imports |= {line for line in lines if line.startswith("import ")}
        around = "bundle: URL, url: URL, lanes: LaneModel, ids: [Int32]"
        source = "\n".join((*sorted(imports), f"func example({around}) async throws {{", code, "}"))
        assert swift_compiler.said(source, built.folder) == "", text
    assert "cannot find 'nothing'" in swift_compiler.said("func wrong() { nothing() }", built.folder)


def test_the_package_description(built: Built, tmp_path: Path) -> None:
    package = swift_compiler.package(IOS, tmp_path)
    targets = {each["name"]: each["type"] for each in package["targets"]}
    assert targets == {
        "Edgeloop": "regular",
        "CEdgeloop": "binary",
        "EdgeloopNative": "regular",
        "EdgeloopChat": "executable",
    }
    assert {each["platformName"] for each in package["platforms"]} == {"ios", "macos"}
