"""Seconds of a call: the longer of reading and computing, stage by stage, with what a cache keeps between depths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from ...runtime.model.program import Program
from ...runtime.model.work import Product, Stored, TokenWork, Work
from .costs import Fitted
from .device import Device

CHUNK = 128
"""Tokens of a prompt that go through together: the drivers' own (runtime/decode/sequential.py)."""
KV_ATTENTION = {32: 1.0, 16: 1.5, 8: 2.5}
"""By the bits of K/V, how much quicker attention is than over floats (docs/lane-engine.md)."""
_WHOLE, _NONE = 0.8, 1.6
"""A cache keeps all of what is read in turns up to the first share of its size, and nothing from the second on."""


@dataclass(frozen=True)
class Seconds:
    """Where the time of a call goes. ``read``, ``products``: of matrices, what is not hidden behind the other."""

    read: float = 0.0
    products: float = 0.0
    attention: float = 0.0
    rest: float = 0.0

    @property
    def total(self) -> float:
        """All of it."""
        return self.read + self.products + self.attention + self.rest

    def __add__(self, other: Seconds) -> Seconds:
        return Seconds(*(getattr(self, part.name) + getattr(other, part.name) for part in fields(self)))

    def __mul__(self, times: float) -> Seconds:
        return Seconds(*(times * getattr(self, part.name) for part in fields(self)))


@dataclass(frozen=True)
class Machine:
    """A device with so many threads, as the engine uses it. ``kv_bits``: of a number of K/V."""

    device: Device
    threads: int
    fitted: Fitted
    kv_bits: int = 32

    def kept(self, size: float) -> float:
        """The share of ``size`` bytes, which are read in turns, that the last cache still has."""
        share = size / (self.device.cache_mb * 1e6)
        return min(1.0, max(0.0, (_NONE - share) / (_NONE - _WHOLE)))

    def reading(self, size: float, kept: float) -> float:
        """Seconds to read ``size`` bytes of which the cache has the share ``kept``."""
        cached, memory = (rate.of(self.threads) for rate in (self.device.cache_gb_s, self.device.read_gb_s))
        return size * 1e-9 * (kept / cached + (1 - kept) / (memory * self.fitted.read))

    def call(self, work: Work, rows: float, behind: float, kept: float, kept_kv: float) -> Seconds:
        """Seconds of a call of ``rows`` rows that see ``behind`` tokens."""
        read = computed = attention = 0.0
        for product in work.products:
            reading = self.reading(product.read(max(1, round(rows))), kept)
            computing = self._computing(product, rows)
            longer, shorter = max(reading, computing), min(reading, computing)
            longer += self.fitted.overlap * shorter
            read, computed = (read + longer, computed) if reading > computing else (read, computed + longer)
        for each in work.attentions:
            keys = each.keys(behind)
            reading = self.reading(each.kv * keys * self.kv_bits / 8, kept_kv)
            operations = (self.fitted.key + self.fitted.attention * rows) * each.products * keys
            operations /= KV_ATTENTION[self.kv_bits]
            attention += max(reading, self._float(operations))
        small = self.fitted.number * work.numbers * rows * 1e-9
        # A few rows of a norm are computed by every thread for itself (docs/lane-pass.md).
        rest = small / self.device.float_gops.of(self.threads if rows >= self.threads else 1)
        meetings = len(work.products) + len(work.attentions)
        rest += meetings * self.fitted.wait_us * 1e-6 * (self.threads > 1)
        return Seconds(read, computed, attention, rest)

    def _computing(self, product: Product, rows: float) -> float:
        fitted = self.fitted
        if product.bits >= 16:
            return self._float(fitted.float_row * product.products * rows)
        operations = product.products * (fitted.unpack(product.bits) + fitted.row * rows)
        operations += fitted.scale * product.scales * (1 + rows)
        return operations * 1e-9 / self.device.int8_gops.of(self.threads)

    def _float(self, operations: float) -> float:
        return operations * 1e-9 / self.device.float_gops.of(self.threads)


class Speed(TokenWork):
    """The times of a program on a machine. ``unrolled``: as if every depth had weights of its own."""

    def __init__(self, program: Program, stored: Stored, machine: Machine, *, unrolled: bool = False) -> None:
        super().__init__(program, stored)
        self.machine, self._unrolled = machine, unrolled

    def kv_bytes(self, behind: float) -> float:
        """Bytes of K/V that a token reads."""
        return self.kv_numbers(behind) * self.machine.kv_bits / 8

    def kept(self, behind: float) -> tuple[float, float]:
        """The shares in the cache of what a token reads once, and of a block when its next depth reads it."""
        once = (self.token_bytes if self._unrolled else self.distinct_bytes) + self.kv_bytes(behind)
        if self._unrolled or self.program.depths == 1:
            return self.machine.kept(once), self.machine.kept(once)
        kv = self.blocks[-1].kv_numbers(behind) * self.machine.kv_bits / 8
        return self.machine.kept(once), self.machine.kept(self.block_bytes + kv)

    def loop(self, rows: float, behind: float, depths: int) -> Seconds:
        """The first ``depths`` depths of ``rows`` tokens."""
        (once, again), turn = self.kept(behind), len(set(self.program.loop.schedule))
        found = Seconds()
        for depth, work in enumerate(self.blocks[:depths]):
            found += self.machine.call(work, rows, behind, once if depth < turn else again, once)
        return found

    def around(self, rows: float, behind: float, read_out: float) -> Seconds:
        """What is before and behind the loop; ``read_out``: rows that become logits."""
        kept = self.kept(behind)[0]
        found = self.machine.call(self.prologue, rows, behind, kept, kept)
        if read_out:
            found += self.machine.call(self.epilogue, rows, behind, kept, kept)
            found += self.machine.call(self.head, read_out, behind, kept, kept)
        return found

    def token(self, behind: float, shares: Sequence[float] = (), reads: float = 0.0) -> Seconds:
        """One token with ``behind`` before it. ``shares``: of tokens that leave after each depth (none: all run all).

        ``reads``: how often the logits are looked at before the last time, for each depth that is run.
        """
        shares = shares or (*(0.0,) * (self.program.depths - 1), 1.0)
        found = self.around(1, behind, 1)
        kept = self.kept(behind)[0]
        for depths, share in enumerate(shares, 1):
            found += self.loop(1, behind, depths) * share
            found += self.machine.call(self.head, 1, behind, kept, kept) * (share * reads * (depths - 1))
        return found

    def prompt(self, tokens: int) -> Seconds:
        """Reading ``tokens`` tokens, in chunks, up to the logits of the last one."""
        found = Seconds()
        for start in range(0, tokens, CHUNK):
            rows = min(CHUNK, tokens - start)
            behind, last = start + (rows + 1) / 2, start + rows == tokens
            found += self.around(rows, behind, 0) + self.loop(rows, behind, self.program.depths)
            kept = self.kept(behind)[0]
            found += self.machine.call(self.epilogue, rows, behind, kept, kept)
            if last:
                found += self.machine.call(self.head, 1, behind, kept, kept)
        return found

    def drafted(self, behind: float, acceptance: float) -> Seconds:
        """A token of pipelined decoding whose drafts, made after the first depth, are right with ``acceptance``.

        A pass brings every token in flight one depth further. A right draft costs one pass more; a wrong one leaves the
        next token alone with all of its depths. The pass reads the blocks once, and two rows become logits.
        """
        depths = self.program.depths
        passes = acceptance + depths * (1 - acceptance)
        rows = acceptance * depths + (1 - acceptance) * (depths + 1) / 2
        each = self.around(1, behind, 2) + self.loop(1, behind, depths) * (1 / depths)
        several = self.loop(rows, behind, depths) * (1 / depths)
        alone = self.loop(1, behind, depths) * (1 / depths)
        return (each + several + alone * -1.0) * passes
