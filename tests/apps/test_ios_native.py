"""The Swift over libedgeloop: every function, struct, field and constant that it names is in the header files.

``test_swift.py`` compiles it where there is a compiler. The script that makes its library runs here, with stand-ins for
Apple's tools.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from native_programs import Target
from pages import ROOT, blocks

from edgeloop.runtime.engines.native.build import SOURCES

IOS = ROOT / "apps" / "ios"
NATIVE = IOS / "Sources" / "EdgeloopNative"
CODE = {
    path.name: re.sub(r"(?m)//.*$", "", path.read_text(encoding="utf-8")) for path in NATIVE.glob("*.swift")
}
HEADERS = re.sub(
    r"(?m)//.*$",
    "",
    "".join(path.read_text(encoding="utf-8") for path in sorted(SOURCES.glob("edgeloop*.h"))),
)
FUNCTIONS = {
    name: 0 if given.strip() == "void" else given.count(",") + 1
    for name, given in re.findall(r"EL_API\s+[^;(]*?(\w+)\(([^;]*?)\);", HEADERS)
}
STRUCTS = {
    name: set(re.findall(r"(\w+)(?:\[\w+\])?\s*[;,]", body))
    for name, body in re.findall(r"typedef struct (\w+) \{(.*?)\}", HEADERS, re.DOTALL)
}
CONSTANTS = {
    *re.findall(r"\b(EL_[A-Z0-9_]+) = ", HEADERS),
    *re.findall(r"#define (EL_[A-Z0-9_]+) \d", HEADERS),
}
ENUMS = set(re.findall(r"typedef enum (\w+) \{", HEADERS))


def arguments(text: str, start: int) -> int:
    """How many arguments the call has whose ( is at ``start``."""
    depth, count, empty, quoted = 0, 1, True, False
    for i in range(start, len(text)):
        c = text[i]
        quoted ^= c == '"'
        if quoted:
            continue
        depth += (c in "([{") - (c in ")]}")
        if depth == 0:
            return 0 if empty else count
        empty &= i == start or c.isspace()
        count += c == "," and depth == 1
    raise AssertionError(f"a call without an end: {text[start : start + 40]}")


def calls(text: str) -> Iterator[tuple[str, int]]:
    for found in re.finditer(r"\b(el_\w+)\(", text):
        yield found[1], arguments(text, found.end() - 1)


def wrong_calls(text: str) -> list[tuple[str, int]]:
    """Calls of what is no function, or with another number of arguments; structs take none, or their fields."""
    wrong = []
    for name, count in calls(text):
        if name in STRUCTS:
            if count not in (0, len(STRUCTS[name])):
                wrong.append((name, count))
        elif name in ENUMS:
            if count != 1:
                wrong.append((name, count))
        elif FUNCTIONS.get(name) != count:
            wrong.append((name, count))
    return wrong


def unknown_fields(text: str) -> list[str]:
    """Fields of variables that are made as structs of the library, which those have not."""
    made = [(m.start(), m[1], m[2]) for m in re.finditer(r"\bvar (\w+) = (el_\w+)\(\)", text)]
    wrong = []
    for start, name, struct in made:
        later = [at for at, other, _ in made if other == name and at > start]
        part = text[start : min(later, default=len(text))]
        wrong += [
            f"{struct}.{field}"
            for field in re.findall(rf"\b{name}\.(\w+)", part)
            if field not in STRUCTS[struct]
        ]
    return wrong


def test_the_header_files_are_read() -> None:
    assert {"el_open", "el_context_answer", "el_render", "el_encode", "el_writer_push"} <= set(FUNCTIONS)
    assert FUNCTIONS["el_abi"] == 0
    assert FUNCTIONS["el_open"] == 4
    assert {"max_tokens", "stops", "stops_count", "sampling"} <= STRUCTS["el_answer_options"]
    assert len(CONSTANTS) > 40


@pytest.mark.parametrize("name", CODE)
def test_names_are_those_of_the_header_files(name: str) -> None:
    text = CODE[name]
    assert wrong_calls(text) == []
    assert unknown_fields(text) == []
    assert set(re.findall(r"\bEL_[A-Z0-9_]+\b", text)) <= CONSTANTS
    types = set(re.findall(r"\bel_[a-z_0-9]+\b", text))
    assert types <= {*FUNCTIONS, *STRUCTS, *ENUMS}


def test_it_uses_what_an_app_needs() -> None:
    used = {name for text in CODE.values() for name, _ in calls(text)}
    needed = ("new", "free", "say", "chat", "answer", "again", "stop", "length", "message")
    assert {f"el_context_{name}" for name in needed} <= used


def test_what_is_wrong_is_found() -> None:
    text = CODE["LaneConversation.swift"]
    assert wrong_calls(text.replace("el_context_again(context, $0)", "el_context_again(context, 1, $0)")) == [
        ("el_context_again", 3)
    ]
    assert wrong_calls(text.replace("el_context_say(", "el_context_tell(")) == [("el_context_tell", 4)]
    assert unknown_fields(text.replace("sampling.top_k", "sampling.topk")) == ["el_sampling.topk"]


def test_both_hosts_have_what_the_protocol_wants() -> None:
    protocol = (IOS / "Sources" / "Edgeloop" / "ConversationHost.swift").read_text(encoding="utf-8")
    (body,) = re.findall(r"protocol ConversationHost[^{]*\{\n(.*?)\n\}", protocol, re.DOTALL)
    wanted = set(re.findall(r"(?:func|var) \w+(?:\([^)]*\))?", body))
    assert len(wanted) == 8
    for path in (
        IOS / "Sources" / "Edgeloop" / "CoreMLConversation.swift",
        NATIVE / "LaneConversation.swift",
    ):
        text = path.read_text(encoding="utf-8")
        given = set(re.findall(r"public (?:func|var|let) (\w+(?:\([^)]*\))?)", text))
        assert {each.split(" ", 1)[1] for each in wanted} <= given, path.name
        assert "ConversationHost" in text
    screen = "".join(
        path.read_text(encoding="utf-8") for path in (IOS / "Sources" / "EdgeloopChat").glob("*.swift")
    )
    used = set(re.findall(r"\bhost\.(\w+)", screen))
    assert {each.split(" ", 1)[1].partition("(")[0] for each in wanted} - used == {"messages"}


def test_the_package_names_its_folders() -> None:
    package = (IOS / "Package.swift").read_text(encoding="utf-8")
    targets = set(re.findall(r'\.(?:executableT|t)arget\(name: "(\w+)"', package))
    assert targets == {path.name for path in (IOS / "Sources").iterdir()}


STAND_IN = """#!/bin/sh
echo "$(basename "$0") $*" >> "$LOG"
while [ $# -gt 0 ]; do
    case $1 in -o | -output) mkdir -p "$(dirname "$2")"; echo "$1" > "$2" ;; --version) echo stand-in 1 ;; esac
    shift
done
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The script in a folder of its own beside the engine, and tools that write what they are asked for."""
    (tmp_path / "apps" / "ios").mkdir(parents=True)
    (tmp_path / "apps" / "ios" / "xcframework.sh").write_bytes((IOS / "xcframework.sh").read_bytes())
    (tmp_path / "runtime").symlink_to(ROOT / "runtime")
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("xcrun", "xcodebuild"):
        (tools / name).write_text(STAND_IN, encoding="utf-8")
        (tools / name).chmod(0o755)
    return tmp_path


def test_the_script_compiles_each_file_for_each_device(checkout: Path) -> None:
    log = checkout / "log"
    path = f"{checkout / 'tools'}{os.pathsep}{os.environ['PATH']}"
    command = ["sh", str(checkout / "apps" / "ios" / "xcframework.sh")]
    subprocess.run(command, env={**os.environ, "PATH": path, "LOG": str(log)}, check=True)
    lines = log.read_text(encoding="utf-8").splitlines()
    triples = {
        "arm64-apple-ios18.0",
        "arm64-apple-ios18.0-simulator",
        "x86_64-apple-ios18.0-simulator",
        "arm64-apple-macos15.0",
        "x86_64-apple-macos15.0",
    }
    for triple in triples:
        compiled = {
            Path(found[1]).resolve(): line
            for line in lines
            if f"-target {triple} " in line and (found := re.search(r" -c (\S+)", line))
        }
        target = Target(("stand-in",), "darwin", triple.partition("-")[0])
        assert set(compiled) == {source.resolve() for source in target.sources()}
        assert all("-std=c++17" in line and "-ffp-contract=off" in line for line in compiled.values())
    (made,) = (line for line in lines if line.startswith("xcodebuild"))
    assert made.count("-library") == made.count("-headers") == 3
    assert len([line for line in lines if line.startswith("xcrun lipo")]) == 3
    assert (checkout / "apps" / "ios" / "CEdgeloop.xcframework").exists()
    assert sorted(path.name for path in (checkout / "apps" / "ios").iterdir()) == [
        "CEdgeloop.xcframework",
        "xcframework.sh",
    ]


def test_the_readme_calls_what_is_there() -> None:
    """Of the hosts and of what they are given, by the names in the Swift of the page."""
    text = "\n".join(blocks(IOS / "README.md", "swift"))
    sources = "".join(path.read_text(encoding="utf-8") for path in (IOS / "Sources").rglob("*.swift"))
    called = set(re.findall(r"\.(\w+)\(", text)) - {"contains", "appending"}
    assert called
    assert {name for name in called if not re.search(rf"\b(?:func|case) {name}\b", sources)} == set()
    made = set(re.findall(r"\b([A-Z]\w+)\(", text)) - {"Int"}
    assert {name for name in made if not re.search(rf"\b(?:class|struct) {name}\b", sources)} == set()
