"""For killing.py: an update of a bundle that has a former one, and then its way back."""

import shutil
from pathlib import Path

from update_bundles import STORED, contents, new_bundle, old_bundle

from edgeloop.runtime.update.apply import apply_update
from edgeloop.runtime.update.diff import make_update


def prepare(folder: Path) -> None:
    once = folder.with_name("prepared")
    if not once.exists():
        for name in ("bundle", "bundle.former"):
            old_bundle(once / name)
        new_bundle(once / "new", b"more")
        make_update(once / "bundle", once / "new", once / "update")
    shutil.copytree(once, folder, dirs_exist_ok=True)


def action(folder: Path) -> None:
    apply_update(folder / "bundle", folder / "update")


def state(folder: Path) -> str:
    """What is under the name at once, and again when the same call was made once more."""
    now = told(folder)
    action(folder)
    assert contents(folder / "bundle.former") == contents(STORED)
    assert {path.name for path in folder.iterdir()} == {"bundle", "bundle.former", "new", "update"}
    return f"{now} {told(folder)}"


def told(folder: Path) -> str:
    if not (folder / "bundle").exists():
        return "nothing"
    found = contents(folder / "bundle")
    if found == contents(folder / "new"):
        return "new"
    return "old" if found == contents(STORED) else f"neither: {sorted(found)}"
