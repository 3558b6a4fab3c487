"""For killing.py: an export that replaces a bundle."""

from pathlib import Path

from edgeloop.export.bundle.leftovers import sweep
from edgeloop.export.bundle.writer import new_folder

MANIFEST = '{"edgeloop": "1", "files": {"a/text": {}}}'


def write(folder: Path, text: str) -> None:
    (folder / "a").mkdir(parents=True)
    (folder / "a" / "text").write_text(text)
    (folder / "manifest.json").write_text(MANIFEST)


def prepare(folder: Path) -> None:
    write(folder / "out", "old")


def action(folder: Path) -> None:
    with new_folder(folder / "out", force=True) as new:
        write(new, "new")


def state(folder: Path) -> str:
    """What is under the name at once, and again when the next export beside it has swept."""
    now = read(folder)
    sweep(folder)
    assert [path.name for path in folder.iterdir()] == ["out"], list(folder.iterdir())
    return f"{now} {read(folder)}"


def read(folder: Path) -> str:
    out = folder / "out"
    if not out.exists():
        return "nothing"
    assert (out / "manifest.json").read_text() == MANIFEST
    return (out / "a" / "text").read_text()
