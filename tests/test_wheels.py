"""The package as it is shipped: wheel, sdist and editable install, with a compiler and without one.

The compiler is a stand-in that writes a line: what it is asked for, and where the result goes, is what is tested here.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from zipfile import ZipFile

import pytest

from edgeloop.runtime.engines.native.build import LIBRARY, Target

ROOT = Path(__file__).parents[1]
ENGINE = "runtime/engines/native"
COMPILER = """#!/bin/sh
[ "$1" = --version ] && { echo stand-in 1; exit; }
while [ $# -gt 0 ]; do
    [ "$1" = -o ] && echo "$2" > "$2"
    shift
done
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of this one, in a folder of another name."""
    folder = tmp_path_factory.mktemp("checkout") / "copy"
    away = ("build", "dist", "docs", "tests", ".*", "__pycache__", "*.egg-info", LIBRARY.name, "tmp*")
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(*away))
    (folder / ENGINE / "src" / "more.cpp").write_text("int more;\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("compiler") / "c++"
    path.write_text(COMPILER, encoding="utf-8")
    path.chmod(0o755)
    return path


def made(hook: str, checkout: Path, compiler: str) -> tuple[Path, str]:
    """What a hook of the build backend makes of ``checkout``, as pip calls it, and what it says."""
    code = f"import setuptools.build_meta as b, pathlib; d = pathlib.Path('dist'); print(b.{hook}(str(d)))"
    shutil.rmtree(checkout / "build", ignore_errors=True)
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=checkout,
        env={**os.environ, "CXX": compiler},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return checkout / "dist" / done.stdout.split()[-1], done.stdout + done.stderr


def test_a_wheel_has_the_library_and_its_sources(checkout: Path, compiler: Path) -> None:
    wheel, _ = made("build_wheel", checkout, str(compiler))
    with ZipFile(wheel) as file:
        names = set(file.namelist())
    assert f"edgeloop/{ENGINE}/{LIBRARY.name}" in names
    for source in Target(("c++",)).sources():
        assert f"edgeloop/{source.relative_to(ROOT).as_posix()}" in names
    assert wheel.name.split("-")[2:4] == ["py3", "none"]
    assert not wheel.name.endswith("-any.whl")
    assert not (checkout / ENGINE / LIBRARY.name).exists()


def test_a_wheel_is_small(checkout: Path, compiler: Path) -> None:
    """The demo's checkpoints and texts stay in the checkout, and so do other files beside the packages."""
    wheel, _ = made("build_wheel", checkout, str(compiler))
    assert wheel.stat().st_size < 2_000_000
    with ZipFile(wheel) as file:
        names = file.namelist()
    assert [
        n for n in names if n.startswith("edgeloop/apps/demo/") and not n.endswith((".py", ".jinja"))
    ] == []
    assert {n.partition("/")[0] for n in names} == {
        "edgeloop",
        f"edgeloop-{wheel.name.split('-')[1]}.dist-info",
    }


def test_without_a_compiler_the_wheel_is_for_any_computer(checkout: Path) -> None:
    wheel, said = made("build_wheel", checkout, "/nowhere/c++")
    assert wheel.name.endswith("-py3-none-any.whl")
    with ZipFile(wheel) as file:
        assert f"edgeloop/{ENGINE}/{LIBRARY.name}" not in file.namelist()
        assert f"edgeloop/{ENGINE}/build.py" in file.namelist()
    assert "installed without its lane engine: CXX is '/nowhere/c++'" in said


def test_an_sdist_is_a_checkout(checkout: Path, compiler: Path, tmp_path: Path) -> None:
    """With all that a wheel is made of, and the demo."""
    sdist, _ = made("build_sdist", checkout, str(compiler))
    careful = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # from Python 3.11.4 on
    with tarfile.open(sdist) as file:
        file.extractall(tmp_path, **careful)
    (folder,) = tmp_path.iterdir()
    for name in ("checkpoint", "routed_checkpoint", "texts"):
        shipped = {p.name for p in (folder / "apps/demo" / name).iterdir()}
        assert shipped == {p.name for p in (ROOT / "apps/demo" / name).iterdir()}
    headers = [p.relative_to(ROOT) for p in (ROOT / ENGINE / "src").rglob("*.h")]
    for path in (*headers, *(source.relative_to(ROOT) for source in Target(("c++",)).sources())):
        assert (folder / path).is_file()
    assert not (folder / ENGINE / LIBRARY.name).exists()
    wheel, _ = made("build_wheel", folder, str(compiler))
    with ZipFile(wheel) as file:
        assert f"edgeloop/{ENGINE}/{LIBRARY.name}" in file.namelist()


def test_an_editable_install_has_the_library_in_the_checkout(checkout: Path, compiler: Path) -> None:
    library = checkout / ENGINE / LIBRARY.name
    try:
        wheel, _ = made("build_editable", checkout, str(compiler))
        assert library.is_file()
        with ZipFile(wheel) as file:
            assert not [name for name in file.namelist() if name.startswith("edgeloop/")]
        _, said = made("build_editable", checkout, "/nowhere/c++")
        assert not library.exists()  # it would be of other sources, and nothing would say so
        assert "installed without its lane engine" in said
    finally:
        library.unlink(missing_ok=True)
