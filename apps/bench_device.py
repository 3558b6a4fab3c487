"""``edgeloop bench --device``: the same benchmark on another computer, whose record comes back.

The bundle, and edgeloop with the wheels that it needs, go there into a folder that is gone afterwards.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ..runtime.errors import UsageError

if TYPE_CHECKING:
    from ..runtime.bundle.folder import Bundle
    from .console import Console, Progress
    from .devices.shell import ShellDevice
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
        help="measure there, and leave nothing behind: ssh://user@board[:port], or local",
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
        if args.wheels is not None:
            raise UsageError("--wheels are those of another computer; give it with --device")
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
        progress(f"asking {device.name}", 0.0)
        return _by_python(args, bundle, device, Path(name), progress)


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
