"""The names that the Swift host uses are those of an exported package; ``test_swift.py`` runs it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from pages import page_table

from edgeloop.export.pipeline import export_bundle
from edgeloop.runtime.bundle.manifest import read_manifest
from edgeloop.runtime.decode.exits import MEASURES
from edgeloop.runtime.engines.coreml.interpreter import read_model
from edgeloop.runtime.engines.coreml.package import Package

SOURCES = Path(__file__).parents[2] / "apps" / "ios" / "Sources" / "Edgeloop"


def names(kind: str) -> set[str]:
    """The texts of one enum of Names.swift, with {} for a number."""
    text = (SOURCES / "Names.swift").read_text(encoding="utf-8")
    (body,) = re.findall(rf"enum {kind} \{{\n(.*?)\n\}}", text, re.DOTALL)
    return {found.replace("\\(depth)", "{}") for found in re.findall(r'"(.*?)"', body)}


@pytest.fixture(scope="module")
def bundle(tiny_once: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("ios") / "bundle"
    export_bundle(tiny_once("mor-middle-cycle"), out, targets=["coreml"])
    return out


def test_functions_and_features(bundle: Path) -> None:
    package = read_manifest(bundle).targets["coreml"].details_as(Package)
    model = read_model(bundle / package.path)
    description = model.description
    functions = {re.sub(r"_d\d+$", "_d{}", f.name) for f in description.functions}
    assert functions == names("FunctionName")
    features = {x.name for f in description.functions for x in (*f.input, *f.output)}
    assert features == names("FeatureName")
    assert names("MetadataKey") <= set(description.metadata.userDefined)


def test_features_of_the_page_for_apps(bundle: Path) -> None:
    """What docs/in-your-app.md says each function takes and gives."""
    package = read_manifest(bundle).targets["coreml"].details_as(Package)
    width, vocabulary = read_manifest(bundle).program.width, read_manifest(bundle).program.vocab_size
    letters = {"1": 1, "S": package.chunk, "D": width, "V": vocabulary}
    table = page_table("in-your-app", "Core ML")
    found = {
        re.sub(r"_d\d+$", "_dN", f.name): f for f in read_model(bundle / package.path).description.functions
    }
    assert set(found) == set(table)
    for name, function in found.items():
        for given, cell in zip((function.input, function.output), table[name], strict=True):
            wanted = re.findall(r"`(\w+)` \[(.*?)\]", cell)
            shapes = {x: [letters[letter] for letter in shape.split(", ")] for x, shape in wanted}
            assert {x.name: list(x.type.multiArrayType.shape) for x in given} == shapes


def test_every_name_is_used() -> None:
    code = "".join(p.read_text(encoding="utf-8") for p in SOURCES.glob("*.swift") if p.name != "Names.swift")
    names_file = (SOURCES / "Names.swift").read_text(encoding="utf-8")
    defined = re.findall(r"static (?:let|func) (\w+)", names_file)
    assert defined
    assert [
        name
        for name in defined
        if not re.search(rf"(?:FunctionName|FeatureName|MetadataKey)\.{name}\b", code)
    ] == []


def test_units_are_known_to_swift(bundle: Path) -> None:
    package = read_manifest(bundle).targets["coreml"].details_as(Package)
    swift = (SOURCES / "RecursiveModel.swift").read_text(encoding="utf-8")
    assert set(package.functions.values()) <= set(re.findall(r'"(\w+)": \.\w+', swift))


def test_measures_are_those_of_the_runtime() -> None:
    swift = (SOURCES / "Exits.swift").read_text(encoding="utf-8")
    (named,) = re.findall(r"CaseIterable, Sendable \{\n +case (.*)\n", swift)
    ours = dict(re.findall(r'(\w+)(?: = "([^"]+)")?', named))
    assert {raw or case for case, raw in ours.items()} == set(MEASURES)
    for body, attribute in (("leavesWhenHigh", "up"), ("readsLogits", "reads_logits")):
        (true,) = re.findall(rf"var {body}: Bool \{{\n.*\n +case (.*): true\n", swift)
        wanted = {name for name, measure in MEASURES.items() if getattr(measure, attribute)}
        assert {ours[case] or case for case in re.findall(r"\.(\w+)", true)} == wanted
    heads = {measure.head for measure in MEASURES.values() if measure.head}
    assert heads == {"gate", "probe"}  # whose weights Exits.swift looks for by the measure's name


def functions(swift: str) -> dict[str, str]:
    """The body of every function that can throw, by its name; its lines keep their indentation."""
    found = {}
    for match in re.finditer(
        r"^( *)(?:\w+ )*func (\w+)[^\n]*\bthrows\b[^\n]*\{(?:\n(.*?)^\1\}|[^\n]*\}$)", swift, re.M | re.S
    ):
        found[match[2]] = match[3] or ""
    return found


def changed_too_early(swift: str) -> list[str]:
    """Lines of throwing functions that change an object's state before, or while, something may still throw.

    Without a compiler: a change is an assignment to a variable that is declared at a type's own level, and has to stand
    outside of loops and branches, behind the last ``try``. After a call that threw, everything is then as it was.
    """
    state = "|".join(re.findall(r"^    (?:\w+(?:\(set\))? )*var (\w+)(?![^\n]*\{)", swift, re.M)) or "(?!)"
    wrong = []
    for name, body in functions(swift).items():
        lines = body.splitlines()
        tries = [i for i, line in enumerate(lines) if re.search(r"\btry\b|\bthrow\b", line)]
        level = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
        for i, line in enumerate(lines):
            if re.search(
                rf"(?<![\w.])(?:self\.)?(?:{state}) *[-+*/]?=(?!=)", re.sub(r"\b(?:let|var) .*", "", line)
            ):
                outside = len(line) - len(line.lstrip()) == level and "defer" not in line
                if not outside or any(t > i for t in tries):
                    wrong.append(f"{name}: {line.strip()}")
    return wrong


def test_a_call_that_throws_changes_nothing() -> None:
    for path in SOURCES.glob("*.swift"):
        assert changed_too_early(path.read_text(encoding="utf-8")) == [], path.name
    loop = (SOURCES / "DepthLoop.swift").read_text(encoding="utf-8")
    assert {"prefill", "decode", "run", "readOut", "makeRoom"} <= set(functions(loop))


@pytest.mark.parametrize(
    ("before", "after", "found"),
    [
        ("        position += 1\n        depthsRun = ran\n",
         "        depthsRun = ran\n        defer { position += 1 }\n",
         "decode: defer { position += 1 }"),
        ("        let (logits, ran) = try await run(token)\n        position += 1\n",
         "        position += 1\n        let (logits, ran) = try await run(token)\n", "decode: position += 1"),
        ("            end += part.count\n", "            position += part.count\n", "prefill: position += part.count"),
        ("            hidden = try array(out, FeatureName.next)\n",
         "            hidden = try array(out, FeatureName.next)\n            depthsRun = depth + 1\n",
         "run: depthsRun = depth + 1"),
    ],
    ids=["defer", "before the call", "in a loop", "in another function"],
)  # fmt: skip
def test_what_would_change_too_early_is_found(before: str, after: str, found: str) -> None:
    loop = (SOURCES / "DepthLoop.swift").read_text(encoding="utf-8")
    assert loop.count(before) == 1
    assert changed_too_early(loop.replace(before, after)) == [found]
