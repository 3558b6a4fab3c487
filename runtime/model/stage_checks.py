"""Checks of a stage of a program: its values, its caches, and the ops that make K/V."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from .limits import nameable
from .op_checks import WeightUses, op_problems
from .ops import Attend, AttendTwice, Linear, Op, Shift, kind, reads, writes
from .program import Program, Stage
from .sizes import ValueSizes
from .transform import live
from .weights import Weight


@dataclass(frozen=True)
class Cache:
    """A cache of a stage: K/V, or the last row of a lane that a Shift keeps."""

    sizes: tuple[int, ...]
    window: int | None = None
    slot: str = ""


@dataclass
class StageFindings:
    """What is known of the stages of ``program`` so far: the sizes that each gives, and its caches."""

    program: Program
    gives: dict[str, tuple[int, ...]] = field(default_factory=dict)
    caches: dict[str, list[Cache]] = field(default_factory=dict)
    uses: dict[str, WeightUses] = field(default_factory=dict)


def stage_problems(name: str, stage: Stage, given: Sequence[int], found: StageFindings) -> Iterator[str]:
    """Yield the first problem of ``stage``, if any.

    ``given`` are the sizes of its inputs. Without a problem, the sizes of its outputs are added to ``found``.
    """
    if (problem := next(_input_problems(name, stage, given), None)) is not None:
        yield problem
        return
    known = ValueSizes(found.program.weights, dict(zip(stage.inputs, given, strict=True)))
    caches, kept = list[Cache](), list[Cache]()
    for number, op in enumerate(stage.ops):
        problem = next(op_problems(name, op, known, found.program, found.uses), None)
        if problem is None and (cache := _cache(op, known)) is not None:
            numbered = kept if isinstance(op, Shift) else caches
            numbered.append(cache)
            problem = next(_numbered(op, len(numbered) - 1), None)
        if problem is not None:
            yield f"{name} op {number} ({_label(op)}): {problem}"
            return
    if (problem := next(_output_problems(name, stage, known, len(caches)), None)) is not None:
        yield problem
        return
    if name.startswith("block") and (
        problem := next(_fill_problems(stage, known, found.program.weights), None)
    ):
        yield f"{name}: {problem}"
        return
    found.gives[name] = tuple(known.sizes[value] for value in stage.outputs)
    found.caches[name] = caches + kept


def idle_problems(name: str, stage: Stage) -> Iterator[str]:
    """Yield a problem for each op without an effect."""
    needed = {value for op in live(stage.ops, (*stage.outputs, *stage.layers)) for value in writes(op)}
    for number, op in enumerate(stage.ops):
        if needed.isdisjoint(writes(op)):
            yield f"{name} op {number} ({_label(op)}): writes what nothing needs"


def _label(op: Op) -> str:
    """Return the name of an op in a message: its kind, and the first value that it writes."""
    written = next(iter(writes(op)), "")
    return kind(op) if any(nameable("", written)) else f"{kind(op)}, {written}"


def _input_problems(name: str, stage: Stage, given: Sequence[int]) -> Iterator[str]:
    if len(stage.inputs) != len(given):
        yield f"{name} has {len(stage.inputs)} inputs, wanted {len(given)}"
    for value in stage.inputs:
        yield from nameable(f"an input of {name}", value)
    if len(set(stage.inputs)) < len(given):
        yield f"{name} has two inputs of one name"


def _output_problems(name: str, stage: Stage, known: ValueSizes, caches: int) -> Iterator[str]:
    for what, values in (("outputs", stage.outputs), ("layers", stage.layers)):
        for value in values:
            if value not in known.sizes:
                yield from nameable(f"one of the {what} of {name}", value)
                yield f"the {what} of {name} have {value}, which nothing in it writes"
    if len(set(stage.layers)) < len(stage.layers):
        yield f"the layers of {name} have a value twice"
    if caches and len(stage.layers) != caches:
        yield f"{name} has {len(stage.layers)} layers and {caches} caches, wanted one for each layer"


def _cache(op: Op, known: ValueSizes) -> Cache | None:
    """Return the cache that ``op`` has, if any."""
    if isinstance(op, Shift):
        return Cache((known.size(op.x),))
    if isinstance(op, AttendTwice):
        return Cache((op.kv_heads, op.head_dim), op.window, "twice")
    if isinstance(op, Attend) and op.cache is not None:
        return Cache((op.kv_heads, op.head_dim), op.window, op.slot)
    return None


def _numbered(op: Op, wanted: int) -> Iterator[str]:
    cache = getattr(op, "cache", wanted)
    if cache != wanted:
        yield f"cache is {cache}, wanted {wanted}: they are numbered as they come"


def _fill_problems(stage: Stage, known: ValueSizes, weights: dict[str, Weight]) -> Iterator[str]:
    """Yield what keeps K/V of a block's layers from being made of its first input, for tokens that skip a depth."""
    makers = {value: op for op in stage.ops for value in writes(op)}
    attends = [op for op in stage.ops if isinstance(op, Attend | AttendTwice) and op.cache is not None]
    todo = [value for op in attends for value in (op.k, op.v) if value is not None]
    shared, seen = any(isinstance(op, Attend) and op.slot == "first" for op in attends), set(stage.layers)
    for entered in stage.layers if attends else ():
        if (size := known.sizes[entered]) != (state := known.sizes[stage.inputs[0]]):
            yield f"a layer takes {entered}, [N, {size}], and the first input is [N, {state}], wanted the same"
    while todo:
        value = todo.pop()
        if value in seen or (op := makers.get(value)) is None:
            continue
        seen.add(value)
        if isinstance(op, Attend | AttendTwice):
            yield f"K/V of its layers need {value}, wanted what follows from the values that enter them"
        if shared and isinstance(op, Linear) and getattr(weights[op.weight], "copies", 1) > 1:
            yield f"{op.weight} is a matrix for each depth, and makes K/V that depths share: wanted slot own"
        todo += reads(op)
