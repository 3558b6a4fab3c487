"""The module ``engine`` of apps/android on this computer's own JVM, with the lane engine's library of this computer."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from native_programs import here

ROOT = Path(__file__).resolve().parents[1]
ENGINE = ROOT / "apps" / "android" / "engine" / "src"
APP = ROOT / "apps" / "android" / "app" / "src"
HEADERS = ROOT / "runtime" / "engines" / "native" / "src"
RELEASE = "17"
"""The Java that the module is written in."""


def missing() -> str:
    """Why the module cannot be compiled here, or nothing."""
    if here() is None:
        return "no C++ compiler"
    if not (shutil.which("javac") and shutil.which("java")):
        return "no JDK (apt install openjdk-17-jdk-headless)"
    if not (_jdk() / "include" / "jni.h").is_file():
        return "the JDK has no jni.h (apt install openjdk-17-jdk-headless)"
    return ""


def _jdk() -> Path:
    return Path(shutil.which("javac") or "").resolve().parents[1]


def jni_library(library: Path, folder: Path) -> Path:
    """The JNI library, linked to the lane engine's ``library``, in ``folder``."""
    target = here()
    assert target is not None
    goal = folder / "libedgeloop_jni.so"
    headers = [f"-I{_jdk() / 'include'}", f"-I{_jdk() / 'include' / 'linux'}", f"-I{HEADERS}"]
    flags = ["-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-fPIC", "-fvisibility=hidden", "-shared"]
    sources = map(str, sorted((ENGINE / "main" / "cpp").glob("*.cpp")))
    link = [str(library), f"-Wl,-rpath,{library.parent}", "-o", str(goal)]
    subprocess.run([*target.compiler, *flags, *headers, *sources, *link], check=True)
    return goal


def classes(folder: Path) -> str:
    """The class path of the module and of its test program, compiled into ``folder`` without a warning."""
    return compiled(ENGINE.glob("*/java/edgeloop/*.java"), folder / "classes")


def compiled(sources: Iterable[Path], goal: Path, path: str = "") -> str:
    """The class path of ``sources``, which want the classes of ``path``, compiled into ``goal`` without a warning."""
    # Resources of a try statement are often only there to be closed.
    command = [
        "javac",
        "-encoding",
        "UTF-8",
        "-Xlint:all,-try",
        "-Werror",
        "--release",
        RELEASE,
        "-d",
        str(goal),
    ]
    subprocess.run([*command, "-cp", path, *map(str, sorted(sources))], check=True)
    return os.pathsep.join(filter(None, (str(goal), path)))


def ran(
    path: str,
    library: Path,
    main: str,
    *arguments: str,
    given: str = "",
    options: Iterable[str] = (),
    loud: bool = False,
) -> list[str]:
    """The lines that the class ``main`` writes, with JNI's own checks on; AssertionError where they find something.

    ``options``: of java, beside its memory. ``loud``: processes that it starts may write errors.
    """
    command = [
        "java",
        *options,
        "-Xcheck:jni",
        "-Xms64m",
        "-Xmx64m",
        "-XX:+UseSerialGC",
        "-XX:TieredStopAtLevel=1",
    ]
    done = subprocess.run(
        [*command, f"-Dedgeloop.library={library}", "-cp", path, main, *arguments],
        input=given,
        capture_output=True,
        encoding="utf-8",
        env={
            **os.environ,
            "LC_ALL": "C.UTF-8",  # of the arguments
            "MALLOC_ARENA_MAX": "1",
        },  # so that memory is what is used, not what each thread keeps
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stdout, done.stdout
    assert loud or done.stderr == ""
    return done.stdout.splitlines()


STAND_INS = ROOT / "apps" / "android" / "standins"
KOTLIN = ROOT / "build" / "kotlin" / "package" / "lib"
"""Where ``make android`` puts npm's kotlin-compiler: with Compose's plugin, the library and coroutines."""
COMPILER = ("kotlin-compiler", "kotlin-reflect", "kotlin-script-runtime")
LIBRARIES = ("kotlin-stdlib", "kotlinx-coroutines-core-jvm", "annotations-13.0")
COMPOSE = "plugin:androidx.compose.compiler.plugins.kotlin:skipIrLoweringIfRuntimeNotFound=true"
"""Compose's plugin checks what is composable; without the true runtime it cannot make of it what draws."""


def without_kotlin() -> str:
    """Why the Kotlin is not compiled here, or nothing."""
    return "" if any(KOTLIN.glob("*.jar")) else "no Kotlin compiler (make android)"


def _jars(*names: str) -> str:
    return os.pathsep.join(str(KOTLIN / f"{name}.jar") for name in names)


def _kotlin(sources: Iterable[Path], path: str, goal: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    compiler = [
        "java",
        "-Xmx1g",
        "-cp",
        _jars(*COMPILER, *LIBRARIES),
        "org.jetbrains.kotlin.cli.jvm.K2JVMCompiler",
    ]
    everything = os.pathsep.join((path, _jars(*LIBRARIES)))
    goals = ["-no-stdlib", "-no-reflect", "-jvm-target", RELEASE, "-classpath", everything, "-d", str(goal)]
    return subprocess.run(
        [*compiler, *goals, *flags, *map(str, sources)], capture_output=True, text=True, check=False
    )


def kotlin_classes(folder: Path, path: str, *more: Path) -> str:
    """The class path of all Kotlin that has no class of Android's, and ``more``, behind the classes of ``path``."""
    goal = folder / "kotlin"
    sources = [
        *more,
        *(ENGINE / "main" / "kotlin").rglob("*.kt"),
        *(each for each in APP.rglob("*.kt") if "import android" not in each.read_text(encoding="utf-8")),
    ]
    done = _kotlin(sources, path, goal, "-Werror")
    assert done.returncode == 0, done.stdout + done.stderr
    return os.pathsep.join((str(goal), path, _jars(*LIBRARIES)))


def compose_says(sources: Iterable[Path], path: str, goal: Path) -> list[str]:
    """What the compiler and Compose's plugin find in ``sources``, a line each: its place, and what is wrong.

    ``path`` has the stand-ins for Android's and androidx's classes, or ``sources`` have.
    """
    plugin = f"-Xplugin={KOTLIN / 'compose-compiler-plugin.jar'}"
    done = _kotlin(sources, path, goal, plugin, "-P", COMPOSE)
    said = [line for line in done.stderr.splitlines() if re.search(r"\b(error|warning|exception): ", line)]
    without_runtime = [line for line in said if "requires the Compose Runtime" in line]
    found = [line for line in said if line not in without_runtime]
    assert bool(done.returncode) == any("error: " in line for line in found), done.stdout + done.stderr
    assert without_runtime or found, "the plugin was not there"
    return found
