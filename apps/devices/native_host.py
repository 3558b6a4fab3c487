"""The lane engine's C++ host, ``edgeloop-run``, as what runs on a device: one program, linked statically, and one file.

It says what it measured as a line of JSON; the record is made of that here.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec

from ...runtime.bundle.folder import Bundle
from ...runtime.bundle.manifest import MANIFEST
from ...runtime.engines.native.build import BuildError
from ...runtime.engines.native.file import NAME
from ...runtime.engines.native.programs import HOST, host
from ...runtime.errors import BundleError, UsageError
from ...runtime.version import VERSION
from ..machine import features_in, processor_in
from ..measure.interval import estimate
from ..measure.record import Machine, Measure, Record, now, subject
from .cross import cross_target, objects_of
from .device import DeviceError, Facts, Load
from .python_host import check_machine
from .shell import ShellFolder

FILE = f"native/{NAME}"
TAKEN = {
    "threads": "--threads",
    "context": "--context",
    "exit": "--exit",
    "skipped_kv": "--skipped-kv",
}
"""Flags of ``edgeloop bench`` that the program has too, beside those that have other defaults or forms."""
SET = ("threads", "exit", "skipped_kv", "decode")
"""What a record has among its settings where it was given."""
LEFT_OUT = {
    "cpus": "--cpus",
    "contexts": "--contexts",
    "depths": "--depths",
    "exits": "--exits",
    "depth": "--depth",
    "kv": "--kv",
}
"""Flags that it does not have."""
NOTE = "measured by edgeloop-run, the C++ host: prompts, tokens, opening and peak memory"

Ms = Annotated[float, msgspec.Meta(ge=0)]


class Said(msgspec.Struct, frozen=True):
    """What ``edgeloop-run --bench --json`` says: milliseconds of each run, and of each token of each run."""

    version: str
    kernels: str
    threads: int
    open_ms: Ms
    prompt_tokens: Annotated[int, msgspec.Meta(gt=0)]
    tokens: Annotated[int, msgspec.Meta(gt=0)]
    prompt_ms: Annotated[tuple[Ms, ...], msgspec.Meta(min_length=1)]
    token_ms: Annotated[tuple[tuple[Ms, ...], ...], msgspec.Meta(min_length=1)]
    peak_bytes: Annotated[int, msgspec.Meta(ge=0)] = 0


def words(args: argparse.Namespace) -> list[str]:
    """The words behind the bundle that measure what ``args`` describes; UsageError for what the program cannot."""
    for name, flag in LEFT_OUT.items():
        if getattr(args, name) not in (None, False, (), [0]):
            raise UsageError(f"{flag} is not known to the C++ host; leave it out, or choose --host python")
    if args.engine not in (None, "native"):
        raise UsageError(
            f"the C++ host is the lane engine, not {args.engine}; leave --engine out, or --host native"
        )
    if len(args.prompt_tokens) > 1:
        raise UsageError(
            "the C++ host measures one length of prompts; give one --prompt-tokens, or --host python"
        )
    found = ["--bench", "--json", "-p", str(args.prompt_tokens[0]), "-n", str(args.tokens)]
    found += ["--kv-bits", str(args.kv_bits)]
    found += ["--runs", str(args.runs)] if args.runs else []
    found += [] if args.decode == "pipelined" else ["--no-drafts"]
    for name, flag in TAKEN.items():
        if getattr(args, name) is not None:
            found += [flag, str(getattr(args, name))]
    return found


def bundle_load(bundle: Bundle, into: str = "bundle") -> Load:
    """What of a bundle the program reads, and its manifest; BundleError where it has no lane engine's file."""
    if FILE not in bundle.manifest.files:
        raise BundleError(
            f"{bundle.folder} holds no native target (only: {', '.join(bundle.manifest.targets)}), which the C++ host "
            "runs; export with --target native"
        )
    return Load({f"{into}/{FILE}": bundle.path(FILE), f"{into}/{MANIFEST}": bundle.folder / MANIFEST})


@dataclass(frozen=True)
class NativeHost:
    """The program for a device."""

    load: Load

    @property
    def need(self) -> int:
        """Bytes that it takes there."""
        return self.load.bytes

    installed = need

    @staticmethod
    def of(name: str, facts: Facts, scratch: Path) -> NativeHost:
        """Compile it for the device ``name``; DeviceError, one line, where that cannot be."""
        check_machine(name, facts)
        target = cross_target(facts.machine, static=True)
        try:
            host(scratch / HOST, target, static=True, objects=objects_of(target))
        except BuildError as error:
            raise DeviceError(f"edgeloop-run cannot be compiled for {facts.machine}: {error}") from error
        return NativeHost(Load({HOST: scratch / HOST}, frozenset({HOST})))

    def install(self, folder: ShellFolder) -> int:
        """Push it to the folder → bytes that were sent."""
        return folder.push(self.load)

    def run(self, folder: ShellFolder, words: Sequence[str]) -> str:
        """Run it there → what it writes."""
        return folder.run([f"./{HOST}", *words])


def record_in(said: str, bundle: Bundle, facts: Facts, args: argparse.Namespace) -> Record:
    """The record of what ``edgeloop-run --bench`` wrote on a device; DeviceError where that is no such thing."""
    lines = [line for line in said.splitlines() if line.startswith("{")]
    try:
        found = msgspec.convert(json.loads(lines[-1]), Said)
    except (IndexError, ValueError, RecursionError) as error:
        raise DeviceError(
            f"what came back is no measurement of {HOST} ({error}); run it there by hand"
        ) from error
    if found.version != VERSION:
        raise DeviceError(
            f"{HOST} there is of version {found.version[:40]!r}, and this is {VERSION}; push it again"
        )
    return Record(
        mode="speed",
        date=now(),
        edgeloop=found.version,
        python="none",
        versions={},
        machine=Machine(
            f"{facts.system} {facts.release}",
            processor_in(facts.cpuinfo, facts.machine),
            tuple(features_in(facts.cpuinfo)),
            facts.threads,
            facts.memory_bytes or None,
            facts.huge_pages == "always",
        ),
        bundle=subject(bundle),
        engine="native",
        settings={
            "host": HOST,
            "kernels": found.kernels,
            "prompt-tokens": str(found.prompt_tokens),
            "tokens": str(found.tokens),
            **{name: str(getattr(args, name)) for name in SET if getattr(args, name) is not None},
        },
        foreign=None,
        disturbed=0,
        turns=len(found.prompt_ms),
        measures=_measures(found),
        notes=(NOTE,),
    )


def _measures(said: Said) -> tuple[Measure, ...]:
    """Under the names that ``edgeloop bench`` gives them."""
    prompt, tokens = said.prompt_tokens, said.tokens
    every = [ms for run in said.token_ms for ms in run]
    found = [
        Measure(
            f"prefill, {prompt} tokens", "prefill", "tokens/s", "more",
            estimate([1000 * prompt / ms for ms in said.prompt_ms if ms] or [0.0]), at=prompt,
        )
    ]  # fmt: skip
    rates = [1000 * len(run) / sum(run) for run in said.token_ms if sum(run)]
    if rates:
        found.append(
            Measure(
                f"decode, {tokens} tokens behind {prompt}",
                "decode",
                "tokens/s",
                "more",
                estimate(rates),
                at=prompt,
            )
        )
        medians = [estimate(run).median for run in said.token_ms if run]
        found.append(Measure("a token", "a token, ms", "ms", "less", estimate(medians)))
        slow = sorted(every)[min(len(every) - 1, len(every) * 99 // 100)]
        found.append(Measure("a token, 99 of 100 within", "a token, ms", "ms", "less", estimate([slow])))
    found.append(Measure("opening the bundle", "start", "ms", "less", estimate([said.open_ms])))
    if said.peak_bytes:
        found.append(Measure("peak", "memory", "bytes", "less", estimate([float(said.peak_bytes)])))
    return tuple(found)
