"""How far each phase is from what this machine could do: the least time that its bytes and operations take, over the
time that was measured.

The least time of a call is the longer of reading its weights and K/V and of multiplying, each at the rate that this
machine reaches (``roofs.py``). What a token reads over and over may stay in a cache: the rate of reading is that of a
buffer of just that size. A recursive model's block comes back after itself and its K/V from the second depth on, all
else once a token (``TokenWork``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import TypeVar

from ...runtime.bundle.folder import Bundle
from ...runtime.decode.routing import RoutingRule
from ...runtime.model.work import TokenWork, Work
from ..predicting.speed import CHUNK
from ..quantities import byte_count
from .interval import estimate
from .record import Measure
from .roofs import FLOAT, Roofs
from .runner import Runner, Wrote
from .stages import TOKENS
from .turns import FOREIGN, Turns

T = TypeVar("T")

ENGINES = ("native", "onnx")
"""Those that read the weights as they are stored, on the processor's own cores."""
MACHINE, LIMIT, ROOFLINE = "this machine", "the limit", "roofline"
"""The groups of a record."""
_FROM = {"cache": "the cache", "memory": "memory"}


@dataclass(frozen=True)
class Load:
    """What calls read and multiply. ``turn``: bytes between two reads of the same weight. ``kv``: of ``bytes`` those of
    K/V; ``operations``: two for each product, by bits."""

    bytes: float
    kv: float
    turn: float
    operations: dict[int, float]

    def __mul__(self, times: float) -> Load:
        every = {bits: times * count for bits, count in self.operations.items()}
        return Load(times * self.bytes, times * self.kv, self.turn, every)

    @property
    def all_operations(self) -> float:
        """Operations of all kinds."""
        return sum(self.operations.values())


@dataclass
class Least:
    """The least seconds of some loads, and what takes them: seconds by the roof's name."""

    seconds: float = 0.0
    roofs: dict[str, float] = field(default_factory=dict)
    bytes: float = 0.0
    operations: float = 0.0

    @staticmethod
    def of(loads: Sequence[Load], roofs: Roofs) -> Least:
        """Add them up."""
        found = Least()
        for load in loads:
            reading = load.bytes / roofs.reading(load.turn)
            kinds = {
                bits: count / roofs.rates[bits] for bits, count in load.operations.items() if roofs.rates
            }
            if reading >= sum(kinds.values()):
                name = f"{roofs.place(load.turn)} bandwidth" + (
                    ", for K/V" if load.kv > load.bytes / 2 else ""
                )
            else:
                bits = max(kinds, key=lambda each: kinds[each])
                name = "float rate" if bits == FLOAT else f"int{bits} rate"
            seconds = max(reading, sum(kinds.values()))
            found.seconds += seconds
            found.roofs[name] = found.roofs.get(name, 0.0) + seconds
            found.bytes += load.bytes
            found.operations += load.all_operations
        return found

    @property
    def roof(self) -> str:
        """The one that takes most of it."""
        return max(self.roofs, key=lambda name: self.roofs[name])


class Loads:
    """What the calls of a bundle's stages read and multiply, with K/V of ``kv_bits`` bits."""

    def __init__(self, bundle: Bundle, kv_bits: int) -> None:
        said = bundle.manifest.quantization

        def stored(matrix: str) -> tuple[int, int]:
            return said.storage(matrix).bits, said.storage(matrix).group_size

        self.work = TokenWork(bundle.program, stored)
        self._kv_bytes = kv_bits / 8
        self._first = len(set(bundle.program.loop.schedule))

    def turns(self, behind: float) -> tuple[float, float]:
        """Bytes between two reads of a weight outside of the loop, and of a block's at its second depth and later."""
        work = self.work
        once = work.distinct_bytes + work.kv_numbers(behind) * self._kv_bytes
        if work.program.depths == self._first:
            return once, once
        return once, work.block_bytes + work.blocks[-1].kv_numbers(behind) * self._kv_bytes

    def call(self, work: Work, rows: int, behind: float, turn: float) -> Load:
        """A call of ``rows`` rows that see ``behind`` tokens each."""
        kv = work.kv_numbers(behind) * self._kv_bytes
        found = dict[int, float]()
        for each in work.products:
            bits = each.bits if each.bits < 16 else FLOAT
            found[bits] = found.get(bits, 0.0) + 2.0 * each.products * rows
        attention = sum(2.0 * each.products * each.keys(behind) * rows for each in work.attentions)
        if attention:
            found[FLOAT] = found.get(FLOAT, 0.0) + attention
        return Load(work.weight_bytes(rows) + kv, kv, turn, found)

    def stages(self, behind: float) -> dict[str, list[Load]]:
        """A token's, by the names that ``stages.py`` has for them."""
        once, again = self.turns(behind)
        found = {"prologue": [self.call(self.work.prologue, 1, behind, once)]}
        for depth, block in enumerate(self.work.blocks):
            turn = once if depth < self._first else again
            found[f"block, depth {depth + 1}"] = [self.call(block, 1, behind, turn)]
        found["epilogue"] = [
            self.call(part, 1, behind, once) for part in (self.work.epilogue, self.work.head)
        ]
        return found

    def token(self, behind: float, shares: Sequence[float], reads: bool) -> list[Load]:
        """A token of which ``shares`` leave after each depth; ``reads``: logits are looked at after every depth."""
        stages = self.stages(behind)
        found = [*stages["prologue"], *stages["epilogue"]]
        for depth in range(len(shares)):
            left = sum(shares[depth:])
            found += [load * left for load in stages[f"block, depth {depth + 1}"]]
            if reads and depth:
                found += [load * left for load in stages["epilogue"]]
        return found

    def prompt(self, tokens: int, behind: int) -> list[Load]:
        """Reading ``tokens`` tokens with ``behind`` before them, in chunks, up to the logits of the last one."""
        found = []
        for start in range(0, tokens, CHUNK):
            rows = min(CHUNK, tokens - start)
            seen = behind + start + (rows + 1) / 2
            once, again = self.turns(seen)
            found.append(self.call(self.work.prologue, rows, seen, once))
            for depth, block in enumerate(self.work.blocks):
                found.append(self.call(block, rows, seen, once if depth < self._first else again))
            found.append(self.call(self.work.epilogue, rows, seen, once))
        return [*found, self.call(self.work.head, 1, behind + tokens, self.turns(behind + tokens)[0])]


@dataclass(frozen=True)
class Limit:
    """How far a run is from the roofs: ``shares`` of each phase by its name, and what a record has of it."""

    shares: dict[str, float]
    measures: list[Measure]
    notes: list[str]


class Limits:
    """Holds what was measured against the roofs of this machine, for what ``runner`` ran of a bundle."""

    def __init__(self, loads: Loads, runner: Runner, roofs: Roofs) -> None:
        self._loads, self._roofs = loads, roofs
        self._rule, self._drafts = runner.policy.rule, runner.pipelined
        self._shares, self._rates = list[Measure](), list[Measure]()

    def prefill(self, prompt: int, behind: int, turns: Turns[Wrote]) -> None:
        """A prompt of so many tokens. A router that sends some past a depth leaves nobody a number to hold it to."""
        if not isinstance(self._rule, RoutingRule):
            name = f"prefill, {prompt} tokens{f' behind {behind}' if behind else ''}"
            self._hold(name, self._loads.prompt(prompt, behind), turns, lambda wrote: wrote.prefill)

    def decode(self, tokens: int, behind: int, turns: Turns[Wrote]) -> None:
        """``tokens`` tokens behind so many. With drafts a pass reads for several, and how many is not counted."""
        if self._drafts:
            return
        depths = self._loads.work.program.depths
        counts = [sum(wrote.depths[n] for wrote in turns.values) for n in range(1, depths + 1)]
        shares = [count / sum(counts) for count in counts]
        token = self._loads.token(behind + (tokens + 1) / 2, shares, self._rule.reads_logits)
        self._hold(f"decode, {tokens} tokens behind {behind}", token, turns, lambda wrote: wrote.token_ms)

    def stages(self, prompt: int, turns: Turns[dict[str, float]]) -> None:
        """The stages of a token at full depth behind a prompt."""
        for name, stage in self._loads.stages(prompt + (TOKENS + 1) / 2).items():
            self._hold(name, stage, turns, itemgetter(name))

    def _hold(self, name: str, loads: Sequence[Load], turns: Turns[T], ms: Callable[[T], float]) -> None:
        least = Least.of(loads, self._roofs)
        if not least.operations:
            return  # a row of a table is looked up
        share = turns.estimate(lambda turn: 1000 * least.seconds / ms(turn))
        rate = turns.estimate(lambda turn: least.operations / ms(turn) / 1e6)
        each = least.operations / least.bytes
        self._shares.append(Measure(f"{name}: {least.roof}", LIMIT, "share", "neither", share))
        said = f"{name}: {each:.3g} operations a byte"
        self._rates.append(Measure(said, ROOFLINE, "GOP/s", "neither", rate, at=each))

    def found(self) -> Limit:
        """All of it."""
        roofs, notes = self._roofs, list[str]()
        if (roofs.foreign or 0.0) > FOREIGN:
            notes.append(
                f"other programs took {roofs.foreign:.0%} of the cores while this machine's rates were measured: "
                "they may be higher, and the shares of them lower"
            )
        if roofs.why:
            notes.append(f"no matrix rates, so phases are held to bandwidth alone: {roofs.why}")
        if self._drafts:
            notes.append(
                "decoding with drafts is held to no limit: how many tokens share a pass is not counted"
            )
        shares = {measure.name: measure.value.median for measure in self._shares}
        return Limit(shares, [*self._shares, *_machine(roofs), *self._rates], notes)


def _machine(roofs: Roofs) -> list[Measure]:
    """What this machine reaches."""
    reads = [
        Measure(
            f"reading {byte_count(size)} over and over, from {_FROM[roofs.place(size)]}", MACHINE, "GB/s", "neither",
            estimate([rate / 1e9]),
        )
        for size, rate in roofs.reads.items()
    ]  # fmt: skip
    rates = [
        Measure(
            f"multiplying {'floats' if bits == FLOAT else f'int{bits}'}", MACHINE, "GOP/s", "neither",
            estimate([rate / 1e9]),
        )
        for bits, rate in roofs.rates.items()
    ]  # fmt: skip
    return [*reads, *rates]
