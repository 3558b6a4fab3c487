"""What others measured of models without a loop on the devices of our profiles, and what is predicted of the same."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from edgeloop.apps.predicting.costs import Fitted, lane_engine
from edgeloop.apps.predicting.costs import Published as PublishedSpan
from edgeloop.apps.predicting.device import device
from edgeloop.apps.predicting.speed import Machine, Speed
from edgeloop.apps.predicting.subject import Subject, of_program
from edgeloop.export.synth_program import program_of_shape
from edgeloop.export.synth_shapes import Shape

MODELS = {
    "TinyLlama 1.1B": Shape("llama", 32000, 2048, 5632, 32, 4, 22, 2, tied=False, sharing="cycle"),
    "Llama 3.2 1B": Shape("llama", 128256, 2048, 8192, 32, 8, 16, 2, sharing="cycle", head_size=64),
    "Llama 3.2 3B": Shape("llama", 128256, 3072, 8192, 24, 8, 28, 2, sharing="cycle", head_size=128),
    "Llama 2 7B": Shape("llama", 32000, 4096, 11008, 32, 32, 32, 2, tied=False, sharing="cycle"),
}
"""As if their layers ran twice; they are predicted unrolled, with weights of its own for every layer."""
LIKE = {"Q4_0": ("int4", 32), "Q4_K_M": ("int4", 32), "Q8_0": ("int8", 32), "SpinQuant": ("int4-mixed", 32)}
"""Our storage that takes about as many bytes: 4.5 bits for Q4_0 (Q4_K_M has 4.85) and 8.5 for Q8_0."""
MATMUL = "https://justine.lol/matmul/"
GEERLING = "https://github.com/geerlingguy/ai-benchmarks/issues"
MACS = "https://github.com/XiongjieDai/GPU-Benchmarks-on-LLM-Inference/issues/1"
SGEMM = "https://github.com/ggml-org/llama.cpp/pull/6928"
Q6A = "https://github.com/geerlingguy/sbc-reviews/issues/85"
META = "https://github.com/meta-llama/llama-models/blob/main/models/llama3_2/MODEL_CARD.md"


@dataclass(frozen=True)
class Published:
    """Tokens a second of reading (``prompt`` tokens) or, without a prompt, of writing."""

    device: str
    model: str
    stored: str
    engine: str
    speed: float
    source: str
    prompt: int = 0


ROWS = (
    Published("raspberry-pi-5", "TinyLlama 1.1B", "Q8_0", "llamafile 0.7", 9, MATMUL),
    Published("raspberry-pi-5", "Llama 3.2 3B", "Q4_K_M", "Ollama", 5.55, f"{GEERLING}/24"),
    Published("raspberry-pi-4", "TinyLlama 1.1B", "Q8_0", "llamafile 0.7", 3, MATMUL),
    Published("raspberry-pi-4", "Llama 3.2 3B", "Q4_K_M", "Ollama (Pi 400)", 1.60, GEERLING.removesuffix("/issues")),
    Published("intel-n150", "Llama 3.2 3B", "Q4_K_M", "Ollama", 9.06, f"{GEERLING}/12"),
    Published("radxa-orion-o6", "Llama 3.2 3B", "Q4_K_M", "Ollama", 16.5, f"{GEERLING}/13"),
    Published("radxa-dragon-q6a", "TinyLlama 1.1B", "Q4_K_M", "llama.cpp", 15.23, Q6A),
    Published("mac-mini-m2-pro", "Llama 2 7B", "Q4_0", "llama.cpp, CPU", 20.8, MACS),
    Published("oneplus-12", "Llama 3.2 1B", "SpinQuant", "ExecuTorch", 50.2, META),
    Published("oneplus-12", "Llama 3.2 3B", "SpinQuant", "ExecuTorch", 19.7, META),
    Published("oneplus-12", "Llama 3.2 1B", "SpinQuant", "ExecuTorch", 260.5, META, 64),
    Published("oneplus-12", "Llama 3.2 3B", "SpinQuant", "ExecuTorch", 89.7, META, 64),
    Published("raspberry-pi-5", "TinyLlama 1.1B", "Q8_0", "llamafile 0.7", 45, MATMUL, 512),
    Published("raspberry-pi-5", "Llama 2 7B", "Q4_0", "llamafile", 8.1, SGEMM, 109),
    Published("mac-mini-m2-pro", "Llama 2 7B", "Q4_0", "llama.cpp, CPU", 57.8, MACS, 512),
)  # fmt: skip
BEHIND = 64
"""Tokens behind one that is written: such benchmarks begin with few or none, and write 128."""


@cache
def subject(model: str, stored: str) -> Subject:
    """A model as our storage has it."""
    return of_program(model, program_of_shape(MODELS[model]), *LIKE[stored])


def predicted(row: Published, fitted: Fitted | None = None) -> float:
    """Tokens a second of ``row`` with the lane engine's numbers, K/V of 16 bits as those engines have them."""
    model = subject(row.model, row.stored)
    machine = Machine(device(row.device), device(row.device).cores, fitted or lane_engine().fitted, 16)
    speed = Speed(model.program, model.stored, machine, unrolled=True)
    return row.prompt / speed.prompt(row.prompt).total if row.prompt else 1 / speed.token(BEHIND).total


def span(fitted: Fitted | None = None) -> PublishedSpan:
    """How far predictions of all rows are from what was published."""
    ratios = [predicted(row, fitted) / row.speed for row in ROWS]
    return PublishedSpan(
        points=len(ROWS), devices=len({row.device for row in ROWS}), least=min(ratios), most=max(ratios)
    )


def table(fitted: Fitted | None = None) -> Iterator[str]:
    """The lines of the page's table."""
    yield "| device | model | phase | engine | published, tokens/s | predicted | ratio |"
    yield "|---|---|---|---|---|---|---|"
    for row in ROWS:
        found = predicted(row, fitted)
        phase = f"prompt of {row.prompt}" if row.prompt else "writing"
        yield (
            f"| {row.device} | {row.model}, {row.stored} | {phase} | {row.engine} | [{row.speed:g}]({row.source}) | "
            f"{found:.3g} | {found / row.speed:.2f} |"
        )
