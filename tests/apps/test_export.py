"""What ``edgeloop export`` adds to the pipeline: Ctrl-C that torch's exporter swallows still ends it."""

from __future__ import annotations

import re
import shlex
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from editing import edit

from edgeloop.apps.export import interruptible
from edgeloop.apps.quantities import bundle_bytes, byte_count
from edgeloop.runtime.bundle.manifest import read_manifest
from edgeloop.runtime.engines.native.library import unavailable_reason


def swallowed() -> None:
    with interruptible(lambda name, fraction: None) as step, suppress(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    step("the next step", 0.5)


def turned_into_another_error() -> None:
    with interruptible(lambda name, fraction: None):
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


def test_a_shorter_context_saves_what_is_said(
    tiny: Callable[[str], Path], command: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    checkpoint = tiny("mor-cycle")
    edit(checkpoint / "config.json", max_position_embeddings=8192)
    words = ("export", checkpoint, "--target", "coreml", "-o")
    code, _, err = command(*words, tmp_path / "long")
    said = re.search(r"of a context of 8192 tokens: --context (\d+) would save ([\d.]+) kB\n", err)
    assert code == 0
    assert said, err
    code, _, err = command(*words, tmp_path / "short", "--context", said[1])
    assert (code, "would save" in err) == (0, False)
    long, short = (bundle_bytes(read_manifest(tmp_path / name)) for name in ("long", "short"))
    assert byte_count(long - short) == f"{said[2]} kB"


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(AttributeError, match="ours"), interruptible(lambda name, fraction: None):
        raise AttributeError("ours")


@pytest.mark.parametrize("target", ["native", "onnx", "coreml"])
def test_the_next_step_that_is_told_can_be_taken(
    checkpoint: Path, command: Callable[..., tuple[int, str, str]], tmp_path: Path, target: str
) -> None:
    if target == "native" and unavailable_reason():
        pytest.skip("no compiler")
    code, out, _ = command("export", checkpoint, "-o", tmp_path / "bundle", "--target", target)
    assert code == 0
    (told,) = re.findall(r"^next: edgeloop (run .*)", out, re.MULTILINE)
    code, _, err = command(*shlex.split(told), "-n", "2")
    assert code == 0, err
