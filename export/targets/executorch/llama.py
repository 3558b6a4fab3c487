"""The same model unrolled, by ExecuTorch's own LLM exporter: bundles are compared with it.

The exporter knows no loop: a recursive model becomes R times its layers, deltas merged, in the format of its Llama.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch

from ....runtime.errors import ExportError
from ...families.llama_spec import Spec
from ...family import Reading
from ...unrolled import plain_llama, unroll

EXPORTER = "executorch's own exporter"
MODULE = "executorch.extension.llm.export.export_llm"
CHECKPOINT, PARAMS, CONFIG, PROGRAM = "consolidated.pth", "params.json", "export.yaml", "llama.pte"

_OUTER = {"embed": "tok_embeddings", "norm": "norm", "head": "output"}
_LAYER = {
    "attention_norm": "attention_norm",
    "mlp_norm": "ffn_norm",
    **{f"{p}_proj": f"attention.w{p}" for p in "qkvo"},
    "gate_proj": "feed_forward.w1",
    "down_proj": "feed_forward.w2",
    "up_proj": "feed_forward.w3",
}


def write_llama_checkpoint(reading: Reading, folder: Path) -> None:
    """Write consolidated.pth and params.json of the unrolled model, as the exporter reads them."""
    spec = plain_llama(reading.program, EXPORTER)
    tensors = {llama_name(name): load().float() for name, load in unroll(reading).tensors.items()}
    tensors.setdefault("output.weight", tensors["tok_embeddings.weight"])
    torch.save(tensors, folder / CHECKPOINT)
    (folder / PARAMS).write_text(json.dumps(llama_params(spec), indent=1), encoding="utf-8")


def llama_name(name: str) -> str:
    """Return the exporter's name of a canonical tensor of an unrolled model."""
    if not name.startswith("layers."):
        stem, _, side = name.partition(".")
        return f"{_OUTER[stem]}.{side}"
    _, layer, part, side = name.split(".")
    return f"layers.{layer}.{_LAYER[part]}.{side}"


def llama_params(spec: Spec) -> dict[str, object]:
    """Return params.json: the fields of the exporter's ModelArgs."""
    return {
        "dim": spec.hidden_size,
        "n_layers": spec.applied_layers,
        "n_heads": spec.heads,
        "n_kv_heads": spec.kv_heads,
        "head_dim": spec.head_dim,
        "hidden_dim": spec.intermediate_size,
        "vocab_size": spec.vocab_size,
        "norm_eps": spec.norm_eps,
        "rope_theta": spec.rope_theta,
        "use_hf_rope": True,  # halves of a head are turned, not neighbours
    }


def llama_config(folder: Path, spec: Spec, group_size: int, context: int) -> dict[str, object]:
    """Return the exporter's options as its documentation recommends them: 8da4w, int4 embedding, attention with a KV
    cache."""
    ids = {"get_bos_id": spec.bos_token_id or 0, "get_eos_ids": list(spec.eos_token_ids)}
    return {
        "base": {
            "model_class": "llama3",
            "checkpoint": str(folder / CHECKPOINT),
            "params": str(folder / PARAMS),
            "metadata": json.dumps(ids),
        },
        "model": {"use_kv_cache": True, "use_sdpa_with_kv_cache": True, "enable_dynamic_shape": True},
        "quantization": {
            "qmode": "8da4w",
            "group_size": group_size,
            "embedding_quantize": f"4,{group_size}",
            "use_hqq": False,  # minutes, for the same sizes and times
        },
        "export": {
            "max_seq_length": context,
            "max_context_length": context,
            "output_dir": str(folder),
            "output_name": PROGRAM,
        },
        "backend": {"xnnpack": {"enabled": True, "extended_ops": True}},
    }


def export_llama(reading: Reading, folder: Path, group_size: int, context: int) -> Path:
    """Run the exporter and return its .pte in ``folder``; ExportError with its last words when it fails."""
    folder = folder.resolve()  # it runs there, and its options are paths
    write_llama_checkpoint(reading, folder)
    config = llama_config(folder, plain_llama(reading.program, EXPORTER), group_size, context)
    (folder / CONFIG).write_text(json.dumps(config, indent=1), encoding="utf-8")  # JSON is YAML too
    command = [sys.executable, "-m", MODULE, "--config", str(folder / CONFIG)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    (folder / CHECKPOINT).unlink()  # four bytes for each weight of each depth
    made = folder / PROGRAM
    if done.returncode or not made.is_file():
        lines = [line for line in done.stderr.splitlines() if line.strip() and "HYDRA" not in line]
        raise ExportError(f"executorch's own exporter failed: {lines[-1] if lines else 'no message'}")
    return made
