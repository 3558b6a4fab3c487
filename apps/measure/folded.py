"""Operators folded over calls: by kind, by stage and depth, by layer; a token is a repetition."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..console import Console
from .calls import StageCall
from .interval import estimate
from .operators import Operator
from .record import Measure

EachToken = Mapping[tuple[str, str], Sequence[float]]
"""Milliseconds of each token by (call's name, kind of operator or layer)."""
ALL = ""
"""In the place of a call's name: all calls of a token; in that of a kind: the whole call."""
BETWEEN = "between operators"


@dataclass(frozen=True)
class Folded:
    """Milliseconds of each token, in calls, in kinds of operators and in layers; and how many operators of a kind."""

    stages: tuple[str, ...]
    kinds: EachToken
    layers: EachToken
    counts: Mapping[str, int]

    @staticmethod
    def of(calls: Sequence[StageCall], operators: Sequence[Operator]) -> Folded:
        """Fold what belongs to calls of one token; a token begins with its prologue."""
        token_of, tokens = dict[int, int](), 0
        for number, call in enumerate(calls):
            if call.tokens == 1:
                tokens += call.stage == "prologue"
                token_of[number] = tokens - 1
        kinds: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0] * tokens)
        layers: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0] * tokens)
        counts: dict[str, int] = defaultdict(int)
        for number, token in token_of.items():
            for name in (calls[number].name, ALL):
                kinds[name, ALL][token] += calls[number].ns / 1e6
        for one in operators:
            if (token := token_of.get(one.call, -1)) < 0:
                continue
            name, ms = calls[one.call].name, one.us / 1000
            counts[one.kind] += token == 0
            for place in (name, ALL):
                kinds[place, one.kind][token] += ms
            if one.layer is not None:
                layers[name, f"layer {one.layer + 1}"][token] += ms
        stages = dict.fromkeys(calls[number].name for number in token_of)
        return Folded(tuple(stages), dict(kinds), dict(layers), dict(counts))

    @property
    def ordered(self) -> list[tuple[str, float]]:
        """Kinds and the medians of their milliseconds a token, the most first."""
        found = [
            (kind, _median(values))
            for (name, kind), values in self.kinds.items()
            if name == ALL and kind != ALL
        ]
        return sorted(found, key=lambda item: -item[1])

    def between(self, stage: str) -> float:
        """What of a stage's time is in none of its operators, the median of tokens."""
        return _median(self._outside(stage))

    def _outside(self, stage: str) -> list[float]:
        """Of every token, the milliseconds of a stage, or of all, that are in none of its operators."""
        inside = [values for (name, kind), values in self.kinds.items() if name == stage and kind != ALL]
        return [all_ - sum(rest) for all_, *rest in zip(self.kinds[stage, ALL], *inside, strict=True)]

    def share(self, ms: float) -> float:
        """``ms`` as a share of all kinds and of what is between operators, as the table has them: medians each, whose
        sum is another number than the median of whole tokens."""
        whole = sum(ms for _, ms in self.ordered) + sum(map(self.between, self.stages))
        return ms / whole if whole else 0.0

    def measures(self) -> list[Measure]:
        """For the record."""
        made = []
        for (name, kind), values in self.kinds.items():
            if name == ALL and kind != ALL:
                made.append(Measure(kind, "operators, ms a token", "ms", "less", estimate(values)))
            elif kind == ALL:
                label = name or "all stages"
                made.append(Measure(label, "stages, ms a token", "ms", "less", estimate(values)))
        if self.stages:
            made.append(Measure(BETWEEN, "operators, ms a token", "ms", "less", estimate(self._outside(ALL))))
        return made + [
            Measure(f"{name}: {layer}", "layers, ms a token", "ms", "less", estimate(values))
            for (name, layer), values in self.layers.items()
        ]

    def data(self) -> dict[str, object]:
        """For ``--json``."""
        return {
            "stages": {stage: _median(self.kinds[stage, ALL]) for stage in self.stages},
            "operators": [{"kind": kind, "ms": ms, "count": self.counts[kind]} for kind, ms in self.ordered],
            "layers": [
                {"stage": stage, "layer": layer, "ms": _median(values)}
                for (stage, layer), values in self.layers.items()
            ],
            "between": {stage: self.between(stage) for stage in self.stages},
        }

    def show(self, console: Console) -> None:
        """Two tables: kinds of operators by stage and depth, and layers by depth."""
        rows = [
            (kind, str(self.counts[kind]), f"{ms:.4f}", f"{self.share(ms):.1%}", *self._row(self.kinds, kind))
            for kind, ms in self.ordered
        ]
        between = [self.between(stage) for stage in self.stages]
        rest = (BETWEEN, "", f"{sum(between):.4f}", f"{self.share(sum(between)):.1%}")
        rows.append((*rest, *(f"{ms:.4f}" for ms in between)))
        names = tuple(f"#{stage}" for stage in self.stages)
        console.table(("ms a token", "#operators", "#all", "#share", *names), rows)
        layers = sorted({layer for _, layer in self.layers}, key=lambda name: int(name.split()[1]))
        if layers:
            console.table(
                ("ms a token", *names), [(layer, *self._row(self.layers, layer)) for layer in layers]
            )

    def _row(self, cells: EachToken, kind: str) -> list[str]:
        return [
            f"{_median(cells[stage, kind]):.4f}" if (stage, kind) in cells else "" for stage in self.stages
        ]


def _median(values: Sequence[float]) -> float:
    return estimate(values).median
