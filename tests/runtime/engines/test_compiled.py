"""Where the compiled bridge lies, who may have written it, and what is said when it cannot be made."""

from __future__ import annotations

import hashlib
import os
import sys
import time

import pytest

from edgeloop.runtime.engines.executorch import compiled
from edgeloop.runtime.engines.table import available
from edgeloop.runtime.errors import EngineError

pytestmark = pytest.mark.skipif(sys.platform not in compiled.SUFFIXES, reason="no ExecuTorch libraries here")
WRITE = """#!/bin/sh
echo called >> "{log}"
while [ "$1" != -o ]; do shift; done
echo library > "$2"
"""


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """A wheel, an empty cache, and ``compiler(script)`` for what CXX does; returns the log that ``WRITE`` keeps."""
    monkeypatch.setattr(compiled, "wheel", lambda: tmp_path)
    monkeypatch.setattr(compiled.importlib.metadata, "version", lambda name: "1.5.1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def get(script):
        path, log = tmp_path / "my c++", tmp_path / "log"
        path.write_text(script.format(log=log))
        path.chmod(0o755)
        monkeypatch.setenv("CXX", f"'{path}' -O0")
        return log

    return get


def fails(match):
    """The engine's error, which is one line."""
    with pytest.raises(EngineError, match=match) as caught:
        compiled.compile_bridge()
    assert "\n" not in str(caught.value)


def test_a_wheel_without_its_libraries(tmp_path, monkeypatch):
    class Spec:
        submodule_search_locations = (str(tmp_path),)

    monkeypatch.setattr(compiled.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EngineError, match=r"needs the executorch wheel .*edgeloop\[executorch\]"):
        compiled.wheel()
    monkeypatch.setattr(compiled.importlib.util, "find_spec", lambda name: Spec)
    (tmp_path / "lib").mkdir()
    for platform, name in (("linux", "libexecutorch_backend_xnnpack.so"), ("darwin", "xnnpack.dylib")):
        monkeypatch.setattr(compiled.sys, "platform", platform)
        with pytest.raises(EngineError, match=f"has no .*{name}"):
            compiled.wheel()
    monkeypatch.setattr(compiled.sys, "platform", "win32")
    with pytest.raises(
        EngineError, match="runs on Linux and macOS, .* not on win32; choose another with --engine"
    ):
        compiled.wheel()


def test_other_computers(monkeypatch):
    """Doctor and ``open_backend`` say so before anything is looked for."""
    monkeypatch.setattr(compiled.sys, "platform", "win32")
    row = next(row for row in available() if row.name == "executorch")
    assert row.version is None
    assert "not on win32" in row.install
    monkeypatch.setattr(compiled.sys, "platform", "linux")
    assert compiled.unavailable_reason() == ""


def test_compiled_once(compiler, tmp_path):
    log = compiler(WRITE)
    library = compiled.compile_bridge()
    assert library.parent == tmp_path / "cache" / "edgeloop"
    assert library.parent.stat().st_mode & 0o777 == 0o700
    assert compiled.compile_bridge() == library
    assert log.read_text() == "called\n"
    assert sorted(path.suffix for path in library.parent.iterdir()) == [".sha256", library.suffix]


def truncate(library):
    library.write_bytes(library.read_bytes()[:-1])


def let_others_write(library):
    library.chmod(0o666)


def link(library):
    library.rename(library.with_name("else.so"))
    library.symlink_to("else.so")


@pytest.mark.parametrize("damage", [truncate, let_others_write, link])
def test_compiled_again(compiler, damage):
    log = compiler(WRITE)
    library = compiled.compile_bridge()
    damage(library)
    assert compiled.compile_bridge().read_text() == "library\n"
    assert log.read_text() == "called\ncalled\n"
    assert compiled.is_whole(library)


def test_a_library_of_another_user(compiler, monkeypatch):
    compiler(WRITE)
    library, user = compiled.compile_bridge(), os.getuid()
    monkeypatch.setattr(compiled.os, "getuid", lambda: user + 1)
    assert not compiled.is_whole(library)
    fails("edgeloop belongs to another user .*set XDG_CACHE_HOME")


@pytest.mark.parametrize("name", ["cache/edgeloop", "cache"])
def test_a_folder_that_others_may_write_to(compiler, tmp_path, name):
    """Its own, or one above it: whoever may rename the folder may put another in its place."""
    log = compiler(WRITE)
    (tmp_path / "cache" / "edgeloop").mkdir(parents=True)
    (tmp_path / name).chmod(0o777)
    fails(f"{name} may be written by others .*chmod go-w")
    assert not log.exists()
    (tmp_path / name).chmod(0o700)
    compiled.compile_bridge()


def test_sticky_folders_are_fine(compiler, tmp_path):
    compiler(WRITE)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o1777)
    compiled.compile_bridge()


def test_a_relative_cache_home_is_ignored(tmp_path, monkeypatch):
    """As its specification wants it."""
    monkeypatch.setenv("XDG_CACHE_HOME", "some/where")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert compiled.cache_folder() == tmp_path / ".cache" / "edgeloop"
    assert not (tmp_path / "some").exists()


def test_a_home_that_cannot_be_written(compiler, tmp_path, monkeypatch):
    compiler(WRITE)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    fails(r"file/edgeloop, which cannot be written \(.*\); set XDG_CACHE_HOME")

    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(compiled.Path, "home", no_home)
    fails("this user has no home folder; set XDG_CACHE_HOME")


def test_no_compiler(compiler, tmp_path, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    fails("no C\\+\\+ compiler was found; install g\\+\\+ ")
    monkeypatch.setenv("CXX", "clang++-99 -O3")
    fails("CXX is 'clang\\+\\+-99 -O3', which is none; install")
    monkeypatch.setenv("CXX", "'g++")
    fails("which is none; install")


def test_a_compiler_that_fails(compiler):
    compiler("#!/bin/sh\necho 'note: so' >&2\necho 'bridge.cpp:1: error: no such header' >&2\nexit 1\n")
    fails("cannot compile the bridge to executorch 1.5.1: bridge.cpp:1: error: no such header; install")
    compiler("#!/bin/sh\nexit 0\n")  # and writes nothing
    fails("no reason given")


def test_a_compiler_that_does_not_end(compiler, tmp_path, monkeypatch):
    """It is stopped with all that it started."""
    monkeypatch.setattr(compiled, "PATIENCE", 0.2)
    log = compiler("#!/bin/sh\n(sleep 3; echo late >> '{log}') &\nsleep 1000\n")
    fails("did not compile the bridge to executorch in 0.2 seconds and was stopped; set CXX")
    time.sleep(3.5)
    assert not log.exists()
    assert list((tmp_path / "cache" / "edgeloop").iterdir()) == []


def test_what_is_kept_is_what_was_compiled(compiler):
    compiler(WRITE)
    library = compiled.compile_bridge()
    digest = library.with_suffix(".sha256").read_text()
    assert digest == hashlib.sha256(b"library\n").hexdigest()
