"""Parity: every function of the saved package against the reference engine, after every depth.

The prompt goes in by ``prefill`` (a whole chunk, then a padded one), then several tokens come by
``embed``, ``decode_d*`` and ``head``, and again, from the same states, by ``decode_all``; then each ``kvfill_d*``.
All of it once in float32, where a difference is an error of the program, and once rounded to float16 after each
operator, which is what a device computes. A model that reads a text at once gets one, shorter than its context, in
steps and by ``decode_all``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ....runtime.bundle.manifest import Parity
from ....runtime.decode.sequential import SequentialDecoder
from ....runtime.engines.backend import F32, I64, Lanes
from ....runtime.engines.coreml.interpreter import Interpreter
from ....runtime.engines.kv import KVCache
from ....runtime.engines.reference.engine import ReferenceBackend
from ....runtime.errors import ParityError
from ....runtime.model.activations import half_either_way
from ....runtime.model.program import STAGES
from ...bounds import MARGIN, RUNS, difference
from ...whole_texts import some_tokens, through
from .errors import EXACT, SAME, Errors, shipped
from .plan import PackagePlan

_DECODES = 3


@dataclass(frozen=True)
class ExpectedValues:
    """The results of the reference engine: states [tokens, D] after each depth, logits [tokens, V], and their
    caches."""

    ids: I64
    types: I64
    prompt: int
    per_depth: list[F32]
    logits: F32
    cache: KVCache


def check_parity(
    reference: ReferenceBackend,
    plan: PackagePlan,
    package: Path,
    progress: Callable[[str], None] = lambda step: None,
    filler: ReferenceBackend | None = None,
) -> Parity:
    """Compare the package with an engine whose weights are float16 numbers; ParityError where it differs.

    ``filler``: says what K/V are filled in, where ``reference`` cannot: its caches move the rows of a
    sliding window.
    """
    progress("the reference")
    wanted = trace_reference(reference, plan)
    exact = Errors(EXACT, "float32")
    rounded = Errors(shipped(plan.program), "float16", lambda: rounded_bounds(reference, plan, wanted))
    for rounding, mode, errors in ((False, "float32", exact), (True, "float16", rounded)):
        progress(mode)
        interpreter = Interpreter(package, rounding)
        check_interface(interpreter, plan)
        Comparison(interpreter, plan, wanted, errors).run(filler or reference)
    return Parity(
        per_depth=tuple(exact.found[_state(d)] for d in range(plan.program.depths)),
        logits=exact.found["the logits"],
        shipped=max(rounded.found.values()),
        bound=rounded.widest,
    )


def rounded_bounds(
    reference: ReferenceBackend, plan: PackagePlan, wanted: ExpectedValues
) -> dict[str, float]:
    """Return by name how far each thing may be from ``wanted``: ``MARGIN`` times what ``reference`` is off by, where
    each result of each of its ops is rounded to float16 either way, in the worst of ``RUNS`` runs."""
    bounds: dict[str, float] = defaultdict(float)

    def see(what: str, found: F32, exact: F32) -> None:
        bounds[what] = max(bounds[what], MARGIN * difference(found, exact))

    for seed in range(RUNS):
        found = trace_reference(reference.with_results(half_either_way(np.random.default_rng(seed))), plan)
        for depth, (states, exact) in enumerate(zip(found.per_depth, wanted.per_depth, strict=True)):
            for pair in zip(states, exact, strict=True):
                see(_state(depth), *pair)
        for pair in zip(found.logits, wanted.logits, strict=True):
            see("the logits", *pair)
        for stage in STAGES:
            caches = zip(found.cache.stages[stage], wanted.cache.stages[stage], strict=True)
            for layer, (ours, theirs) in enumerate(caches):
                for slot in range(len(theirs[0])):
                    place = plan.layout.place(stage, layer, slot)
                    see(place.keys, ours[0][slot], theirs[0][slot])
                    see(place.values, ours[1][slot], theirs[1][slot])
    return bounds


def check_interface(interpreter: Interpreter, plan: PackagePlan) -> None:
    """Raise ParityError unless the package has the functions and states of ``plan``, the same states in each
    function."""
    if missing := set(plan.functions) ^ interpreter.functions.keys():
        raise ParityError(
            f"the package and its plan disagree about the functions {', '.join(sorted(missing))}"
        )
    for name, function in interpreter.functions.items():
        found = {state: declared.shape for state, declared in function.states.items()}
        if found != plan.states:
            raise ParityError(
                f"{name} has the states {found}, wanted {plan.states}: one state serves all functions"
            )


def trace_reference(reference: ReferenceBackend, plan: PackagePlan, seed: int = 0) -> ExpectedValues:
    """Run a prompt of a chunk and a part of one, and more tokens, through the reference engine; return its results."""
    program = plan.program
    total = min(plan.chunk + 5 + _DECODES, program.context_length)
    prompt = max(total - _DECODES, 1)
    (ids,), (types,) = some_tokens(program, np.random.default_rng(seed), (1, total))
    if plan.at_once:
        per_depth, given = through(reference, ids[None], types[None], np.array([total], np.int32))
        return ExpectedValues(ids, types, total, per_depth, given, reference.new_cache(1, 1))
    types = np.zeros_like(types)  # which a loop gives
    states: dict[int, list[F32]] = defaultdict(list)
    # One row more, for what is filled in.
    cache = reference.new_cache(1, total + 1)
    decoder = SequentialDecoder(
        reference, cache, observe=lambda depth, state: states[depth].append(state[0].copy())
    )
    logits = decoder.prompt(ids, rows="all")
    return ExpectedValues(
        ids, types, prompt, [np.concatenate(states[d]) for d in range(program.depths)], logits.copy(), cache
    )


def _state(depth: int) -> str:
    return f"the state after depth {depth}"


class Comparison:
    """One run of every function, compared as it goes."""

    def __init__(
        self, interpreter: Interpreter, plan: PackagePlan, wanted: ExpectedValues, errors: Errors
    ) -> None:
        self._interpreter, self._plan, self._wanted, self._errors = interpreter, plan, wanted, errors
        self._states = interpreter.new_states()

    def run(self, filler: ReferenceBackend) -> None:
        """Run everything, in the order in which a host would call it."""
        if self._plan.at_once:
            self._text()
            return
        self._prefill()
        for position in range(self._wanted.prompt, len(self._wanted.ids)):
            self._decode(position)
        if self._plan.fills:
            self._fill(filler)

    def _call(self, name: str, states: dict[str, Any], position: int, **inputs: Any) -> dict[str, Any]:
        types = {"types": np.zeros_like(inputs["ids"])} if "ids" in inputs else {}
        return self._interpreter.run(name, {"position": np.array([position]), **types, **inputs}, states)

    def _text(self) -> None:
        """Run a text in steps, then at once."""
        wanted, n = self._wanted, len(self._wanted.ids)
        tokens, (ids, types) = np.array([n]), np.zeros((2, 1, self._plan.most), np.int32)
        ids[0, :n], types[0, :n] = wanted.ids, wanted.types
        call, given = self._interpreter.run, {"ids": ids, "types": types, "tokens": tokens}
        hidden = call("embed", given, {})["hidden"]
        for depth in range(self._plan.program.depths):
            hidden = call(f"decode_d{depth}", {"hidden": hidden, "tokens": tokens}, {})["next"]
            self._errors.compare(_state(depth), hidden[0, :n], wanted.per_depth[depth])
        logits = call("head", {"hidden": hidden, "tokens": tokens}, {})["logits"]
        self._errors.compare("the logits", logits[0, :n], wanted.logits)
        whole = call("decode_all", given, {})
        self._errors.compare("decode_all against the chain", whole["next"][:, :n], hidden[:, :n], SAME)
        self._errors.compare("decode_all's logits against the chain's", whole["logits"], logits, SAME)

    def _prefill(self) -> None:
        wanted, chunk = self._wanted, self._plan.chunk
        for start in range(0, wanted.prompt, chunk):
            part = wanted.ids[start : min(start + chunk, wanted.prompt)]
            ids = np.zeros((1, chunk), np.int32)
            ids[0, : len(part)] = part
            last = start + len(part) - 1
            out = self._call("prefill", self._states, start, ids=ids)["next"]
            self._errors.compare(
                _state(self._plan.program.depths - 1),
                out[0, : len(part)],
                wanted.per_depth[-1][start : last + 1],
            )
            hidden = out[:, len(part) - 1 : len(part)]
            logits = self._call("head", self._states, last, hidden=hidden)["logits"]
            self._errors.compare("the logits", logits[0], wanted.logits[last])
        self._compare_caches(wanted.prompt)

    def _decode(self, position: int) -> None:
        wanted, ids = self._wanted, self._wanted.ids[position].reshape(1, 1)
        # As a row behind the last is written before it is read, those before it are all that matter.
        again = {name: np.zeros_like(value) for name, value in self._states.items()}
        for name, value in self._states.items():
            again[name][:, :, :position] = value[:, :, :position]
        hidden = self._call("embed", self._states, position, ids=ids)["hidden"]
        for depth in range(self._plan.program.depths):
            hidden = self._call(f"decode_d{depth}", self._states, position, hidden=hidden)["next"]
            self._errors.compare(_state(depth), hidden[0, 0], wanted.per_depth[depth][position])
        logits = self._call("head", self._states, position, hidden=hidden)["logits"]
        self._errors.compare("the logits", logits[0], wanted.logits[position])
        whole = self._call("decode_all", again, position, ids=ids)
        self._errors.compare("decode_all against the chain", whole["next"], hidden, SAME)
        self._errors.compare("decode_all's logits against the chain's", whole["logits"], logits, SAME)
        for name, value in self._states.items():
            rows = slice(position + 1)
            self._errors.compare(f"{name} of decode_all", again[name][:, :, rows], value[:, :, rows], SAME)
        self._compare_caches(position + 1)

    def _fill(self, filler: ReferenceBackend) -> None:
        """Run each kvfill behind the last token, with a state of its own."""
        cache = filler.new_cache(1, len(self._wanted.ids) + 1)
        program, position = self._plan.program, len(self._wanted.ids)
        if position >= program.context_length:
            position -= 1
        random = np.random.default_rng(1)
        for left in range(program.depths - 1):
            state = random.standard_normal((1, 1, program.width)).astype(np.float16).astype(np.float32)
            for depth in range(left + 1, program.depths):
                filler.fill(state, Lanes.single(depth, position, 1, depth), cache)
            self._call(f"kvfill_d{left}", self._states, position, hidden=state)
            for depth in range(left + 1, program.depths):
                for layer, pair in enumerate(cache.stages["block"]):
                    for name, row, array in self._kept("block", layer, depth, pair):
                        filled = self._states[name][row, :, position]
                        self._errors.compare("filled-in K/V", filled, array[depth, :, position])

    def _compare_caches(self, tokens: int) -> None:
        """Compare K/V of every layer at every depth."""
        for stage in STAGES:
            for layer, pair in enumerate(self._wanted.cache.stages[stage]):
                for slot in range(len(pair[0])):
                    for state, row, array in self._kept(stage, layer, slot, pair):
                        rows = self._states[state][row, :, :tokens]
                        self._errors.compare(state, rows, array[slot, :, :tokens])

    def _kept(
        self, stage: str, layer: int, depth: int, pair: tuple[F32, F32]
    ) -> Iterator[tuple[str, int, F32]]:
        """Yield the states and the row of a cache at a depth, with the reference's rows: K, then V."""
        place = self._plan.layout.place(stage, layer, depth)
        for state, array in zip((place.keys, place.values), pair, strict=True):
            yield state, place.row, array
