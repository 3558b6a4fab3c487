"""What a bundle says where this runs: python arm64_tokens.py BUNDLE ENGINE TEXT prints it as JSON.

``greedy``: tokens behind the beginning of the text; ``likeliest``: the token after each of the text's tokens;
``logits``: the SHA-256 of all logits.
"""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from pathlib import Path

from edgeloop.runtime.session import Session

BEGINNING, TOKENS, MOST = 32, 64, 256


def said(bundle: str, engine: str, text: str) -> dict[str, object]:
    """What the bundle says with the engine."""
    with Session.open(bundle, engine=engine, threads=1) as session:
        assert session.tokenizer is not None
        ids = list(session.tokenizer.encode(Path(text).read_text(encoding="utf-8")))[:MOST]
        logits = session.logits(ids)
        steps = session.generate(ids[:BEGINNING], TOKENS)
        return {
            "machine": platform.machine(),
            "greedy": [step.token for step in steps],
            "likeliest": logits.argmax(-1).tolist(),
            "logits": hashlib.sha256(logits.astype("<f4").tobytes()).hexdigest(),
        }


if __name__ == "__main__":
    print(json.dumps(said(*sys.argv[1:])))  # noqa: T201
