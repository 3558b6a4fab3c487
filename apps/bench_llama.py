"""llama.cpp as a peer of ``edgeloop compare --target native``: a Q4_0 GGUF of the unrolled model, decoding greedily.

The file is written here with the ``gguf`` package, every matrix in Q4_0, as ``llama-quantize --pure`` does; it has no
tokenizer, since token ids are what is timed. llama.cpp repacks it for the processor when it is loaded.
"""

from __future__ import annotations

import importlib
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from ..runtime.engines.backend import F32
from ..runtime.errors import EngineError
from ..runtime.timing import Stopwatch
from .measure.tokens import times_of

PACKAGES = ("llama_cpp", "gguf")
_INSTALL = "CMAKE_ARGS=-DGGML_AMX_INT8=OFF pip install llama-cpp-python==0.3.36 gguf"
_OUTER = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_LAYER = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    **{f"self_attn.{p}_proj": f"attn_{p}" for p in "qkv"},
    "self_attn.o_proj": "attn_output",
    **{f"mlp.{p}_proj": f"ffn_{p}" for p in ("gate", "up", "down")},
}


def need_llama() -> None:
    """EngineError that says what to install, unless both packages are there."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise EngineError(f"comparing with llama.cpp needs {', '.join(missing)}, not installed: {_INSTALL}")


def write_gguf(checkpoint: Path, out: Path) -> Path:
    """Write a Llama checkpoint of transformers (config.json, safetensors) as Q4_0; return ``out``."""
    from safetensors import safe_open

    gguf: Any = importlib.import_module("gguf")
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    writer = gguf.GGUFWriter(str(out), "llama")
    for add, key in (
        (writer.add_vocab_size, "vocab_size"),
        (writer.add_context_length, "max_position_embeddings"),
        (writer.add_embedding_length, "hidden_size"),
        (writer.add_feed_forward_length, "intermediate_size"),
        (writer.add_block_count, "num_hidden_layers"),
        (writer.add_head_count, "num_attention_heads"),
        (writer.add_head_count_kv, "num_key_value_heads"),
        (writer.add_rope_dimension_count, "head_dim"),
        (writer.add_key_length, "head_dim"),
        (writer.add_value_length, "head_dim"),
        (writer.add_rope_freq_base, "rope_theta"),
        (writer.add_layer_norm_rms_eps, "rms_norm_eps"),
    ):
        add(config[key])
    writer.add_tokenizer_model("no_vocab")
    q4_0, heads = gguf.GGMLQuantizationType.Q4_0, config["head_dim"]
    for shard in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(str(shard), "numpy") as file:
            for key in file.keys():  # noqa: SIM118 - no dict
                value: F32 = file.get_tensor(key).astype(np.float32)
                name = _name(key)
                if name.endswith(("attn_q.weight", "attn_k.weight")):
                    value = _pairs(value, heads)
                if value.ndim == 1:
                    writer.add_tensor(name, value)
                else:
                    writer.add_tensor(name, gguf.quants.quantize(value, q4_0), raw_dtype=q4_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def _name(key: str) -> str:
    """The GGUF's name of a checkpoint's tensor."""
    if key in _OUTER:
        return _OUTER[key]
    _, _, layer, rest = key.split(".", 3)
    return f"blk.{layer}.{_LAYER[rest.removesuffix('.weight')]}.weight"


def _pairs(value: F32, head_dim: int) -> F32:
    """Rows of q or k in llama.cpp's order: it turns neighbours, and transformers the halves of a head."""
    halves = value.reshape(-1, 2, head_dim // 2, value.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(value.shape)


class LlamaDecoder:
    """One sequence on llama.cpp, with its own defaults but for threads and context."""

    def __init__(self, path: Path, capacity: int, threads: int) -> None:
        """Load the GGUF ``path`` with room for ``capacity`` tokens."""
        need_llama()
        llama: Any = importlib.import_module("llama_cpp")
        numbers = {"n_ctx": capacity, "n_threads": threads, "n_threads_batch": threads}
        try:
            self._model = llama.Llama(model_path=str(path), verbose=False, **numbers)
        except (ValueError, RuntimeError) as error:
            raise EngineError(f"llama.cpp {llama.__version__} cannot run {path}: {error}") from error
        self._vocab: int = self._model.n_vocab()
        self._last_logits: Any = llama.llama_get_logits_ith

    @property
    def logits(self) -> F32:
        """The logits [V] of the last token."""
        found: F32 = np.ctypeslib.as_array(self._last_logits(self._model.ctx, -1), (self._vocab,))
        return found

    def read_ms(self, prompt: list[int]) -> float:
        """Forget what there is, read ``prompt``: milliseconds."""
        self._model.reset()
        watch = Stopwatch()
        self._model.eval(prompt)
        self.logits.argmax()
        return watch.ms

    def decode_ms(self, count: int) -> list[float]:
        """Decode ``count`` tokens: milliseconds of each, the choice of the token included."""
        token = int(self.logits.argmax())

        def step() -> None:
            nonlocal token
            self._model.eval([token])
            token = int(self.logits.argmax())

        return times_of(step, count)
