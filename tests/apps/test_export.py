"""What ``edgeloop export`` adds to the pipeline: Ctrl-C that torch's exporter swallows still ends it."""

from __future__ import annotations

import signal
from contextlib import suppress

import pytest

from edgeloop.apps.export import _interruptible


def swallowed() -> None:
    with _interruptible(lambda name, fraction: None) as step, suppress(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    step("the next step", 0.5)


def turned_into_another_error() -> None:
    with _interruptible(lambda name, fraction: None):
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt as error:
            raise AttributeError("module 'torch._dynamo' has no attribute 'exc'") from error


@pytest.mark.parametrize("interruption", [swallowed, turned_into_another_error])
def test_an_interruption_is_not_lost(interruption: object) -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        interruption()  # type: ignore[operator]
    assert signal.getsignal(signal.SIGINT) is before


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(AttributeError, match="ours"), _interruptible(lambda name, fraction: None):
        raise AttributeError("ours")
