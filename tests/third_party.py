"""The table of packages in THIRD_PARTY.md: .venv/bin/python tests/third_party.py writes it anew.

Licences are those that the installed packages' own metadata names.
"""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import PackageNotFoundError, metadata, requires
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "THIRD_PARTY.md"
COMMAND = ".venv/bin/python tests/third_party.py"
TOLD_ELSEWHERE = {
    # Not part of `make install`.
    "lm-eval": "MIT",
    "onnxruntime-genai": "MIT License",
    "ray": "Apache-2.0",
    "torchao": "BSD-3-Clause (its LICENSE file; the metadata has none)",
}
LONGEST = 120
"""Characters of a licence's name; some packages have the whole text in its place."""


def project() -> dict[str, list[str]]:
    """Requirements by extra; those without one are under an empty name."""
    found = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return {"": found["dependencies"], **found["optional-dependencies"]}


def plain(name: str) -> str:
    """The name as indexes write it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def locked() -> dict[str, str]:
    """All that ``make install`` installs, with versions, and what the project names beside it, without."""
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    named = {plain(Requirement(line).name): "" for lines in project().values() for line in lines}
    return named | {plain(name): version for name, version in re.findall(r"(?m)^([\w.-]+)==(\S+)", text)}


def licence(name: str) -> str | None:
    """What the package's metadata says; None where it is not installed."""
    if name in TOLD_ELSEWHERE:
        return TOLD_ELSEWHERE[name]
    try:
        told = metadata(name)
    except PackageNotFoundError:
        return None
    classifiers = told.get_all("Classifier") or []
    classes = [c.rpartition(" :: ")[2] for c in classifiers if c.startswith("License ::")]
    for found in (told.get("License-Expression"), told.get("License"), ", ".join(classes)):
        if found and found.strip() and len(found) <= LONGEST:
            return found.strip()
    # A whole text: its first line is its name.
    return (told.get("License") or told.get("License-Expression") or "").strip().splitlines()[0][:LONGEST]


def needed_by(extra: str) -> set[str]:
    """What the requirements of ``extra`` bring along, as far as it is installed here."""
    found: set[str] = set()
    waiting = [(Requirement(line).name, frozenset[str]()) for line in project()[extra]]
    while waiting:
        name, extras = waiting.pop()
        if plain(name) in found and not extras:
            continue
        found.add(plain(name))
        try:
            lines = requires(name) or []
        except PackageNotFoundError:
            continue
        for wanted in map(Requirement, lines):
            if wanted.marker is None or any(wanted.marker.evaluate({"extra": e}) for e in ("", *extras)):
                more = frozenset(wanted.extras)
                if plain(wanted.name) not in found or more - extras:
                    waiting.append((wanted.name, more))
    return found


def table() -> str:
    """The rows, by name."""
    brought = {extra: needed_by(extra) for extra in project()}
    rows = ["| package | licence | comes with |", "|---|---|---|"]
    for name in sorted(locked()):
        told = licence(name)
        if told is None:
            raise SystemExit(f"{name} is in requirements.lock and not installed; run make install")
        extras = [extra for extra in brought if extra and name in brought[extra]]
        where = "every installation" if name in brought[""] else ", ".join(f"`{e}`" for e in extras)
        rows.append(f"| {name} | {told} | {where} |")
    return "\n".join(rows) + "\n"


def main() -> None:
    """Put the table in the place of the one in THIRD_PARTY.md."""
    text = PAGE.read_text(encoding="utf-8")
    start = text.index("| package |")
    end = text.index("\n\n", start) + 1
    PAGE.write_text(text[:start] + table() + text[end:], encoding="utf-8")


if __name__ == "__main__":
    main()
