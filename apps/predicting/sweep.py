"""All combinations of shapes, storage and exits on one device, and which of them no other one beats."""

from __future__ import annotations

import logging
import math
import multiprocessing
import socket
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import product

from ...runtime.errors import EdgeloopError, EngineError, UsageError
from ...runtime.model.work import Work
from ..machine import usable_threads
from .device import Device
from .prediction import CONTEXT, PROMPT, Wanted, predict
from .speed import Machine, Speed
from .subject import Subject, of_program, program_of

MOST = 100_000
"""Combinations of a sweep."""
PATIENCE = 5.0
"""Seconds within which a cluster's head has to answer."""
_WORTH = 2_000
"""Combinations from which on processes pay: one takes milliseconds, and a process starts in seconds."""


@dataclass(frozen=True)
class Grid:
    """What a sweep goes through, beside the models and depths: its axes. A ``context`` or ``prompt`` of 0: as usual."""

    quant: tuple[str, ...]
    group_size: tuple[int, ...]
    kv_bits: tuple[int, ...]
    context: tuple[int, ...]
    shares: tuple[tuple[float, ...], ...]
    prompt: int
    threads: int | None
    lora_rank: int

    @property
    def size(self) -> int:
        """Combinations for each model and depth."""
        return math.prod(map(len, (self.quant, self.group_size, self.kv_bits, self.context, self.shares)))


@dataclass(frozen=True)
class Task:
    """One model at one number of depths (None: its own), which one process works on."""

    model: str
    depths: int | None
    grid: Grid
    device: Device


@dataclass(frozen=True)
class Found:
    """One combination. ``bits_met``: of weights, by a token, each as often as it meets them."""

    model: str
    depths: int
    quant: str
    group_size: int
    kv_bits: int
    context: int
    shares: tuple[float, ...]
    decode: float
    prefill: float
    first_s: float
    memory: float
    bits_met: float
    block_kept: float
    best: bool = False


def run(task: Task) -> list[Found]:
    """Every combination of one model and depth."""
    grid = task.grid
    name, program = program_of(task.model, task.depths, grid.lora_rank)
    found, prompt = [], grid.prompt or min(PROMPT, program.context_length)
    for quant, group in product(grid.quant, grid.group_size):
        subject = of_program(name, program, quant, group)
        met = _bits_met(subject, task.device)
        for kv, context, shares in product(grid.kv_bits, grid.context, grid.shares):
            if shares and len(shares) != program.depths:
                continue  # shares of another number of depths
            behind = context or min(CONTEXT, program.context_length)
            made = predict(subject, task.device, Wanted(grid.threads, prompt, behind, kv, shares))
            found.append(
                Found(
                    model=name,
                    depths=program.depths,
                    quant=quant,
                    group_size=group,
                    kv_bits=kv,
                    context=behind,
                    shares=shares,
                    decode=1 / made.fastest.total,
                    prefill=prompt / made.prompt.total,
                    first_s=made.first_s,
                    memory=made.memory_bytes,
                    bits_met=met(shares),
                    block_kept=made.block_kept,
                )
            )
    return found


def _bits_met(subject: Subject, device: Device) -> Callable[[Sequence[float]], float]:
    """Return the function of shares that counts bits of weights which a token meets."""
    from .costs import lane_engine

    speed = Speed(subject.program, subject.stored, Machine(device, 1, lane_engine().fitted))

    def bits(*works: Work) -> int:
        return sum(each.products * each.bits for work in works for each in work.products)

    around, depths = bits(speed.prologue, speed.epilogue, speed.head), [bits(block) for block in speed.blocks]

    def met(shares: Sequence[float]) -> float:
        if not shares:
            return around + sum(depths)
        return around + sum(share * sum(depths[: n + 1]) for n, share in enumerate(shares))

    return met


def marked(found: Sequence[Found]) -> list[Found]:
    """Return ``found``, fastest first, with those marked that no other one beats.

    One beats another that is no faster, takes no less memory and meets no more bits, if it differs in one of them.
    """
    ordered = sorted(found, key=lambda one: (-one.decode, one.memory, -one.bits_met))
    kept = list[Found]()
    done = []
    for one in ordered:  # whoever beats it is as fast, so it came before
        key = (one.decode, one.memory, one.bits_met)
        beaten = any(
            other.memory <= one.memory
            and other.bits_met >= one.bits_met
            and (other.decode, other.memory, other.bits_met) != key
            for other in kept
        )
        if not beaten:
            kept.append(one)
        done.append(replace(one, best=not beaten))
    return done


def sweep(tasks: Sequence[Task], jobs: int | None = None, ray: str | None = None) -> list[Found]:
    """Return every combination of ``tasks``, marked: in ``jobs`` processes, or on the Ray cluster at ``ray``.

    Without ``jobs`` in as many as there are cores, where that is worth the seconds that a process takes to start.

    UsageError for more than ``MOST`` combinations; errors of a task as it raises them.
    """
    total = sum(task.grid.size for task in tasks)
    if total > MOST:
        raise UsageError(f"{total} combinations are more than {MOST}; sweep fewer values")
    if ray is not None:
        parts: Iterable[list[Found]] = _on_ray(tasks, ray)
    elif (processes := min(jobs or (usable_threads() if total > _WORTH else 1), len(tasks))) == 1:
        parts = map(run, tasks)
    else:  # not forked: torch has threads
        with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
            parts = list(pool.map(run, tasks))
    found = marked([one for part in parts for one in part])
    if not found:
        raise UsageError("no combination: exit shares are for another number of depths than any model has")
    return found


def _on_ray(tasks: Sequence[Task], address: str) -> list[list[Found]]:
    try:
        import ray
    except ModuleNotFoundError as error:
        raise EngineError("--ray needs Ray, which is not installed: pip install 'edgeloop[ray]'") from error
    _check_answers(address)
    try:
        # Its own lines, the workers' too, would stand between ours.
        ray.init(address=address, ignore_reinit_error=True, log_to_driver=False, logging_level=logging.ERROR)
        remote = ray.remote(run)
        found: list[list[Found]] = ray.get([remote.remote(task) for task in tasks])
    except Exception as error:  # Ray's own errors have no common base but this
        cause = getattr(error, "cause", error)
        if isinstance(cause, EdgeloopError):
            raise cause from None
        raise EngineError(
            f"Ray at {address:.60} failed: {str(error).strip().splitlines()[0]:.200}"
        ) from error
    finally:
        ray.shutdown()
    return found


def _check_answers(address: str) -> None:
    """Raise EngineError where nothing listens at HOST:PORT: Ray itself tries for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        return  # "auto" and the like are Ray's to find
    try:
        socket.create_connection((host, int(port)), PATIENCE).close()
    except (OSError, OverflowError) as error:
        raise EngineError(
            f"nothing answers at {address:.60} ({error}); `ray start --head` starts a cluster and says its address"
        ) from error
