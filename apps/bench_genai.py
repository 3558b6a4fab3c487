"""onnxruntime-genai as a peer of ``edgeloop bench``: its own int4 model of an unrolled checkpoint, decoding greedily.

The builder and the decoder are the peer's own, with the peer's defaults: tied embeddings are shared, and the
accuracy level is 4 as in our graphs. It loads the library of the installed onnxruntime wheel, but a second copy
of it, with a second thread pool: a pool that has just worked spins for some 60 ms. In an interleaved comparison
sleep 0.1 s before each engine's turn.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..runtime.errors import EngineError, UsageError
from .measure.tokens import ms_of, times_of

_RUNS = ("onnxruntime_genai",)
_BUILDS = ("onnxruntime_genai", "torch", "transformers", "onnx_ir", "tqdm")
_INSTALL = "pip install onnxruntime-genai==0.18.0"
_OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


def _need(modules: Sequence[str], purpose: str) -> None:
    missing = [m for m in modules if find_spec(m) is None]
    if missing:
        extra = " torch transformers onnx-ir tqdm" if missing != ["onnxruntime_genai"] else ""
        raise EngineError(f"{purpose} needs {', '.join(missing)}, not installed: {_INSTALL}{extra}")


def need_genai() -> None:
    """EngineError that says what to install, unless the peer and its builder are there."""
    _need(_BUILDS, "comparing with onnxruntime-genai")


class GenaiDecoder:
    """One genai model with one sequence, which is rewound to the end of its prompt for every measurement."""

    def __init__(self, folder: Path, prompt: Sequence[int], tokens: int, threads: int) -> None:
        """Load the model in ``folder`` and read ``prompt`` [S]; at most ``tokens`` tokens are decoded at a time."""
        _need(_RUNS, "comparing with onnxruntime-genai")
        if len(prompt) < 2 or tokens < 1 or threads < 1:
            raise UsageError(
                f"{len(prompt)} prompt tokens, {tokens} tokens and {threads} threads: wanted at least 2, 1 and 1"
            )
        genai: Any = importlib.import_module("onnxruntime_genai")
        self.version: str = genai.__version__
        self.folder, self.tokens = folder, tokens
        self._prompt = [int(i) for i in prompt]
        capacity = len(prompt) + tokens + 1
        session_options = {"intra_op_num_threads": threads, "inter_op_num_threads": 1}
        try:
            config = genai.Config(str(folder))
            config.clear_providers()
            config.overlay(json.dumps({"model": {"decoder": {"session_options": session_options}}}))
            self._model = genai.Model(config)
            params = genai.GeneratorParams(self._model)
            # min_length: end-of-text does not end a measurement.
            params.set_search_options(max_length=capacity, min_length=capacity, do_sample=False)
            self._generator = genai.Generator(self._model, params)
            self._generator.append_tokens(self._prompt)
        except Exception as error:  # the bindings raise bare RuntimeErrors
            reason = str(error).splitlines()[0]
            raise EngineError(f"onnxruntime-genai {self.version} cannot run {folder}: {reason}") from error

    @classmethod
    def prepare(cls, checkpoint: Path, out: Path, group_size: int) -> Path:
        """Build the int4 model of ``checkpoint`` in the new folder ``out`` and return it.

        ``checkpoint``: config.json of an unrolled model that transformers knows, its safetensors and its tokenizer.
        Nothing is downloaded, and ``out`` appears only when it is complete.
        """
        _need(_BUILDS, "building the onnxruntime-genai model")
        if out.exists():
            raise UsageError(f"{out} exists: choose another folder, or remove it")
        if not (checkpoint / "config.json").is_file():
            raise UsageError(
                f"{checkpoint} holds no config.json: onnxruntime-genai builds from a checkpoint folder"
            )
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=".genai-") as scratch:
            made = Path(scratch) / "model"
            command = [sys.executable, "-m", "onnxruntime_genai.models.builder"]
            command += ["-i", str(checkpoint), "-o", str(made), "-c", str(Path(scratch) / "cache")]
            command += ["-p", "int4", "-e", "cpu"]
            command += ["--extra_options", f"block_size={group_size}", "accuracy_level=4"]
            built = subprocess.run(
                command, env={**os.environ, **_OFFLINE}, capture_output=True, text=True, check=False
            )
            if built.returncode != 0 or not (made / "genai_config.json").is_file():
                lines = built.stderr.strip().splitlines() or ["no message"]
                raise EngineError(f"onnxruntime-genai's builder failed on {checkpoint}: {lines[-1]}")
            made.rename(out)
        return out

    @property
    def model_bytes(self) -> int:
        """Size of the graph and its weights, without tokenizer and configuration."""
        return sum(path.stat().st_size for path in self.folder.glob("*.onnx*"))

    def read_ms(self, prompt: Sequence[int]) -> float:
        """Read ``prompt`` [S] from an empty sequence: milliseconds. It is what is decoded after from then on."""
        self._prompt = [int(i) for i in prompt]
        self._generator.rewind_to(0)
        return ms_of(lambda: self._generator.append_tokens(self._prompt))

    def decode_ms(self, count: int) -> list[float]:
        """Decode ``count`` tokens after the prompt: milliseconds of each, the choice of the token included."""
        if not 1 <= count <= self.tokens:
            raise UsageError(f"{count} tokens wanted of a decoder made for 1 to {self.tokens}")
        self._generator.rewind_to(len(self._prompt) - 1)
        self._generator.append_tokens(self._prompt[-1:])
        self._generator.generate_next_token()  # chooses from the prompt's logits: no pass of the model
        return times_of(self._generator.generate_next_token, count)
