"""Cells of the table of modes, tried: exit rule × skipped K and V × KV layout × driver, for a model on an engine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from unittest import mock

import numpy as np
from mode_models import model, random_heads, random_tensors, write_bundle
from plain_decoding import READS_LOGITS, SCORES, Plain, Seen, Token

from edgeloop.runtime.bundle.folder import Bundle
from edgeloop.runtime.bundle.manifest import NEVER
from edgeloop.runtime.decode.draft_control import DraftPlan, FixedPlan
from edgeloop.runtime.decode.exits import parse_rule
from edgeloop.runtime.decode.kv_layout import KV_LAYOUTS
from edgeloop.runtime.decode.modes import MANY, PIPELINED, SEQUENTIAL, Mode, refusal
from edgeloop.runtime.decode.policy import Policy
from edgeloop.runtime.decode.routing import parse_routing
from edgeloop.runtime.decode.sampling import SamplingOptions
from edgeloop.runtime.decode.skipped_kv import SKIPPED_KV
from edgeloop.runtime.engines.backend import Backend
from edgeloop.runtime.engines.capabilities import Capabilities
from edgeloop.runtime.engines.table import ENGINES, open_backend
from edgeloop.runtime.errors import EdgeloopError
from edgeloop.runtime.model.program import Program
from edgeloop.runtime.serve.serving import BatchServer
from edgeloop.runtime.session import Session

DRIVERS = (SEQUENTIAL, PIPELINED, MANY)
PROMPTS = ((3, 14, 15, 9, 2), (6, 5, 3))
COUNT = 8
MARGIN = 3e-5
"""How clear every decision of a text has to be: float engines round in the seventh digit."""
Text = list[tuple[int, int]]
"""Tokens, each with its depths."""


@dataclass(frozen=True)
class Cell:
    """One way to decode a model."""

    exit: str
    skipped_kv: str
    kv: str
    driver: str


@dataclass(frozen=True)
class Found:
    """What came of a cell: ``refused`` with which words, ``failed`` in the middle of a text, or neither: its texts."""

    cell: Cell
    texts: tuple[Text, ...] = ()
    refused: str = ""
    failed: str = ""


@contextmanager
def put_to_the_test() -> Iterator[None]:
    """A pipeline drafts with depth 0 all the time, whether it pays or not, and windows move within a few tokens."""

    def fixed(depths: int) -> FixedPlan:
        return FixedPlan(depths, DraftPlan(0))

    with (
        mock.patch("edgeloop.runtime.session.DraftController", fixed),
        mock.patch("edgeloop.runtime.session.WholeTokenController", fixed),
        mock.patch("edgeloop.runtime.engines.kv.SLACK", 2),
    ):
        yield


@dataclass
class Walker:
    """A tiny model, bundles of it, and what its texts have to be.

    ``rounding``: what scores may be off by; texts may be others from a decision on that is nearer to a tie than that.
    """

    name: str
    folder: Path
    rounding: float = 0.0
    program: Program = field(init=False)
    exits: list[str] = field(init=False)
    sampling: SamplingOptions = field(init=False)

    def __post_init__(self) -> None:
        self.program = model(self.name)
        self._tensors, self._heads = random_tensors(self.program), random_heads(self.program)
        self.exits = list(self._exits())
        self._texts: dict[tuple[str, str, str], list[list[Token]]] = {}
        seeds = (SamplingOptions(temperature=1.3, seed=seed) for seed in range(50))
        self.sampling = next(seed for seed in seeds if self._clear(seed))

    def bundle(self, *targets: str) -> Bundle:
        """A bundle of the model for these targets."""
        path = self.folder / "-".join(("bundle", *targets))
        return Bundle.open(path if path.exists() else write_bundle(path, self.program, targets))

    def cells(self) -> Iterator[Cell]:
        """Every combination, of which many mean nothing."""
        return (Cell(*values) for values in product(self.exits, SKIPPED_KV, KV_LAYOUTS, DRIVERS))

    def refusal(self, cell: Cell, engine: str = "", can: Capabilities | None = None) -> str | None:
        """What the table says of ``cell``."""
        routed = self.program.routing is not None
        rule = (
            parse_routing(cell.exit, self.program)
            if routed
            else parse_rule(cell.exit, self.program, self._heads, {})
        )
        policy = Policy(cell.exit, cell.kv, cell.skipped_kv, rule)
        return refusal(Mode(self.program, policy, cell.driver, engine, can))

    def check(self, engine: str, *targets: str) -> list[Found]:
        """Try every cell on an engine; AssertionError where one is not as the table says, or gives other texts than
        plain decoding.
        """
        return self._check(engine, targets, list(self.cells()))

    def sample(self, engine: str, *targets: str, first: int = 0, every: int = 1) -> list[Found]:
        """As ``check``, for what the engine alone refuses, and of what works each ``every``-th from ``first`` on."""
        can = ENGINES[engine].can
        lines = {cell: self.refusal(cell, engine, can) for cell in self.cells()}
        working = [cell for cell, line in lines.items() if line is None]
        refused = [cell for cell, line in lines.items() if line is not None and self.refusal(cell) is None]
        return self._check(engine, targets, [*working[first % every :: every], *refused])

    def _check(self, engine: str, targets: tuple[str, ...], cells: list[Cell]) -> list[Found]:
        lines = {cell: self.refusal(cell, engine, ENGINES[engine].can) for cell in cells}
        found = self.walk(self.bundle(*targets), engine, cells)
        for each in found:
            what = f"{self.name}, engine {engine}: {each.cell}"
            assert not each.failed, f"{what} fails in the middle of a text: {each.failed}"
            assert each.refused == (lines[each.cell] or ""), what
            assert each.refused or self._same(each), what
        return found

    def _same(self, found: Found) -> bool:
        """Are these the texts of plain decoding, up to the first near tie of each?"""
        for text, wanted in zip(found.texts, self.texts(found.cell), strict=True):
            near = [i for i, token in enumerate(wanted) if token.margin < self.rounding]
            end = near[0] if near else len(wanted)
            if text[:end] != [(token.id, token.depth) for token in wanted[:end]]:
                return False
        return True

    def walk(self, bundle: Bundle, engine: str, cells: list[Cell]) -> list[Found]:
        """What becomes of ``cells`` on an engine."""
        alone = open_backend(engine, bundle)
        packed = open_backend(engine, bundle, packed=True) if ENGINES[engine].can.packed else alone
        with put_to_the_test():
            found = [self._try(bundle, alone, packed, cell) for cell in cells]
        for backend in (alone, packed):
            backend.close()
        return found

    def texts(self, cell: Cell) -> list[list[Token]]:
        """What ``cell`` has to give for each prompt, whatever runs it."""
        key = (cell.exit, cell.skipped_kv, cell.kv)
        if key not in self._texts:
            self._texts[key] = [self._text(cell, prompt) for prompt in PROMPTS]
        return self._texts[key]

    def _text(self, cell: Cell, prompt: tuple[int, ...]) -> list[Token]:
        plain = Plain(self.program, self._tensors, self._heads, cell.exit, cell.kv, cell.skipped_kv)
        return plain.generate(prompt, COUNT, self.sampling)

    def _clear(self, sampling: SamplingOptions) -> bool:
        """Are there no near ties in any text of a cell that works?"""
        self.sampling = sampling
        self._texts.clear()
        working = (cell for cell in self.cells() if self.refusal(cell) is None)
        return all(token.margin >= MARGIN for cell in working for text in self.texts(cell) for token in text)

    def _try(self, bundle: Bundle, alone: Backend, packed: Backend, cell: Cell) -> Found:
        policy = {"exit": cell.exit, "skipped_kv": cell.skipped_kv, "kv": cell.kv}
        texts: list[Text] = []
        opened = False
        try:
            if cell.driver == MANY:
                server = BatchServer(bundle, packed, sequences=2, **policy)  # type: ignore[arg-type]
                opened = True
                # The one that comes last takes the place of whichever is done first.
                handles = [server.submit(p, COUNT, self.sampling) for p in (*PROMPTS, PROMPTS[0])]
                done = [handle.result(60) for handle in handles]
                texts = [list(zip(d.tokens, d.depths, strict=True)) for d in done]
                assert texts.pop() == texts[0], cell
                server._worker.close()  # its backend serves the next cell
            else:
                session = Session(bundle, alone, decode=cell.driver, **policy)  # type: ignore[arg-type]
                opened = True
                for prompt in PROMPTS:
                    steps = list(session.generate(prompt, COUNT, self.sampling))
                    texts.append([(step.token, step.depth) for step in steps])
        except EdgeloopError as error:
            words = str(error)
            assert "\n" not in words
            return Found(cell, failed=words) if opened else Found(cell, refused=words)
        return Found(cell, tuple(texts))

    def _exits(self) -> Iterator[str]:
        yield from ("never", f"depth:{min(2, self.program.depths)}")
        if self.program.routing is None:
            gated = ("margin", "entropy", "kl", "gate") if self.program.exit_gate else ()
            yield from map(self._typical, ("confidence", "latent", *gated))
            return
        yield "router"
        if self.program.routing.kind == "expert":
            yield from ("router:0.4", "chunk-topk")

    def _typical(self, rule: str) -> str:
        """``rule`` with a threshold for each depth that half of a text's tokens pass, far from any of them."""
        scores: list[list[float]] = [[] for _ in range(self.program.depths - 1)]
        plain = Plain(self.program, self._tensors, self._heads)
        wide = self.program.loop.carries[0].width
        for position, token in enumerate(np.random.default_rng(0).integers(0, self.program.vocab_size, 24)):
            x = plain._prologue([int(token)], position)
            states, read = [x[0, :wide]], []
            for depth in range(self.program.depths):
                x = plain._block(depth, x, position, position)
                states.append(x[0, :wide])
                if rule in READS_LOGITS:
                    read.append(plain._epilogue(x, position))
                if depth < self.program.depths - 1:
                    scores[depth].append(SCORES[rule][0](Seen(states, read), self._heads))
        thresholds = []
        for found in scores:
            middle = np.sort(found)[8:16]
            gap = int(np.diff(middle).argmax()) if np.isfinite(middle).all() and np.ptp(middle) else -1
            thresholds.append(f"{middle[gap : gap + 2].mean():.7g}" if gap >= 0 else f"{-NEVER}")
        return f"{rule}:{','.join(thresholds)}" if thresholds else f"{rule}:0.5"
