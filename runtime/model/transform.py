"""Programs made from programs: slices of a block, other windows and depths, and the loop written out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import chain, count

from msgspec import structs

from ..errors import UsageError
from .facts import numbered
from .limits import MAX_LAYERS, within
from .ops import Attend, AttendTwice, Linear, Op, Shift, kind, reads, weight_fields, with_names, writes
from .program import Carry, Loop, Program, Stage
from .sizes import head_sizes
from .weights import Matrix, Vector, Weight, tensors


@dataclass(frozen=True)
class TensorSource:
    """The origin of an unrolled model's tensor: the canonical ``tensor`` of ``weight``, as it is at depth ``at``."""

    weight: str
    tensor: str
    at: int | None


def keys_values(stage: Stage) -> Stage:
    """Return the ops of a block that make K/V as if its first input entered every layer: for tokens that skip it.

    The outputs are the K and V of each cache, as an attention takes them, in the order of the caches. Copying the
    state of an early exit to the layers that it skips is CALM's (arXiv 2207.07061, section 3.1.1).
    """
    entered = dict.fromkeys(stage.layers, stage.inputs[0])
    outputs = tuple(entered.get(value, value) for value in _made(stage))
    ops = [
        with_names(op, {value: entered[value] for value in reads(op) if value in entered}) for op in stage.ops
    ]
    return Stage(stage.inputs, tuple(live(ops, outputs)), outputs)


def caching(stage: Stage) -> Stage:
    """Return the ops of a stage that make its K/V, which are the outputs: for tokens whose state is not needed."""
    made = _made(stage)
    return Stage(stage.inputs, tuple(live(stage.ops, made)), made)


def _made(stage: Stage) -> tuple[str, ...]:
    """Return the names of K and V of each cache, as an attention takes them, in the order of the caches."""
    attends = [op for op in stage.ops if isinstance(op, Attend | AttendTwice) and op.cache is not None]
    return tuple(value for op in attends for value in (op.k, op.v) if value is not None)


def reading(stage: Stage) -> Stage:
    """Return a block whose depths share K/V as the deeper depths run it: without the ops that make K/V."""
    ops = live(
        [
            structs.replace(op, k=None, v=None) if isinstance(op, Attend) and op.slot == "first" else op
            for op in stage.ops
        ],
        stage.outputs,
    )
    there = {*stage.inputs, *(value for op in ops for value in writes(op))}
    layers = tuple(value for value in stage.layers if value in there)
    return structs.replace(stage, ops=tuple(ops), layers=layers)


def at_depth(program: Program, depth: int) -> Stage:
    """Return the block of ``depth`` as it runs there."""
    block = program.stage("block", depth)
    return reading(block) if depth and program.shares_kv else block


def live(ops: Iterable[Op], outputs: Iterable[str]) -> list[Op]:
    """Return those of ``ops`` that ``outputs`` depend on, in order; of a matrix only the parts that are needed."""
    needed, kept = set(outputs), list[Op]()
    for op in reversed(list(ops)):
        wanted = [i for i, y in enumerate(writes(op)) if y in needed]
        if wanted:
            if isinstance(op, Linear):
                y = op.y[wanted[0] : wanted[-1] + 1]
                op = structs.replace(op, y=y, first=op.first + wanted[0])
            needed.update(reads(op))
            kept.append(op)
    return kept[::-1]


def with_depths(program: Program, depths: int) -> Program:
    """Return the same model at another number of depths: its schedule cut, or its last block repeated.

    UsageError, one line, where the model is not made for that.
    """
    own, last = program.loop.schedule, program.loop.blocks[program.loop.schedule[-1]]
    if depths == len(own):
        return program
    if not isinstance(depths, int):
        raise UsageError(f"depth is {depths!r:.40}, wanted a whole number")
    if not program.loop.open_ended or program.routing or any(map(program.differs, program.loop.blocks)):
        raise UsageError(
            f"this model's loop runs {len(own)} times and no other number; leave depth out "
            "(the exit rule depth:N stops earlier)"
        )
    if problem := next(within("depth", depths, 1, MAX_LAYERS // max(len(last.layers), 1)), None):
        raise UsageError(problem)
    schedule = own[:depths] + own[-1:] * (depths - len(own))
    return structs.replace(program, loop=structs.replace(program.loop, schedule=schedule))


def windowed(program: Program, window: int | None) -> Program:
    """Return the same model with attention to the last ``window`` tokens; None: to all of them."""
    return _attending(program, program.stages, lambda op: structs.replace(op, window=window))


def fitted(program: Program) -> Program:
    """Return the same model without the windows that cover the whole context."""

    def fit(op: Attend) -> Attend:
        seen = op.window or 0
        return structs.replace(op, window=None) if seen >= program.context_length else op

    return _attending(program, program.stages, fit)


def sharing_kv(program: Program, shared: bool) -> Program:
    """Return the same model whose depths read the K/V of depth 0 (``shared``), or have their own."""
    return _attending(
        program, program.loop.blocks, lambda op: structs.replace(op, slot="first" if shared else "own")
    )


def _attending(program: Program, stages: Iterable[Stage], change: Callable[[Attend], Attend]) -> Program:
    """Return ``program`` with the attention ops of ``stages`` changed."""
    chosen = [id(stage) for stage in stages]

    def changed(stage: Stage) -> Stage:
        if id(stage) not in chosen:
            return stage
        return structs.replace(
            stage, ops=tuple(change(op) if isinstance(op, Attend) else op for op in stage.ops)
        )

    loop = structs.replace(program.loop, blocks=tuple(map(changed, program.loop.blocks)))
    return structs.replace(
        program, prologue=changed(program.prologue), loop=loop, epilogue=changed(program.epilogue)
    )


def whole(program: Program) -> Stage:
    """Return the whole model, loop and all, written out as one stage: ids [N] → logits.

    Weights stay as they are; ops name the depth whose rows and deltas apply (``at``). Each application of a layer
    has a cache of its own, unless depths share them. ValueError for attention that reads the caches of two depths.
    """
    stage, head = _written_out(program), program.head
    taken = {*stage.inputs, *(value for op in stage.ops for value in writes(op))}
    names = {value: f"head/{value}" for op in head.ops for value in writes(op) if value in taken}
    names |= dict(zip(head.inputs, stage.outputs, strict=True))
    ops = tuple(with_names(op, names) for op in head.ops)
    return Stage(stage.inputs, stage.ops + ops, tuple(names.get(o, o) for o in head.outputs), stage.layers)


def unrolled(program: Program) -> tuple[Program, dict[str, TensorSource]]:
    """Return the same model with every applied layer stored, all in its prologue, and the sources of its tensors.

    Deltas are to be merged into the matrices that they change. ValueError as in ``whole``.
    """
    stage, stored = _written_out(program), _Stored(program)
    ops = list[Op]()
    for op, number in numbered(stage):
        names = {field: stored.name(op, weight, number) for field, weight in weight_fields(op)}
        if getattr(op, "at", None) is not None:
            op = structs.replace(op, at=None)
        ops.append(structs.replace(op, **names))
    carries = tuple(Carry(*pair) for pair in zip(program.head.inputs, head_sizes(program), strict=True))
    still = Stage(program.head.inputs, (), program.head.inputs)
    twin = structs.replace(
        program,
        prologue=structs.replace(stage, ops=tuple(ops)),
        loop=Loop(carries, (still,), (0,)),
        epilogue=still,
        weights=stored.weights,
        exit_gate=False,
        routing=None,
    )
    return twin, stored.sources


class _Stored:
    """The weights of an unrolled model, and the sources of their tensors."""

    def __init__(self, program: Program) -> None:
        self.weights: dict[str, Weight] = {}
        self.sources: dict[str, TensorSource] = {}
        self._theirs = program.weights
        self._named: dict[tuple[str, int | None, int], str] = {}
        self._kept = dict.fromkeys(name for op in program.head.ops for _, name in weight_fields(op))
        for name in self._kept:
            self._add(name, name, program.weights[name], None)

    def name(self, op: Op, name: str, number: int) -> str:
        """Return the new name of the weight ``name`` of ``op`` in layer ``number`` (−1: before the first layer)."""
        weight, at = self._theirs[name], getattr(op, "at", None)
        if hasattr(op, "at") and weight.per_depth:
            weight = _alone(weight)
        elif name in self._kept:
            return name
        if (key := (name, at, number)) not in self._named:
            self._named[key] = self._add(name, self._free(name, weight, at, number), weight, at)
        return self._named[key]

    def _free(self, name: str, weight: Weight, at: int | None, number: int) -> str:
        """Return an unused name: the layer's, with another number where two weights would have the same one."""
        stem, base = f"layers.{number}" if number >= 0 else "before", name.rpartition(".")[2]
        plain = [name] if number < 0 and at is None else []
        tries = chain(plain, [f"{stem}.{base}"], (f"{stem}.{i}.{base}" for i in count(1)))
        return next(t for t in tries if self.sources.keys().isdisjoint(_canonical(t, weight)))

    def _add(self, theirs: str, ours: str, weight: Weight, at: int | None) -> str:
        self.weights[ours] = weight
        for new, old in zip(_canonical(ours, weight), _canonical(theirs, weight), strict=True):
            self.sources[new] = TensorSource(theirs, old, at)
        return ours


def _written_out(program: Program) -> Stage:
    """Return everything before the head as one stage: ids [N] → the head's inputs."""
    parts: list[tuple[Stage, int | None]] = [(program.prologue, None)]
    parts += [(at_depth(program, depth), depth) for depth in range(program.depths)]
    parts.append((program.epilogue, None))
    ops, layers = list[Op](), list[str]()
    values, caches, kept, first = program.prologue.inputs, 0, 0, dict[int, int]()
    for number, (stage, depth) in enumerate(parts):
        names = dict(zip(stage.inputs, values, strict=True))
        names |= {value: f"{number}/{value}" for op in stage.ops for value in writes(op)}
        for op in stage.ops:
            op = _at(with_names(op, names), depth, program.weights)
            if isinstance(op, AttendTwice):
                raise ValueError(f"{kind(op)} reads the K/V of two depths, and cannot be written out")
            if isinstance(op, Attend) and op.cache is not None:
                joins = depth is not None and op.slot == "first"
                cache = first.setdefault(op.cache, caches) if joins else caches
                caches += cache == caches
                op = structs.replace(op, cache=cache)
            elif isinstance(op, Shift):
                op, kept = structs.replace(op, cache=kept), kept + 1
            ops.append(op)
        layers += [names[value] for value in stage.layers]
        values = tuple(names[value] for value in stage.outputs)
    return Stage(program.prologue.inputs, tuple(ops), values, tuple(layers))


def _at(op: Op, depth: int | None, weights: Mapping[str, Weight]) -> Op:
    """Return ``op`` of a block with ``at`` set to ``depth`` where its weights differ between depths."""
    if depth is None or getattr(op, "at", depth) is not None:
        return op
    differs = any(weights[name].per_depth for _, name in weight_fields(op))
    return structs.replace(op, at=depth) if differs else op


def _alone(weight: Weight) -> Weight:
    """Return the description of ``weight`` at a single depth."""
    if isinstance(weight, Vector):
        return Vector(weight.size)
    return Matrix(weight.parts, weight.columns, weight.bias)


def _canonical(name: str, weight: Weight) -> list[str]:
    """Return the canonical names of the tensors of a weight."""
    return [part for _, tensor in tensors({name: weight}) for part in tensor.parts]
