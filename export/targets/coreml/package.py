"""Writes an .mlpackage: every function, every array once, and what a host must know as metadata."""

from __future__ import annotations

import json
import logging
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path

from coremltools import __version__ as coremltools_version
from coremltools.converters.mil.backend.mil.load import load
from coremltools.converters.mil.mil import Builder as mb
from coremltools.converters.mil.mil import Program
from coremltools.models.utils import save_spec
from coremltools.proto.Model_pb2 import Model

from ....runtime.engines.coreml.interpreter import MODEL
from .constants import Store
from .descriptions import describe
from .functions import build
from .plan import PackagePlan

log = logging.getLogger(__name__)
SPECIFICATION = 9
"""Core ML specification version of iOS 18 and macOS 15: the first with states, int4 and several functions."""


def write_package(
    plan: PackagePlan,
    store: Store,
    path: Path,
    metadata: dict[str, str],
    progress: Callable[[str, float], None],
) -> None:
    """Write the package ``path`` with every function of ``plan``.

    None of coremltools' passes runs: the program is written as it was built, and one of them miscompiles states.
    """
    mb.name_count.clear()  # values are counted by kind, in the whole process: names would tell what was exported before
    program = Program()
    names = plan.functions
    for i, name in enumerate(names):
        progress(name, i / len(names))
        program.add_function(name, build(plan, store, name))
    program.default_function_name = names[0]
    program.export_as_multifunction = True
    program.skip_all_passes = True
    progress("package", 1.0)
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        model = load(program, weights_dir=scratch, specification_version=SPECIFICATION)
        model.description.metadata.userDefined.update(
            {"com.github.apple.coremltools.version": coremltools_version, **metadata}
        )
        describe(model, plan, store.recipe)
        save_spec(model, str(path), weights_dir=scratch)
    make_reproducible(path)
    log.debug("wrote %s", path)


def make_reproducible(path: Path) -> None:
    """Rewrite the package so that it is the same bytes whenever it is written: tables sorted, no random ids."""
    model = path / MODEL
    specification = Model()
    specification.ParseFromString(model.read_bytes())
    model.write_bytes(specification.SerializeToString(deterministic=True))
    manifest = path / "Manifest.json"
    text = manifest.read_text(encoding="utf-8")
    for identifier, item in json.loads(text)["itemInfoEntries"].items():
        text = text.replace(identifier, str(uuid.uuid5(uuid.NAMESPACE_URL, item["path"])))
    entries = json.loads(text)
    manifest.write_text(json.dumps(entries, indent=4, sort_keys=True) + "\n", encoding="utf-8")
