"""One bundle on one engine under one policy: reads prompts and writes tokens, timed, as a session does.

Texts are seeded random tokens, and end-of-text ends nothing, so that every run does the same work.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ...runtime.bundle.folder import Bundle
from ...runtime.bundle.heads import read_heads
from ...runtime.decode.draft_control import DraftController, WholeTokenController
from ...runtime.decode.encoding import check_encoder
from ...runtime.decode.kv_layout import KV_LAYOUTS
from ...runtime.decode.modes import PIPELINED, SEQUENTIAL, Mode, check_mode
from ...runtime.decode.pipeline import Pipeline
from ...runtime.decode.policy_choice import choose_policy
from ...runtime.decode.sampling import Sampler, SamplingOptions
from ...runtime.decode.sequential import SequentialDecoder
from ...runtime.engines.backend import I64, Backend
from ...runtime.engines.table import open_backend
from ...runtime.engines.tokens import Drafting
from ...runtime.timing import Stopwatch
from .energy import EnergyMeter
from .tokens import times_of

GREEDY = SamplingOptions()
WHERE_IT_PAYS = Drafting()


@dataclass(frozen=True)
class Setup:
    """Which bundle is run how: what the flags of ``run`` say. None is the default of each."""

    bundle: str
    engine: str | None = None
    threads: int | None = None
    cpus: tuple[int, ...] = ()
    kv_bits: int = 32
    depth: int | None = None
    exit: str | None = None
    skipped_kv: str | None = None
    kv: str | None = None
    decode: str = SEQUENTIAL

    @property
    def settings(self) -> dict[str, str]:
        """What is not the default, by the names of the flags."""
        usual = Setup(self.bundle)
        names = ("threads", "cpus", "kv_bits", "depth", "exit", "skipped_kv", "kv", "decode")
        given = {name: getattr(self, name) for name in names if getattr(self, name) != getattr(usual, name)}
        return {
            name.replace("_", "-"): ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            for name, value in given.items()
        }


@dataclass(frozen=True)
class Opened:
    """A bundle and the engine that runs it; several runners may share them."""

    bundle: Bundle
    backend: Backend

    @staticmethod
    def of(setup: Setup, verify: bool = True) -> Opened:
        """Open it; EdgeloopError, one line, where that cannot be."""
        bundle = Bundle.open(setup.bundle, verify=verify).at_depth(setup.depth)
        check_encoder(bundle.program, setup.bundle, False)
        backend = open_backend(setup.engine, bundle, setup.threads, kv_bits=setup.kv_bits, cpus=setup.cpus)
        return Opened(bundle, backend)


@dataclass(frozen=True)
class Wrote:
    """A turn, in milliseconds: a prompt, tokens behind it, the block at each depth and the host's loop a depth."""

    prefill: float
    tokens: tuple[float, ...]
    per_depth: tuple[float, ...]
    host_per_depth: float
    depths: Counter[int]
    joules: float | None
    """That the processor's packages took for the tokens; None where the system does not tell."""

    @property
    def token_ms(self) -> float:
        """Milliseconds a token."""
        return sum(self.tokens) / len(self.tokens)

    @property
    def mean_depth(self) -> float:
        """Depths that a token ran."""
        return sum(depth * count for depth, count in self.depths.items()) / self.depths.total()


class Runner:
    """A sequence with room for ``tokens`` tokens."""

    def __init__(self, opened: Opened, setup: Setup, tokens: int, backend: Backend | None = None) -> None:
        """UsageError where the model or the engine cannot have the policy. ``backend``: in the place of the opened
        one."""
        program, heads = opened.bundle.program, read_heads(opened.bundle)
        self.backend = backend or opened.backend
        exits = opened.bundle.manifest.exits
        self.policy = choose_policy(program, heads, exits, setup.exit, setup.skipped_kv, setup.kv)
        check_mode(Mode(program, self.policy, setup.decode, self.backend.name, self.backend.can))
        cache = self.backend.new_cache(1, tokens, KV_LAYOUTS[self.policy.kv].slots)
        self.decoder = SequentialDecoder(self.backend, cache, self.policy, heads)
        self.pipelined = setup.decode == PIPELINED
        self.vocabulary = program.vocab_size
        self.energy = EnergyMeter()
        self._ids: I64 = np.zeros(0, np.int64)
        self._token = 0
        early = self.policy.rule.exits_early
        self._controller = (WholeTokenController if early else DraftController)(program.depths)
        self._pipeline: Pipeline | None = None

    def text(self, tokens: int, seed: int = 0) -> I64:
        """Seeded random ids [tokens]."""
        return np.random.default_rng(seed).integers(0, self.vocabulary, tokens, np.int64)

    def run(self, prompt: I64, tokens: int, behind: I64 | None = None) -> Wrote:
        """Read ``behind`` and then, timed, ``prompt`` [S]; write ``tokens`` tokens."""
        self.forget()
        if behind is not None and len(behind):
            self.decoder.prompt(behind)
        prefill = self.read(prompt)
        self.energy.lap()
        times, depths = self.write(tokens)
        joules, clock = self.energy.lap(), self.decoder.clock
        return Wrote(prefill, tuple(times), clock.ms_per_depth, clock.host_ms_per_depth, depths, joules)

    def forget(self) -> None:
        """Start from empty."""
        if self._pipeline is not None:
            self._pipeline.cancel()
        self.decoder.reset()
        self._ids = self._ids[:0]

    def read(self, prompt: I64) -> float:
        """Read ``prompt`` [S] and choose the token behind it → milliseconds until the first token."""
        watch = Stopwatch()
        self._token = int(self.decoder.prompt(prompt)[-1].argmax())
        ms = watch.ms
        self._ids = np.concatenate([self._ids, prompt])
        return ms

    def write(
        self, tokens: int, seen: Callable[[], object] | None = None
    ) -> tuple[list[float], Counter[int]]:
        """Write ``tokens`` greedy tokens → the milliseconds of each, its choice included; how many ran how deep.

        Once, behind ``read``. ``seen`` is called after each token.
        """
        step, depths = self._stepper(), Counter[int]()
        runner = self._pipeline if self._pipeline is not None else self.decoder
        self.decoder.clock.restart()

        def one() -> None:
            self._token = step(self._token)
            depths[runner.depth] += 1
            if seen is not None:
                seen()

        return times_of(one, tokens), depths

    def _stepper(self) -> Callable[[int], int]:
        """A token → the next one: by the engine where it chooses, else by the host."""
        decoder = self.decoder
        drafts = self.pipelined and decoder.draft(WHERE_IT_PAYS)
        if self.pipelined and not drafts:
            return self._host_pipeline()
        by_engine = decoder.choose_by(GREEDY)
        if drafts:
            decoder.text(self._ids)
        return decoder.next if by_engine else lambda token: int(decoder.step(token)[-1].argmax())

    def _host_pipeline(self) -> Callable[[int], int]:
        choose = Sampler(GREEDY).choose
        if self._pipeline is None:
            self._pipeline = Pipeline(self.decoder, choose, self._controller)
        pipeline = self._pipeline
        pipeline.begin(self._ids)
        chosen = self._controller.timed(choose)
        history = np.concatenate([self._ids, np.zeros(self.decoder.capacity, np.int64)])
        count = len(self._ids)

        def step(token: int) -> int:
            nonlocal count
            history[count] = token
            count += 1
            return int(chosen(pipeline.step(token)[-1], history[:count], count))

        return step
