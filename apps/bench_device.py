"""``edgeloop bench --device``: the same benchmark on another computer, whose record comes back.

The bundle and what runs it go there into a folder that is gone afterwards: edgeloop with the wheels that it needs, or
the lane engine's C++ host alone.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ..runtime.bundle.manifest import MANIFEST
from ..runtime.errors import UsageError

if TYPE_CHECKING:
    from ..runtime.bundle.folder import Bundle
    from .console import Console, Progress
    from .devices.shell import ShellDevice
    from .devices.store import BoardStore
    from .measure.record import Record

MODES = ("speed", "users", "soak", "chat")
"""Benchmarks that write no file but the record."""
FORWARDED = {
    "engine": "--engine",
    "kv_bits": "--kv-bits",
    "threads": "--threads",
    "cpus": "--cpus",
    "context": "--context",
    "prompt_tokens": "--prompt-tokens",
    "tokens": "--tokens",
    "contexts": "--contexts",
    "depths": "--depths",
    "exits": "--exits",
    "decode": "--decode",
    "users": "--users",
    "requests": "--requests",
    "soak": "--soak",
    "max_stall": "--max-stall",
    "kv_limit": "--kv-limit",
    "depth": "--depth",
    "exit": "--exit",
    "skipped_kv": "--skipped-kv",
    "kv": "--kv",
    "chat": "--chat",
    "runs": "--runs",
    "spread": "--spread",
    "seconds": "--seconds",
}
"""Flags that are the same there, by the names that they have here."""
HERE = {"svg": "--svg"}
"""Flags that write files which do not come back."""
MARGIN = 32 << 20
"""Bytes that are wanted there beside what is sent: caches, and what a benchmark writes."""


def device_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare where to measure, and with what."""
    group = parser.add_argument_group("on another computer")
    group.add_argument(
        "--device",
        metavar="DEVICE",
        help="measure there, and leave nothing behind: ssh://user@board[:port], adb:SERIAL, or local",
    )
    group.add_argument(
        "--host",
        choices=("python", "native"),
        help="what runs there: edgeloop in Python, or the lane engine's C++ host alone (python; adb: native)",
    )
    group.add_argument(
        "--wheels",
        type=Path,
        metavar="FOLDER",
        help="with --device: take wheels from here, without a network (default: from pip's index)",
    )


def check_device(args: argparse.Namespace, mode: str) -> bool:
    """Whether another computer is asked for; UsageError where that and the other flags cannot be."""
    if args.device is None:
        for name in ("host", "wheels"):
            if getattr(args, name) is not None:
                raise UsageError(f"--{name} is about another computer; give it with --device")
        return False
    if mode not in MODES or args.decode == "all":
        raise UsageError(f"--{mode} is measured on this computer alone; leave --device out")
    for name, flag in HERE.items():
        if getattr(args, name) is not None:
            raise UsageError(f"{flag} is drawn on the computer that measures; leave it or --device out")
    if args.wheels is not None and not args.wheels.is_dir():
        raise UsageError(f"--wheels {args.wheels} is no folder; `pip download` fills one")
    return True


def measure_there(args: argparse.Namespace, mode: str, console: Console) -> Record:
    """Measure on the device that ``args`` names → its record."""
    from ..runtime.bundle.folder import Bundle
    from .devices.table import open_device

    bundle = Bundle.open(args.bundle)
    with (
        open_device(args.device) as device,
        console.progress() as progress,
        tempfile.TemporaryDirectory() as name,
    ):
        host = args.host or device.hosts[0]
        if host not in device.hosts:
            raise UsageError(f"{device.name} runs no host in {host}; leave --host out")
        check_host(host, mode)
        progress(f"asking {device.name}", 0.0)
        return _HOSTS[host](args, bundle, device, Path(name), progress)


def _by_python(
    args: argparse.Namespace, bundle: Bundle, device: ShellDevice, scratch: Path, progress: Progress
) -> Record:
    from .devices.python_host import PythonHost, bundle_load, engine_of

    engine = engine_of(bundle, args.engine)
    facts = device.facts()
    progress("gathering what runs there", 0.05)
    host = PythonHost.of(device.name, facts, engine, scratch, args.wheels)
    load = bundle_load(bundle)
    with device.folder(host.need + load.bytes + MARGIN) as folder:
        progress("sending it", 0.1)
        host.install(folder)
        folder.push(load)
        progress(f"measuring on {device.name}", 0.2)
        said = host.run(
            folder, ["-m", "edgeloop.apps.cli", "bench", "bundle", *words(args, engine), "--json"]
        )
    return record_in(said, bundle)


def _by_native(
    args: argparse.Namespace, bundle: Bundle, device: ShellDevice, scratch: Path, progress: Progress
) -> Record:
    from .devices import native_host

    asked, load = native_host.words(args), native_host.bundle_load(bundle)
    facts = device.facts()
    progress("compiling what runs there", 0.05)
    host = native_host.NativeHost.of(device.name, facts, scratch)
    with device.folder(host.need + load.bytes + MARGIN) as folder:
        progress("sending it", 0.1)
        host.install(folder)
        folder.push(load)
        progress(f"measuring on {device.name}", 0.2)
        said = host.run(folder, ["bundle", *asked])
    return native_host.record_in(said, bundle, facts, args)


def measure_stored(
    args: argparse.Namespace, mode: str, device: ShellDevice, store: BoardStore, console: Console
) -> Record:
    """Measure with what is on a board already, in a folder of its own there → the record."""
    from ..runtime.bundle.folder import Bundle, sha256_of
    from .devices import native_host
    from .devices.device import DeviceError
    from .devices.python_host import engine_of, environment, python_of
    from .devices.store import PROGRAM, SITE

    bundle, home = Bundle.open(args.bundle, verify=False), store.folder.path
    own = sha256_of(bundle.folder / MANIFEST)
    if store.folder.ask(f"sha256sum {store.bundle}/{MANIFEST}").split()[:1] != [own]:
        raise DeviceError(
            f"{store.name} on {device.name} is another bundle than {args.bundle}; push it again"
        )
    check_host(args.host, mode)
    facts = device.facts()
    with console.progress() as progress, device.folder(MARGIN) as folder:
        progress(f"measuring on {device.name}", 0.1)
        if args.host == "native":
            said = folder.run([f"{home}/{PROGRAM}", f"{home}/{store.bundle}", *native_host.words(args)])
            return native_host.record_in(said, bundle, facts, args)
        engine = engine_of(bundle, args.engine)
        command = [
            python_of(device.name, facts),
            "-m",
            "edgeloop.apps.cli",
            "bench",
            f"{home}/{store.bundle}",
        ]
        said = folder.run([*command, *words(args, engine), "--json"], environment(f"{home}/{SITE}"))
    return record_in(said, bundle)


def check_host(host: str, mode: str) -> None:
    """UsageError where ``host`` does not have the benchmark ``mode``."""
    if host == "native" and mode != "speed":
        raise UsageError(f"--{mode} is not known to the C++ host; leave it out, or choose --host python")


_HOSTS = {"python": _by_python, "native": _by_native}


def words(args: argparse.Namespace, engine: str) -> list[str]:
    """The flags of ``args`` that are not their defaults, as the command line there takes them."""
    found = ["--engine", engine]
    for name, flag in FORWARDED.items():
        value = getattr(args, name)
        if name == "engine" or value in (None, False, (), []):
            continue
        if value is True:
            found.append(flag)
        else:
            several = isinstance(value, (list, tuple))
            found += [flag, ",".join(map(str, value)) if several else str(value)]
    return found


def record_in(said: str, bundle: Bundle) -> Record:
    """The record in what a benchmark wrote; DeviceError where there is none.

    The bundle's folder has another name there, and has its own in the record.
    """
    from .devices.device import DeviceError
    from .measure.record import Record

    lines = [line for line in said.splitlines() if line.startswith("{")]
    try:
        record = msgspec.convert(json.loads(lines[-1])["record"], Record)
    except (IndexError, KeyError, ValueError, TypeError, RecursionError) as error:
        raise DeviceError(
            f"what came back is no record of a benchmark ({error}); run it there by hand"
        ) from error
    subject = msgspec.structs.replace(record.bundle, name=bundle.folder.name)
    return msgspec.structs.replace(record, bundle=subject)
