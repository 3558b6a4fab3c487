"""pyproject.toml says what the tree says."""

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
