"""Running bundles: a small numpy host with a depth loop, and engines that are imported when one is opened."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .bundle.folder import Bundle
    from .decode.encoding import Encoded
    from .decode.logprobs import Score, TokenLogprob, TokenLogprobs
    from .decode.sampling import SamplingOptions
    from .serve.requests import Step
    from .serve.serving import BatchServer, Handle
    from .session import Session

__all__ = [
    "BatchServer",
    "Bundle",
    "Encoded",
    "Handle",
    "SamplingOptions",
    "Score",
    "Session",
    "Step",
    "TokenLogprob",
    "TokenLogprobs",
]

_HOMES = {
    "Bundle": "bundle.folder",
    "Encoded": "decode.encoding",
    "BatchServer": "serve.serving",
    "Handle": "serve.serving",
    "SamplingOptions": "decode.sampling",
    "Score": "decode.logprobs",
    "Session": "session",
    "Step": "serve.requests",
    "TokenLogprob": "decode.logprobs",
    "TokenLogprobs": "decode.logprobs",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that ``edgeloop --help`` does not load numpy."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
