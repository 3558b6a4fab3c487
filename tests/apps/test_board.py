"""``edgeloop board``: a bundle that stays on a board behind a real sshd, and what runs it there."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from board_server import Board, missing, reached

Command = Callable[..., tuple[int, str, str]]
pytestmark = pytest.mark.skipif(missing() != "", reason=missing())


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    with reached(tmp_path_factory.mktemp("board")) as found:
        yield found


def test_a_bundle_lives_on_a_board(
    there: Board, native_bundle: Path, static_host: Path, tmp_path: Path, command: Command
) -> None:
    """Pushed, pushed again, run, measured, pulled, removed."""

    def ask(*words: object) -> dict[str, object]:
        code, out, err = command("board", there.address, *words, "--json")
        assert (code, err) == (0, ""), err
        found: dict[str, object] = json.loads(out)
        return found

    def push() -> dict[str, object]:
        code, out, err = command("board", "--json", there.address, "push", native_bundle)
        assert (code, err) == (0, ""), err
        found: dict[str, object] = json.loads(out)
        return found

    first = push()
    assert first["sent_bytes"] == int(str(first["bundle_bytes"])) + int(str(first["host_bytes"]))
    assert push()["sent_bytes"] == 0
    home = there.home / ".edgeloop"
    assert sorted(path.name for path in home.iterdir()) == ["bundles", "edgeloop-run"]
    words = ("-p", "the king", "-n", 4, "--json")
    assert command("board", there.address, "run", native_bundle.name, *words)[0] == 0
    record = ask("bench", native_bundle, "-p", 8, "-n", 4, "--runs", 1)["record"]
    assert isinstance(record, dict)
    assert (record["engine"], record["bundle"]["name"]) == ("native", native_bundle.name)
    pulled = ask("pull", native_bundle.name, "-o", tmp_path / "copy")
    assert pulled["bytes"] == first["bundle_bytes"]
    for path in (tmp_path / "copy").rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (native_bundle / path.relative_to(tmp_path / "copy")).read_bytes()
    code, _, err = command("board", there.address, "pull", native_bundle.name, "-o", tmp_path / "copy")
    assert (code, "exists" in err) == (1, True)
    code, _, err = command("board", there.address, "pull", native_bundle.name, "-o", tmp_path / "no" / "copy")
    assert (code, f"{tmp_path / 'no'} is no folder; choose another place" in err) == (1, True)
    assert command("board", there.address, "remove", native_bundle.name)[0] == 0
    assert list(there.home.iterdir()) == []


def test_people_read_what_was_sent(
    there: Board, native_bundle: Path, static_host: Path, command: Command
) -> None:
    """Without --json: a line behind the progress."""
    for what, said in (("push", "MB were sent"), ("push", "0 B were sent"), ("remove", "is not on")):
        code, out, err = command("board", there.address, what, native_bundle)
        assert (code, out) == (0, ""), err
        assert err.splitlines()[-1].startswith(native_bundle.name)
        assert said in err.splitlines()[-1]
    assert list(there.home.iterdir()) == []


def test_what_is_not_there(there: Board, native_bundle: Path, bundle: Path, command: Command) -> None:
    cases = [
        ((there.address, "run", native_bundle.name), "has no bundle native: push it there first"),
        ((there.address, "remove", native_bundle.name), "has no bundle native"),
        ((there.address, "chat", ".."), "cannot be a bundle's name"),
        ((there.address, "pull", native_bundle.name), "required: -o"),
        ((there.address, "push", bundle), "holds no native target"),
        ((there.address, "push", native_bundle, "--host", "python"), "options stand before"),
        (("--engine", "onnx", there.address, "push", native_bundle), "give them with --host python"),
        (("-x@y", "push", native_bundle), "see `edgeloop board --help`"),
        (("a b", "push", native_bundle), "no address of a board"),
    ]
    for words, said in cases:
        code, out, err = command("board", *words)
        assert (code in (1, 2), out, err.count("\n")) == (True, "", 1), err
        assert said in err, err
    assert list(there.home.iterdir()) == []
