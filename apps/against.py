"""``edgeloop eval --against``: what a bundle loses beside another one of the same model, with intervals."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..runtime.errors import UsageError
from .console import Console
from .options import open_session

if TYPE_CHECKING:
    from ..runtime.decode.divergence import F64, Divergence
    from ..runtime.engines.backend import I64
    from ..runtime.session import Session

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over tokens, and half of its interval: None of a single window, which shows no spread."""

    mean: float
    half: float | None

    @staticmethod
    def of(sums: F64, tokens: I64) -> Estimate:
        """Return the mean of ``sums`` [W] of windows of ``tokens`` [W], with Student's interval of ``CONFIDENCE``.

        Windows are what is drawn, since tokens of one depend on each other; a short one weighs less (ratio estimator,
        Cochran, Sampling Techniques, 3rd edition, equation 6.13).
        """
        windows, mean = len(sums), float(sums.sum() / tokens.sum())
        if windows < 2:
            return Estimate(mean, None)
        from scipy.stats import t

        spread = float(((sums - mean * tokens) ** 2).sum()) * windows / (windows - 1)
        return Estimate(
            mean, float(t.ppf((1 + CONFIDENCE) / 2, windows - 1)) * spread**0.5 / int(tokens.sum())
        )

    def interval(self) -> list[float] | None:
        """Return its ends, for machines."""
        return None if self.half is None else [self.mean - self.half, self.mean + self.half]

    def relative(self) -> Estimate:
        """Return exp − 1 of it: of nats a token the change of perplexity."""
        half = None if self.half is None else math.exp(self.mean) * math.sinh(self.half)
        return Estimate(math.expm1(self.mean), half)


@contextmanager
def opened_beside(args: argparse.Namespace, ids: list[int], text: str) -> Iterator[Session]:
    """Open the bundle ``args.against``, as the other one but with K/V of float32; UsageError where its tokenizer makes
    no ``ids`` of the ``text``."""
    other = copy(args)
    other.bundle, other.kv_bits, other.cpus = Path(args.against), 32, ()
    with open_session(other) as base:
        if base.tokenizer.encode(text)[: len(ids)] != ids:
            raise UsageError(
                f"--against {args.against} is another model: its tokenizer makes other tokens of the text; give "
                f"another export of the checkpoint of {args.bundle}"
            )
        yield base


def tell_divergence(
    session: Session, base: Session, ids: list[int], args: argparse.Namespace, console: Console
) -> None:
    """Read ``ids`` on both and print the difference after each depth; UsageError where a text has other ids."""
    from ..runtime.timing import peak_rss_bytes

    found = session.diverge(base, ids)
    if console.json:
        console.result(
            {**summary(found), "against": str(args.against), "peak_rss_bytes": peak_rss_bytes()},
        )
        return
    columns = "#depth", "#perplexity", "#change", "#KL, 10⁻³ nats", "#agreement", "#drafts kept"
    depths = found.loss.shape[1]
    rows = []
    places = (
        [f"{depth + 1} of {depths}" for depth in range(depths)]
        if session.program.routing is None
        else ["routed"]
    )
    for depth in range(depths):
        one = at_depth(found, depth)
        rows.append(
            (
                places[depth],
                f"{math.exp(one['loss'].mean):.3f}",
                _percent(one["change"]),
                _plus_minus(one["divergence"], 1000, ".2f"),
                f"{one['agree'].mean:.2%}",
                "–" if depth == depths - 1 else f"{one['accepted'].mean:.2%} {_points(one['drafts'])}",
            )
        )
    console.table(columns, rows)
    windows = len(found.tokens)
    console.note(
        f"[{found.tokens.sum()} tokens in {windows} windows; ±: intervals of 95%, paired by window; drafts kept: how "
        "often the likeliest token is that of the last depth, and points gained]"
    )


def at_depth(found: Divergence, depth: int) -> dict[str, Estimate]:
    """Return what was found after a depth: a mean of each of the sums, ``change`` of perplexity, ``drafts`` gained."""
    columns = {
        name: getattr(found, name)[:, depth]
        for name in ("loss", "base_loss", "divergence", "agree", "accepted", "base_accepted")
    }
    means = {name: Estimate.of(sums, found.tokens) for name, sums in columns.items()}
    change = Estimate.of(columns["loss"] - columns["base_loss"], found.tokens).relative()
    drafts = Estimate.of(columns["accepted"] - columns["base_accepted"], found.tokens)
    return {**means, "change": change, "drafts": drafts}


def summary(found: Divergence) -> dict[str, object]:
    """What was found, for machines: lists by depth; ``…_interval`` are of 95%, null of a single window."""
    each = [at_depth(found, depth) for depth in range(found.loss.shape[1])]
    result: dict[str, object] = {
        "perplexity_per_depth": [math.exp(one["loss"].mean) for one in each],
        "against_perplexity_per_depth": [math.exp(one["base_loss"].mean) for one in each],
    }
    for name in ("change", "divergence", "agree", "accepted", "drafts"):
        result[f"{name}_per_depth"] = [one[name].mean for one in each]
        result[f"{name}_interval_per_depth"] = [one[name].interval() for one in each]
    return {**result, "tokens": int(found.tokens.sum()), "windows": len(found.tokens)}


def _percent(value: Estimate) -> str:
    return f"{value.mean:+.2%}" + ("" if value.half is None else f" ± {value.half:.2%}")


def _plus_minus(value: Estimate, factor: float, digits: str) -> str:
    half = "" if value.half is None else f" ± {factor * value.half:{digits}}"
    return f"{factor * value.mean:{digits}}{half}"


def _points(value: Estimate) -> str:
    return f"({100 * value.mean:+.2f})"
