"""docs/private-names.md says what the code uses of libraries that they do not promise."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "private-names.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line.split("|")[1:-1]] for line in PAGE.splitlines() if line.startswith("| `")
]
SOURCES = [path for name in ("apps", "export", "quant", "runtime") for path in (ROOT / name).rglob("*.py")]
TREES = {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES}
INSIDES = (
    "coremltools.converters.mil.backend",
    "coremltools.proto",
    "executorch.backends.xnnpack.serialization",
    "torchao.quantization.quantize_",
)


def names(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def own_names() -> set[str]:
    """Private names that the code itself gives to something: of these it may use any."""
    found = set()
    for node in (node for tree in TREES.values() for node in ast.walk(tree)):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                found.add(name)
            case ast.Attribute(value=ast.Name(id="self" | "cls"), attr=name, ctx=ast.Store()):
                found.add(name)
            case ast.Name(id=name, ctx=ast.Store()):
                found.add(name)
    return found


def uses() -> Iterator[tuple[str, str]]:
    """Names and files, of all that is private to a library."""
    ours = own_names()
    for file, tree in TREES.items():
        for node in ast.walk(tree):
            match node:
                case ast.ImportFrom(module=str(module), names=aliases, level=0):
                    whole = module.startswith(INSIDES) or any(map(is_private, module.split(".")))
                    yield from ((a.name, file) for a in aliases if whole or is_private(a.name))
                case ast.Import(names=aliases):
                    for alias in aliases:
                        parts = alias.name.split(".")
                        if alias.name.startswith(INSIDES) or any(map(is_private, parts)):
                            yield alias.name, file
                case ast.Attribute(attr=name) if is_private(name) and name not in ours:
                    yield name, file


def test_the_table_is_what_the_code_uses() -> None:
    listed = {(name, file) for row in ROWS for name in names(row[1]) for file in names(row[2])}
    assert set(uses()) == listed


def test_each_is_held_by_a_test_that_exists() -> None:
    for of, *_, held in ROWS:
        if held == "nothing: no test runs on Windows":
            assert names(of) == ["subprocess.Popen"]
            continue
        file, test = held.strip("`").split("::")
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        assert test in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, held
