"""How setuptools builds the lane engine into wheels and editable installs; pyproject.toml names these commands.

The library is plain (ctypes loads it), so a wheel goes with any Python 3, and optional: without a compiler the build
warns and everything else is installed.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
from pathlib import Path
from types import ModuleType

from setuptools import Command
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build

log = logging.getLogger(__name__)
PLACE = Path("edgeloop/runtime/engines/native")
"""Of the package's folder in a wheel."""


def _builder() -> ModuleType:
    """``build.py``, by its place: its package may not be importable yet, or be another version's."""
    spec = importlib.util.spec_from_file_location(
        "edgeloop_native_build", Path(__file__).with_name("build.py")
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where its dataclasses look for their types
    spec.loader.exec_module(module)
    return module


_build = _builder()


class Build(build):
    """Setuptools' own, and the library."""

    sub_commands = [*build.sub_commands, ("build_native", None)]


class BuildNative(Command):
    """The library: beside its sources for an editable install, else where a wheel is put together."""

    description = "compile the lane engine, where there is a C++ compiler"
    user_options: list[tuple[str, str | None, str]] = []
    editable_mode = False

    def initialize_options(self) -> None:
        """Set what ``finalize_options`` fills in."""
        self.build_lib: str | None = None

    def finalize_options(self) -> None:
        """Take over the folder in which ``build_py`` puts a wheel together."""
        self.set_undefined_options("build_py", ("build_lib", "build_lib"))

    def run(self) -> None:
        """Compile the library; without a compiler remove an old one and log a warning."""
        library = _build.LIBRARY if self.editable_mode else self.library
        try:
            _build.build(library)
        except _build.BuildError as error:
            library.unlink(missing_ok=True)  # of other sources
            log.warning("edgeloop is installed without its lane engine: %s", error)

    @property
    def library(self) -> Path:
        """Where a wheel is put together."""
        name: str = _build.LIBRARY.name
        return Path(self.build_lib or "") / PLACE / name

    def get_source_files(self) -> list[str]:
        """All of src, for the sdist; relative to the checkout, where setuptools runs."""
        files = (path for path in _build.SOURCES.rglob("*") if path.suffix in (".cpp", ".h"))
        return sorted(os.path.relpath(path) for path in files)

    def get_outputs(self) -> list[str]:
        """Return the path of the library in the wheel, if it was made."""
        return [str(self.library)] if self.library.is_file() else []

    def get_output_mapping(self) -> dict[str, str]:
        """Return where an editable install finds the file that a wheel would have."""
        return {str(self.library): os.path.relpath(_build.LIBRARY)} if _build.LIBRARY.is_file() else {}


class NativeWheel(bdist_wheel):
    """A wheel for any Python 3 of this kind of computer; for any computer when it has no library."""

    def finalize_options(self) -> None:
        """Tell setuptools that the wheel is for one kind of computer."""
        # A library of its own kind, not an extension module: setuptools would call the wheel a pure one.
        setattr(self.distribution, "has_ext_modules", lambda: True)  # noqa: B010
        super().finalize_options()

    def get_tag(self) -> tuple[str, str, str]:
        """Return Python, ABI and platform of the wheel's name."""
        command = self.get_finalized_command("build_native")
        _, _, system = super().get_tag()
        return "py3", "none", system if command.get_outputs() else "any"
