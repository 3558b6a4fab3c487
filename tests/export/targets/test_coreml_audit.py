"""What is put into a Core ML package is found: in its program, in its arrays, in its list, and beside them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from editing import relist

pytest.importorskip("coremltools")
from coremltools.proto import MIL_pb2, Model_pb2

from edgeloop.export.calibration.write import write_probes
from edgeloop.runtime.audit import audit
from edgeloop.runtime.audit.packages import MESSAGES, repeats
from edgeloop.runtime.bundle.folder import Bundle
from edgeloop.runtime.protobuf import field, fields

PACKAGE = "coreml/model.mlpackage"
MODEL, WEIGHTS = (
    f"{PACKAGE}/Data/com.apple.CoreML/model.mlmodel",
    f"{PACKAGE}/Data/com.apple.CoreML/weights/weight.bin",
)
LIST = f"{PACKAGE}/Manifest.json"


@pytest.fixture
def folder(packaged: Callable[..., Bundle], tmp_path: Path) -> Path:
    return Path(shutil.copytree(packaged("edgeloop").folder, tmp_path / "bundle"))


def found_in(folder: Path, name: str) -> list[str]:
    findings = audit(folder).findings
    assert {finding.file for finding in findings} <= {name}
    return [finding.what for finding in findings]


def test_all_is_accounted_for_before_and_after_calibration(folder: Path) -> None:
    assert audit(folder).findings == ()
    program = Bundle.open(folder).program
    write_probes(
        folder,
        np.ones((program.depths - 1, program.width), np.float32),
        np.zeros(program.depths - 1, np.float32),
    )
    assert audit(folder).findings == ()


def note(model: Any) -> str:
    model.mlProgram.docString = "payload"
    return "field 3 of Program, which is not known"


def describe(model: Any) -> str:
    model.description.metadata.userDefined["note"] = "payload"
    return "metadata note of 7 bytes"


def more_json(model: Any) -> str:
    model.description.metadata.userDefined["edgeloop.spec"] += " " * 100
    return "metadata edgeloop.spec that is not JSON as edgeloop writes it"


def another_key(model: Any) -> str:
    model.description.metadata.userDefined["edgeloop.note"] = '"payload"'
    return "metadata edgeloop.note of 9 bytes"


def other_json(model: Any) -> str:
    model.description.metadata.userDefined["edgeloop.exits"] = '{"heads":{},"note":"payload","rules":{}}'
    return "metadata edgeloop.exits that is not what the manifest says"


def long_text(model: Any) -> str:
    model.description.metadata.author = "x" * 1000
    return "author of Metadata, longer than 256 bytes"


def other_file(model: Any) -> str:
    block = next(iter(model.mlProgram.functions["embed"].block_specializations.values()))
    for operation in block.operations:
        for value in (b.value for a in operation.inputs.values() for b in a.arguments if b.HasField("value")):
            if value.HasField("blobFileValue"):
                value.blobFileValue.fileName = "@model_path/../../../secret"
                return "an array in '@model_path/../../../secret', wanted @model_path/weights/weight.bin"
    raise AssertionError("no array")


@pytest.mark.parametrize(
    "change", [note, describe, more_json, another_key, other_json, long_text, other_file]
)
def test_a_program_with_more_in_it(folder: Path, change: Callable[[Any], str]) -> None:
    model = Model_pb2.Model.FromString((folder / MODEL).read_bytes())
    told = change(model)
    (folder / MODEL).write_bytes(model.SerializeToString())
    relist(folder, MODEL)
    assert told in found_in(folder, MODEL)


def test_an_array_that_the_program_does_not_name(folder: Path) -> None:
    data = bytearray((folder / WEIGHTS).read_bytes())
    size = len(data)
    data += bytes(-size % 64) + b"payload" * 30
    (folder / WEIGHTS).write_bytes(data)
    relist(folder, WEIGHTS)
    ((start, length, what),) = [(f.start, f.bytes, f.what) for f in audit(folder).findings]
    assert (start, what) == (size, "nothing in the file refers to it")
    assert length == len(data) - size


def test_headers_and_padding_of_arrays(folder: Path) -> None:
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[40] = data[64 + 40] = 7
    (folder / WEIGHTS).write_bytes(data)
    relist(folder, WEIGHTS)
    assert found_in(folder, WEIGHTS) == ["padding that is not zero"] * 2


def behind(message: bytes, path: tuple[int, ...], more: bytes) -> bytes:
    """``message`` with ``more`` at the end of the message that the fields ``path`` lead to."""
    if not path:
        return message + more
    return b"".join(
        field(each.number, behind(message[each.value : each.end], path[1:], more))
        if each.number == path[0]
        else message[each.start : each.end]
        for each in fields(message)
    )


def test_metadata_that_is_there_twice(folder: Path) -> None:
    """Readers of a protobuf map take the last."""
    entry = field(100, field(1, b"edgeloop.version") + field(2, b"payload"))
    (folder / MODEL).write_bytes(behind((folder / MODEL).read_bytes(), (2, 100), entry))
    relist(folder, MODEL)
    assert found_in(folder, MODEL) == ["metadata edgeloop.version, which is there more than once"] * 2


@pytest.mark.parametrize(
    "change",
    [
        lambda listed: listed | {"note": "payload"},
        lambda listed: (
            listed
            | {
                "itemInfoEntries": {
                    **listed["itemInfoEntries"],
                    "payload": {
                        **listed["itemInfoEntries"][listed["rootModelIdentifier"]],
                        "description": "payload",
                    },
                }
            }
        ),
    ],
    ids=["a key", "an item"],
)
def test_a_list_with_more_in_it(folder: Path, change: Callable[[Any], Any]) -> None:
    listed = change(json.loads((folder / LIST).read_text()))
    (folder / LIST).write_text(json.dumps(listed, indent=4))
    relist(folder, LIST)
    assert found_in(folder, LIST) == ["a package's list with more in it than its files"]


def test_the_fields_are_those_of_core_ml() -> None:
    """Every message that the table names, from the root on, has these fields and whether they repeat."""
    numbers, texts = {2, 3, 4, 5, 8, 13, 14, 1}, {9}
    seen = set()
    stack = [("Model", Model_pb2.Model.DESCRIPTOR)]
    while stack:
        name, theirs = stack.pop()
        if name in seen:
            continue
        seen.add(name)
        fields = {field.number: field for field in theirs.fields}
        for number, (word, holds) in MESSAGES[name].items():
            field = fields[number]
            assert field.name == word
            assert field.is_repeated == repeats(name, word), (name, word)
            if field.message_type is not None:
                stack.append((holds, field.message_type))
            elif holds != "bytes":
                assert field.type in {"number": numbers, "text": texts}[holds], (name, word)
    assert seen == set(MESSAGES)
    assert MIL_pb2.Program.DESCRIPTOR.full_name == "CoreML.Specification.MILSpec.Program"
