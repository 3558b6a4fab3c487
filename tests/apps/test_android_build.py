"""CMake makes apps/android's library of what the engine's own build lists, with its flags and for pages of 16 KB."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import arm64
import jvm
import pytest
from native_programs import Target, here

CMAKE = jvm.ENGINE / "main" / "cpp"


def configured(folder: Path, *flags: str) -> dict[Path, list[str]]:
    """By source, the words of the command that compiles it; nothing is compiled but what CMake tries."""
    command = ["cmake", "-S", str(CMAKE), "-B", str(folder), "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON", *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    entries = json.loads((folder / "compile_commands.json").read_text(encoding="utf-8"))
    return {Path(each["file"]): shlex.split(each["command"]) for each in entries}


@pytest.mark.parametrize("machine", ["here", "aarch64"])
def test_cmake_takes_files_and_flags_of_the_engines_build(machine: str, tmp_path: Path) -> None:
    if shutil.which("cmake") is None:
        pytest.skip("no cmake")
    if reason := jvm.missing() or (arm64.missing() if machine == "aarch64" else ""):
        pytest.skip(reason)
    target = here() if machine == "here" else arm64.arm64()
    assert target is not None
    (compiler,) = target.compiler
    flags = [f"-DCMAKE_CXX_COMPILER={compiler}"]
    if machine == "aarch64":
        flags += ["-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64"]
    commands = configured(tmp_path, *flags)
    ours = {path: set(command) for path, command in commands.items() if path.parent != CMAKE}
    wanted = Target(target.compiler, "linux", target.machine)
    assert set(ours) == set(wanted.sources())
    assert [path for path in ours if not set(wanted.flags(path)) <= ours[path]] == []
    assert {path.name for path in commands if path.parent == CMAKE} == {p.name for p in CMAKE.glob("*.cpp")}
    link = (tmp_path / "CMakeFiles" / "edgeloop_jni.dir" / "link.txt").read_text(encoding="utf-8")
    assert "-Wl,-z,max-page-size=16384" in link.split()


LATER = {"java.lang.Record", "java.lang.invoke.StringConcatFactory", "java.lang.runtime.ObjectMethods"}
"""What Android's compiler writes in other words for phones that do not have it."""


def test_the_module_calls_nothing_that_android_8_lacks(tmp_path: Path) -> None:
    """Which has the classes and methods of Java 8, and little more: a name that Java 8 lacks is wrong."""
    if reason := jvm.missing():
        pytest.skip(reason)
    sources = (jvm.ENGINE / "main" / "java" / "edgeloop").glob("*.java")
    jvm.compiled(sources, tmp_path)
    files = map(str, (tmp_path / "edgeloop").glob("*.class"))
    constants = subprocess.run(
        ["javap", "-v", "-p", *files], capture_output=True, text=True, check=True
    ).stdout
    called = {
        (owner.replace("/", ".").replace("$", "."), name)
        for owner, name in re.findall(r"= (?:Interface)?Methodref .*// (java/[\w/$]+)\.(\w+):", constants)
    }
    owners = {owner for owner, _ in called} - LATER
    assert ("java.nio.file.Files", "move") in called
    command = [
        "javac",
        "--release",
        "8",
        "-Xlint:-options",
        "-Xprint",
        *owners,
        "java.net.URLConnection",
        "java.nio.Buffer",
    ]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    known = {name.replace("$", ".") for name in re.findall(r"(?:class|interface|enum) (\w+)", printed)}
    assert {owner.rpartition(".")[2] for owner in owners} <= known
    methods = set(re.findall(r"\b(\w+)\(", printed))
    assert "readAllBytes" in methods
    assert "readString" not in methods
    assert {call for call in called if call[0] in owners and call[1] not in methods} == set()


def test_every_native_method_is_registered() -> None:
    """By its name and its signature, as javac has it: those of Native.java and those of edgeloop_jni.cpp."""
    java = (jvm.ENGINE / "main" / "java" / "edgeloop" / "Native.java").read_text(encoding="utf-8")
    letters = {"byte": "B", "int": "I", "long": "J", "boolean": "Z", "double": "D", "void": "V", "float": "F"}

    def letter(kind: str) -> str:
        plain = kind.rstrip("[]")
        return "[" * kind.count("[]") + letters.get(plain, f"Ledgeloop/Native${plain};")

    wanted = {
        name: f"({''.join(letter(each.split()[0]) for each in given.split(',') if each.strip())}){letter(kind)}"
        for kind, name, given in re.findall(r"static native (\S+) (\w+)\(([^)]*)\)", java)
    }
    assert len(wanted) > 10
    code = "".join(path.read_text(encoding="utf-8") for path in CMAKE.glob("*_jni.cpp"))
    assert dict(re.findall(r'method\("(\w+)", "([^"]+)"', code)) == wanted
