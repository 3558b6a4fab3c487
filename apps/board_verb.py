"""``edgeloop board``: bundles that stay on a board, and what runs them: pushed once, run, talked to, measured, removed.

A thin verb over the ssh device of ``bench --device``; what is on the board is ``devices/store.py``'s.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from ..runtime.errors import UsageError
from .console import Console
from .quantities import byte_count

if TYPE_CHECKING:
    from .devices.ssh import SshDevice
    from .devices.store import BoardStore

EXAMPLES = """\
examples:
  edgeloop board pi@board push bundle
  edgeloop board pi@board run bundle -p "Once upon a time" -n 100
  edgeloop board pi@board chat bundle
  edgeloop board pi@board bench bundle -p 128 -n 64 --save runs/
  edgeloop board pi@board pull bundle -o copy
  edgeloop board pi@board remove bundle
  edgeloop board --host python --engine onnx pi@board push bundle
"""
WHAT = ("push", "run", "chat", "bench", "pull", "remove")
FOR_PEOPLE = ("rich", "jinja2", "markupsafe", "pygments")
"""Packages that ``edgeloop run`` and ``chat`` need for people, beside those of an engine."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the board, what is done there, the bundle, and the words for what runs it."""
    parser.description = (
        "Bundles on a board that ssh reaches, and what runs them there: the lane engine's C++ host, or edgeloop in\n"
        "Python. Words behind BUNDLE go to what runs there: edgeloop-run, or `edgeloop run` and `chat`; those of\n"
        "bench are flags of `edgeloop bench`, and pull has -o FOLDER. docs/boards.md goes through it."
    )
    parser.usage = f"edgeloop board [options] USER@HOST {'|'.join(WHAT)} BUNDLE [words]"
    parser.epilog = EXAMPLES
    parser.add_argument("board", metavar="USER@HOST", help="the board, as ssh knows it; user@board:port, too")
    parser.add_argument("what", choices=WHAT, help="what to do")
    parser.add_argument(
        "bundle", type=Path, metavar="BUNDLE", help="push, bench: a folder; else its name is enough"
    )
    parser.add_argument("words", nargs=argparse.REMAINDER, metavar="words", help="flags of what runs there")
    group = parser.add_argument_group("what runs there")
    group.add_argument(
        "--host",
        choices=("native", "python"),
        help="the C++ host alone, or edgeloop in Python (push: native; else what is there)",
    )
    group.add_argument(
        "--engine", metavar="NAME", help="with --host python, push: the engine whose wheel it gets"
    )
    group.add_argument(
        "--wheels", type=Path, metavar="FOLDER", help="with --host python, push: wheels from here"
    )


def main(args: argparse.Namespace, console: Console) -> None:
    """Do it; DeviceError and UsageError, one line each, where that cannot be."""
    from .devices.ssh import SshDevice
    from .devices.store import BoardStore

    if args.what in ("push", "remove") and args.words:
        raise UsageError(
            f"{args.what} takes nothing behind the bundle, not {args.words[0]!r}; options stand before"
        )
    if args.host != "python" and (args.engine or args.wheels):
        raise UsageError("--engine and --wheels are about edgeloop in Python; give them with --host python")
    with SshDevice(args.board.removeprefix("ssh://")) as device:
        store = BoardStore(device, args.bundle.name or args.bundle.resolve().name)
        _DO[args.what](args, device, store, console)


def _push(args: argparse.Namespace, device: SshDevice, store: BoardStore, console: Console) -> None:
    from ..runtime.bundle.folder import Bundle
    from .devices import native_host, python_host

    bundle = Bundle.open(args.bundle)
    python = args.host == "python"
    engine = python_host.engine_of(bundle, args.engine) if python else "native"
    load, facts = (python_host if python else native_host).bundle_load(bundle), device.facts()
    host: native_host.NativeHost | python_host.PythonHost
    with console.progress() as progress, tempfile.TemporaryDirectory(prefix="edgeloop-") as name:
        progress("gathering what runs there", 0.1)
        if python:
            host = python_host.PythonHost.of(device.name, facts, engine, Path(name), args.wheels, FOR_PEOPLE)
        else:
            host = native_host.NativeHost.of(device.name, facts, Path(name))
        progress("sending it", 0.4)
        sent = store.push(host, load)
        takes = {"bundle_bytes": load.bytes, "host_bytes": host.load.bytes, "installed_bytes": host.installed}
    if console.json:
        console.result({"board": device.name, "bundle": store.name, "sent_bytes": sent, **takes})
        return
    console.note(
        f"{store.name} is on {device.name}: {byte_count(load.bytes)}, and what runs it "
        f"{byte_count(takes['installed_bytes'])}; "
        f"{byte_count(sent)} were sent"
    )


def _run(args: argparse.Namespace, device: SshDevice, store: BoardStore, console: Console) -> None:
    """Run or chat there, with this process's own input and output; its exit code is this one's."""
    words = [*_command(args, device, store), *args.words]
    if args.what == "chat" and words[0].startswith("./"):
        words.append("--chat")
    done = subprocess.run(
        device.terminal(f"cd {shlex.quote(store.folder.path)} && exec {shlex.join(words)}"), check=False
    )
    if done.returncode:
        raise SystemExit(done.returncode)


def _command(args: argparse.Namespace, device: SshDevice, store: BoardStore) -> list[str]:
    """The words that run the bundle there, from the store's folder."""
    from .devices.python_host import environment, python_of
    from .devices.store import CACHE, PROGRAM, SITE

    if _host(args, device, store) == "native":
        return [f"./{PROGRAM}", store.bundle]
    given = [f"{name}={value}" for name, value in environment(SITE).items()]
    given.append(f"XDG_CACHE_HOME={store.folder.path}/{CACHE}")  # of engines: removed with the rest
    python = python_of(device.name, device.facts())
    return ["env", *given, python, "-m", "edgeloop.apps.cli", args.what, store.bundle]


def _host(args: argparse.Namespace, device: SshDevice, store: BoardStore) -> str:
    hosts = store.check()
    if args.host is not None and args.host not in hosts:
        raise UsageError(
            f"{device.name} has no host in {args.host}, only {hosts[0]}; push with --host {args.host}"
        )
    host: str = args.host or hosts[0]
    return host


def _bench(args: argparse.Namespace, device: SshDevice, store: BoardStore, console: Console) -> None:
    """``edgeloop bench`` with what is on the board; the bundle is looked at here, too."""
    from . import bench, bench_device
    from .cli import Parser

    parser = Parser(prog="edgeloop board … bench", allow_abbrev=False)
    bench.arguments(parser)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args([str(args.bundle), *args.words])
    asked.device, asked.host = f"ssh://{args.board.removeprefix('ssh://')}", _host(args, device, store)
    mode = bench.chosen(asked)
    bench_device.check_device(asked, mode.name)
    record = bench_device.measure_stored(asked, mode.name, device, store, console)
    bench.present(asked, record, console, data={"engine": record.engine}, notes=record.notes)


def _pull(args: argparse.Namespace, device: SshDevice, store: BoardStore, console: Console) -> None:
    from .cli import Parser

    parser = Parser(prog="edgeloop board … pull", allow_abbrev=False)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--json", action="store_true")
    goal = parser.parse_args(args.words).out
    store.check()
    found = store.pull(goal)
    if console.json:
        console.result({"board": device.name, "bundle": store.name, "folder": str(goal), "bytes": found})
        return
    console.note(f"{byte_count(found)} of {store.name} are in {goal}")


def _remove(args: argparse.Namespace, device: SshDevice, store: BoardStore, console: Console) -> None:
    store.remove()
    if console.json:
        console.result({"board": device.name, "bundle": store.name})
        return
    console.note(f"{store.name} is not on {device.name} any more")


_DO = {"push": _push, "run": _run, "chat": _run, "bench": _bench, "pull": _pull, "remove": _remove}
