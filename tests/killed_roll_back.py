"""For killing.py: the way back from an update."""

from pathlib import Path

from killed_update import told
from update_bundles import new_bundle, old_bundle

from edgeloop.runtime.errors import UpdateError
from edgeloop.runtime.update.apply import roll_back
from edgeloop.runtime.update.places import Places


def prepare(folder: Path) -> None:
    for name in ("bundle", "new"):
        new_bundle(folder / name)
    old_bundle(folder / "bundle.former")


def action(folder: Path) -> None:
    roll_back(folder / "bundle")


def state(folder: Path) -> str:
    """What is under the name at once, and after what was begun is settled, as the next call does it."""
    now = told(folder)
    places = Places.of(folder / "bundle")
    with places.alone():
        places.settle()
    after = told(folder)
    former = told_former(folder)
    assert {after, former} == {"old", "new"}
    try:
        roll_back(folder / "bundle")
    except UpdateError as error:
        return str(error)
    assert told(folder) == former
    return f"{now} {after}"


def told_former(folder: Path) -> str:
    (folder / "bundle").rename(folder / "aside")
    (folder / "bundle.former").rename(folder / "bundle")
    found = told(folder)
    (folder / "bundle").rename(folder / "bundle.former")
    (folder / "aside").rename(folder / "bundle")
    return found
