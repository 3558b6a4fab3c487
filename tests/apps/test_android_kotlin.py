"""The Kotlin of apps/android: the chat without its screen is compiled and run, the screen compiled against stand-ins.

``make android`` gets the compiler, with Compose's plugin, from npm; without it ``test_phone_sources.py`` parses them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from xml.etree import ElementTree

import jvm
import pytest
from http_server import serving
from pages import ROOT, blocks

from edgeloop.export import export_bundle
from edgeloop.runtime import Session


class Quiet(SimpleHTTPRequestHandler):
    """Serves a folder, and writes nothing."""

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "web" / "bundle"
    export_bundle(ROOT / "apps" / "demo" / "checkpoint", folder, targets=["native"], quant="int4")
    return folder


@pytest.fixture
def address(bundle: Path) -> Iterator[str]:
    with serving(partial(Quiet, directory=str(bundle.parent))) as found:
        yield f"{found}/bundle"


def test_answers_as_flows_and_the_chat_without_its_screen(
    lane_engine: Path, bundle: Path, address: str, tmp_path: Path
) -> None:
    """Text is Python's; a flow that is not collected to its end stops the answer; each button does what it says."""
    if reason := jvm.missing() or jvm.without_kotlin():
        pytest.skip(reason)
    (piece,) = blocks(ROOT / "docs" / "android.md", "kotlin")
    page = tmp_path / "Page.kt"
    imports = "import edgeloop.AnswerOptions\nimport edgeloop.Conversation\nimport edgeloop.pieces\n"
    page.write_text(
        f"{imports}suspend fun page(conversation: Conversation) {{\n{piece}}}\n", encoding="utf-8"
    )
    path = jvm.kotlin_classes(tmp_path, jvm.classes(tmp_path), page)
    library = jvm.jni_library(lane_engine, tmp_path)
    model = str(bundle / "native" / "model.lanes")
    with Session.open(bundle, engine="native", kv_bits=16) as session:
        flow = "".join(step.text for step in session.generate("Once upon a time", max_tokens=24))
    lines = jvm.ran(path, library, "edgeloop.chat.ChatCheck", str(tmp_path / "bundles"), address, model)
    ready = [line for line in lines if line.startswith("ready: ")]
    assert ready == ["ready: false", "ready: true depth:1 depth:2 never null"]
    found = dict(line.split(": ", 1) for line in lines)
    assert found.pop("text").strip()
    assert found == {
        "flow": flow.replace("\n", "\\n") + "|LENGTH 24",
        "taken": "true true",
        "ready": "true depth:1 depth:2 never null",
        "problem": "SITE/nowhere/manifest.json answered 404, wanted 200",
        "roles": "user assistant null",
        "another": "2 true",
        "depth": "depth:1 [3, 1] null",  # the prompt ran all depths, and the first token is chosen behind it
        "still": "depth:1 true",
        "stopped": "true true 6 null",
        "left": "false false",
    }


MISTAKES = {
    "fun member(state: ChatState) { state.again() }": "unresolved reference 'again'",
    "@Composable fun none(screen: Screen) { Text(screen.problem) }": "actual type is 'String?'",
    "@Composable fun text() { Text(stringResource(R.string.nothing)) }": "unresolved reference 'nothing'",
    "@Composable fun step() { Slider(0f, {}, step = 2) }": "no parameter with name 'step' found",
    '@Composable fun click() { Button({ Text("") }) {} }': "@Composable invocations can only happen from",
    "@Composable fun weight() { Modifier.weight(1f) }": "unresolved reference 'weight'",
    "class Main : ComponentActivity() { override fun onCreate(old: Bundle) {} }": "overrides nothing",
}


def test_the_screen_compiles_against_stand_ins(tmp_path: Path) -> None:
    """Without a warning, and with the texts of the app's resources as Android's tools write them; finds mistakes."""
    if reason := jvm.missing() or jvm.without_kotlin():
        pytest.skip(reason)
    strings = ElementTree.parse(jvm.APP / "main" / "res" / "values" / "strings.xml").getroot()
    texts = "".join(f"public static final int {text.attrib['name']} = {i};" for i, text in enumerate(strings))
    resources = tmp_path / "R.java"
    resources.write_text(
        f"package edgeloop.chat; public final class R {{ public static final class string {{ {texts} }} }}",
        encoding="utf-8",
    )
    path = jvm.compiled([resources, *jvm.STAND_INS.rglob("*.java")], tmp_path / "java", jvm.classes(tmp_path))
    kotlin = [jvm.STAND_INS, jvm.ENGINE / "main" / "kotlin", jvm.APP]
    goal = tmp_path / "screen"
    assert jvm.compose_says([file for each in kotlin for file in each.rglob("*.kt")], path, goal) == []
    screen = (jvm.APP / "main" / "kotlin" / "edgeloop" / "chat" / "ChatScreen.kt").read_text(encoding="utf-8")
    imports = [line for line in screen.splitlines() if line.startswith(("package", "import"))]
    imports += ["import android.os.Bundle", "import androidx.activity.ComponentActivity"]
    wrong = tmp_path / "Wrong.kt"
    wrong.write_text("\n".join((*imports, *MISTAKES, "")), encoding="utf-8")
    found = jvm.compose_says([wrong], f"{goal}{os.pathsep}{path}", tmp_path / "wrong")
    for line, words in enumerate(MISTAKES.values(), len(imports) + 1):
        assert any(f"Wrong.kt:{line}:" in each and words in each for each in found), (words, found)
    assert all("Wrong.kt:" in each for each in found)
