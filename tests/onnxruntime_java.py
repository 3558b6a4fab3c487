"""ONNX Runtime's Java classes here: ``python tests/onnxruntime_java.py ARCHIVE`` takes them out of a package.

PyPI has no package of them alone; pyserini's has them, of 1.17, inside a jar of everything. They call the C interface,
which stays as it was: here that of the onnxruntime which is installed, behind ``SHIM`` under the name they look for.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

from jvm import ROOT

CLASSES = ROOT / "build" / "onnxruntime-java"
"""Where ``make app-hosts`` puts them."""
JNI = "ai/onnxruntime/native/linux-x64/libonnxruntime4j_jni.so"
SHIM = """
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
static void* of(const char* name) {
  void* library = dlopen(getenv("EDGELOOP_ONNXRUNTIME"), RTLD_NOW | RTLD_LOCAL);
  void* found = library ? dlsym(library, name) : NULL;
  if (!found) fprintf(stderr, "%s\\n", dlerror()), exit(1);
  return found;
}
const void* OrtGetApiBase(void) { return ((const void* (*)(void))of(__func__))(); }
void* OrtSessionOptionsAppendExecutionProvider_CPU(void* options, int arena) {
  return ((void* (*)(void*, int))of(__func__))(options, arena);
}
"""


def missing() -> str:
    """Why ONNX Runtime's Java is not run here, or nothing."""
    if not (CLASSES / JNI).is_file():
        return "no Java classes of ONNX Runtime (make app-hosts)"
    return "" if shutil.which("cc") else "no C compiler"


def extract(archive: Path) -> None:
    """Take the classes and the library of x86-64 Linux out of the jar in ``archive``."""
    with tarfile.open(archive) as package:
        name = next(name for name in package.getnames() if name.endswith("fatjar.jar"))
        jar = package.extractfile(name)
        assert jar is not None
        with zipfile.ZipFile(jar) as classes:
            wanted = [
                each
                for each in classes.namelist()
                if each == JNI or (each.startswith("ai/onnxruntime/") and each.endswith(".class"))
            ]
            classes.extractall(CLASSES, wanted)


def options(folder: Path) -> tuple[list[str], dict[str, str]]:
    """What java is given to find the libraries, made in ``folder``: options, and an environment."""
    import onnxruntime

    (installed,) = (Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*")
    native = folder / "native"
    native.mkdir()
    shutil.copy(CLASSES / JNI, native)
    (native / "shim.c").write_text(SHIM, encoding="utf-8")
    (native / "versions").write_text("VERS_1.17.0 { global: *; };\n", encoding="utf-8")
    named = ["-Wl,-soname,libonnxruntime.so.1.17.0", f"-Wl,--version-script={native / 'versions'}"]
    goal = native / "libonnxruntime.so"
    command = ["cc", "-shared", "-fPIC", "-Wall", "-Werror", str(native / "shim.c"), *named, "-ldl", "-o"]
    subprocess.run([*command, str(goal)], check=True)
    environment = {**os.environ, "EDGELOOP_ONNXRUNTIME": str(installed)}
    return [f"-Donnxruntime.native.path={native}"], environment


if __name__ == "__main__":
    extract(Path(sys.argv[1]))
