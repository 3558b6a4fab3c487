"""Kotlin and Swift without their compilers: they parse, and what they call is there.

``test_android_kotlin.py`` and ``test_swift.py`` compile them where there is a compiler.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pytest
from pages import ROOT, blocks

from edgeloop.runtime.version import VERSION

ANDROID = ROOT / "apps" / "android"
APP = ANDROID / "app" / "src" / "main"
SCREEN = APP / "kotlin" / "edgeloop" / "chat"
SOURCES = {
    "kotlin": [*ANDROID.rglob("*.kt"), *ANDROID.rglob("*.kts")],
    "swift": [*(ROOT / "apps" / "ios").rglob("*.swift")],
}


@pytest.mark.parametrize("language", SOURCES)
def test_it_parses(language: str) -> None:
    """By the grammar that editors use: a place that it cannot read is an ERROR node."""
    tree_sitter: Any = pytest.importorskip("tree_sitter")
    grammar: ModuleType | Any = pytest.importorskip(f"tree_sitter_{language}")
    parser = tree_sitter.Parser(tree_sitter.Language(grammar.language()))
    assert parser.parse(b"fun class {").root_node.has_error
    assert len(SOURCES[language]) > 5
    for page in (
        ROOT / "apps" / "ios" / "README.md",
        *(ROOT / "docs" / f"{name}.md" for name in ("android", "in-your-app")),
    ):
        for text in blocks(page, language):
            assert not parser.parse(text.encode()).root_node.has_error, text
    wrong = [
        path.relative_to(ROOT).as_posix()
        for path in SOURCES[language]
        if parser.parse(path.read_bytes()).root_node.has_error
    ]
    assert wrong == []


def names(pattern: str, *paths: Path) -> set[str]:
    return {name for path in paths for name in re.findall(pattern, path.read_text(encoding="utf-8"))}


def test_the_compose_screen_uses_what_is_there() -> None:
    """Of the state and of its own texts, for those who have no compiler."""
    state, screen, activity = (SCREEN / f"{name}.kt" for name in ("ChatState", "ChatScreen", "MainActivity"))
    text = state.read_text(encoding="utf-8")
    functions = set(re.findall(r"^    (?:override )?fun (\w+)\(", text, re.MULTILINE))
    public = functions | set(re.findall(r"^    val (\w+)", text, re.MULTILINE))
    used = names(r"\bstate(?:\.|::)(\w+)", screen, activity)
    assert {"send", "regenerate", "stop", "choose", "install", "open", "close", "screen"} == used
    assert used <= public
    (fields,) = re.findall(r"data class Screen\((.*?)\n\)", text, re.DOTALL)
    assert names(r"(?<!state\.)\bscreen\.(\w+)", screen) == set(re.findall(r"val (\w+):", fields))
    shown = set(re.findall(r"(?:data class Shown\(|, )val (\w+):", text)) | {"text"}
    assert names(r"\bmessage\.(\w+)", screen) <= shown
    strings = ElementTree.parse(APP / "res" / "values" / "strings.xml").getroot()
    named = {each.attrib["name"] for each in strings}
    manifest = (APP / "AndroidManifest.xml").read_text(encoding="utf-8")
    assert names(r"R\.string\.(\w+)", screen) | set(re.findall(r"@string/(\w+)", manifest)) == named
    assert re.findall(r'android:name="\.(\w+)"', manifest) == [activity.stem]


def test_every_import_of_the_app_is_used() -> None:
    for path in SOURCES["kotlin"]:
        text = path.read_text(encoding="utf-8")
        code = re.sub(r"(?m)^import .*$", "", text)
        imported = re.findall(r"(?m)^import (?:[\w.]+\.)(\w+)$", text)
        assert len(imported) == len(set(imported))
        unused = [
            name
            for name in imported
            if name not in ("getValue", "setValue") and not re.search(rf"\b{name}\b", code)
        ]
        assert unused == [], path.name


def test_gradle_names_what_the_catalog_has() -> None:
    catalog = tomllib.loads((ANDROID / "gradle" / "libs.versions.toml").read_text(encoding="utf-8"))
    builds = [*ANDROID.rglob("build.gradle.kts")]
    assert len(builds) == 3
    used = names(r"\blibs\.([\w.]+)", *builds)
    known = {name.replace("-", ".") for name in catalog["libraries"]}
    known |= {f"plugins.{name.replace('-', '.')}" for name in catalog["plugins"]}
    assert used == known
    refs = {
        each["version"]["ref"]
        for kind in ("libraries", "plugins")
        for each in catalog[kind].values()
        if "version" in each
    }
    assert refs == set(catalog["versions"])
    settings = (ANDROID / "settings.gradle.kts").read_text(encoding="utf-8")
    modules = re.findall(r'":(\w+)"', settings)
    assert {path.parent.name for path in builds} == {*modules, "android"}
    app = (ANDROID / "app" / "build.gradle.kts").read_text(encoding="utf-8")
    assert f'versionName = "{VERSION}"' in app
    (native,) = re.findall(r'path = file\("(.*)"\)', app)
    assert (ANDROID / "app" / native).is_file()
