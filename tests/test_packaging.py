"""pyproject.toml says what the tree says."""

import ast
import re
import sys
import tomllib
from itertools import chain
from pathlib import Path

from edgeloop.runtime.version import VERSION

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
NOT_SHIPPED = {"tests", "build", "dist", "docs"}


def test_the_package_list_is_the_tree() -> None:
    folders = [p.parent.relative_to(ROOT) for p in ROOT.rglob("__init__.py")]
    shipped = [
        f for f in folders if not f.parts or not (f.parts[0] in NOT_SHIPPED or f.parts[0].startswith("."))
    ]
    assert PROJECT["tool"]["setuptools"]["packages"] == sorted(
        ".".join(("edgeloop", *f.parts)) for f in shipped
    )


def test_every_module_is_in_a_package() -> None:
    packages = {ROOT.joinpath(*name.split(".")[1:]) for name in PROJECT["tool"]["setuptools"]["packages"]}
    modules = [p for name in ("apps", "export", "quant", "runtime") for p in (ROOT / name).rglob("*.py")]
    assert {module.parent for module in modules} - packages == set()


def test_only_the_package_itself_is_at_the_root() -> None:
    assert [p.name for p in ROOT.glob("*.py")] == ["__init__.py"]  # any other would land in the wheel


def test_package_data_exists() -> None:
    for package, patterns in PROJECT["tool"]["setuptools"]["package-data"].items():
        folder = ROOT.joinpath(*package.split(".")[1:])
        for pattern in patterns:
            assert list(folder.glob(pattern)), f"{package}: nothing matches {pattern}"


def test_the_version_is_the_same_in_both_places() -> None:
    assert PROJECT["project"]["version"] == VERSION


def test_every_requirement_is_pinned() -> None:
    project = PROJECT["project"]
    for requirement in chain(project["dependencies"], *project["optional-dependencies"].values()):
        assert re.fullmatch(r"[\w.-]+==[\d.]+", requirement), requirement


def test_no_module_has_the_name_of_a_standard_one() -> None:
    # Inside a package this is legal, but it misleads readers, and scripts that are run from that folder.
    names = {p.stem for f in ("apps", "export", "quant", "runtime") for p in (ROOT / f).rglob("*.py")}
    assert names & set(sys.stdlib_module_names) == set()


def test_texts_are_read_and_written_in_an_encoding_of_ours() -> None:
    """Not in the one of the user's locale. What a system writes in ASCII (/proc, /sys) may be read in any."""
    found = []
    for path in (p for f in ("apps", "export", "quant", "runtime") for p in (ROOT / f).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and _depends_on_the_locale(node):
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)[:80]}")
    assert found == []


def _depends_on_the_locale(call: ast.Call) -> bool:
    """Is it ``read_text``, ``write_text``, or ``open`` in text mode, without an encoding?"""
    name = getattr(call.func, "attr", getattr(call.func, "id", ""))
    if any(k.arg == "encoding" for k in call.keywords) or "'/proc/" in ast.unparse(call):
        return False
    if name == "read_text":
        return not call.args
    if name == "write_text":
        return len(call.args) < 2
    modes = [a.value for a in call.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
    return name == "open" and any(set(mode) <= set("rwax+t") for mode in modes)


def test_files_that_are_spoken_of_exist() -> None:
    """By their whole path or the end of it, in what people read: documents and docstrings."""
    folders = [ROOT / name for name in ("apps", "docs", "export", "quant", "runtime", "tests")]
    tree = [*ROOT.glob("*.md"), *(path for folder in folders for path in folder.rglob("*.*"))]
    known = "\n".join(f"/{path.relative_to(ROOT).as_posix()}" for path in tree) + "\n"
    skipped_kv = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in tree
        if path.suffix in (".md", ".py")
        for name in re.findall(r"`([a-z_0-9/]+\.(?:py|cpp|md))`", path.read_text(encoding="utf-8"))
        if name != "utils.py" and f"/{name}\n" not in known
    }
    assert not skipped_kv
