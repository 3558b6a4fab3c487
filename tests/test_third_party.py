"""THIRD_PARTY.md names every package that is installed, with its licence, and every text that is shipped."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

import third_party
from third_party import COMMAND, PAGE, ROOT


def rows() -> dict[str, str]:
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    return {cells[1].strip(): cells[2].strip() for cells in (line.split("|") for line in lines)}


def test_every_package_is_named() -> None:
    named = {name for name in rows() if not name.startswith("`") and " " not in name} - {"package", "what"}
    assert named == set(third_party.locked()), f"run {COMMAND}"


def test_licences_are_those_of_what_is_installed() -> None:
    found = rows()
    same = [name for name, wanted in third_party.locked().items() if installed(name) == wanted]
    assert len(same) > 20
    assert {name: found[name] for name in same} == {n: third_party.licence(n) for n in same}, f"run {COMMAND}"


def installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def test_every_text_is_named_with_where_it_is_from() -> None:
    folder = ROOT / "apps" / "demo" / "texts"
    page = (folder / "README.md").read_text(encoding="utf-8")
    for text in folder.rglob("*.txt"):
        assert f"| {text.relative_to(folder).as_posix()} |" in page
