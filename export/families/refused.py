"""Models with shared or looped layers that no family reads, and what each of them would need."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Refused:
    """``kind``: what model_type matches; ``keys``: or config.json has all of them. ``missing``: what is not there."""

    kind: str
    missing: str
    keys: tuple[str, ...] = ()


REFUSED = (
    Refused(
        r"inkling2_loop.*",
        "Inkling 2's loop: attention over the residuals of earlier blocks, short convolutions and gates between "
        "passes, which no op computes",
        ("loop_layer_index_start", "loop_num_passes"),
    ),
    Refused(
        r"(falcon_)?mamba2?|zamba2?|bamba|jamba|falcon_h1|nemotron_h|granitemoehybrid|plamo2",
        "Mamba layers, whose recurrent state is no K/V: it would need an op that scans, and a cache of its own",
    ),
    Refused(
        r"masa.*",
        "matrices that are mixtures of shared atoms (MASA, arXiv 2508.04581): no family assembles them yet",
        ("masa",),
    ),
    Refused(
        r"mos(_.*)?",
        "LoRAs whose rows come from shared pools (MoS, arXiv 2410.00938): no family assembles them yet",
        ("mos",),
    ),
    Refused(
        r"roast.*",
        "matrices that are tiles of one hashed array (ROAST): no family assembles them yet",
        ("roast",),
    ),
    Refused(
        r"widenet.*",
        "one MLP of shared experts for all depths (WideNet, arXiv 2107.11817): no family writes it yet, though there "
        "is an op `experts`",
    ),
    Refused(
        r"gemma3n.*|gemma4.*",
        "layers that share K/V without a loop, and embeddings of each layer: nothing in it repeats",
    ),
    Refused(
        r"gemma3",
        "a Gemma 3 with a vision tower: its text model alone (model_type gemma3_text) is read, if its layers repeat",
    ),
)


def refusal(config: Mapping[str, Any]) -> str | None:
    """Return what is missing to read the model of a config.json; None for one that is not known."""
    said = config.get("model_type")
    for each in REFUSED:
        named = isinstance(said, str) and re.fullmatch(each.kind, said) is not None
        if named or (each.keys and all(config.get(key) is not None for key in each.keys)):
            return each.missing
    return None
