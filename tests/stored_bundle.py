"""Makes the stored bundle of this format, and its logits: .venv/bin/python tests/stored_bundle.py

It is run once for each format, when the format is new. What lies in tests/fixtures/bundles is never made again: a
bundle that somebody exported has to open for as long as its format is read.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file as save

from edgeloop.runtime.bundle.folder import Bundle
from edgeloop.runtime.bundle.manifest import FORMAT
from edgeloop.runtime.decode.sequential import SequentialDecoder
from edgeloop.runtime.engines.backend import Backend
from edgeloop.runtime.engines.reference.engine import ReferenceBackend
from edgeloop.runtime.model.activations import ACTIVATIONS

FOLDER = Path(__file__).parent / "fixtures" / "bundles"
IDS = (3, 1, 4, 1, 5, 9, 2, 6)


def logits(backend: Backend) -> npt.NDArray[np.float32]:
    """Logits [8, 32] of ``IDS``, one token after the other."""
    loop = SequentialDecoder(backend, backend.new_cache(1, len(IDS)))
    return np.concatenate([loop.prompt(np.array([token])).copy() for token in IDS])


def _checkpoint(folder: Path) -> Path:
    """A layer that is run twice, with deltas and norms of each depth."""
    from safetensors.torch import save_file
    from tiny import demo_model

    from edgeloop.apps.demo.model import DemoConfig

    config = DemoConfig(
        vocab_size=32, hidden_size=32, intermediate_size=32, num_attention_heads=2, num_key_value_heads=1,
        head_dim=16, prologue_layers=0, block_layers=1, num_recursions=2, epilogue_layers=0, lora_rank=2,
        max_position_embeddings=16,
    )  # fmt: skip
    folder.mkdir()
    state = demo_model(config).state_dict()
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config.as_json()), encoding="utf-8")
    return folder


def main() -> None:
    """Write format-N/ and format-N.safetensors."""
    from edgeloop.export.pipeline import export_bundle

    folder = FOLDER / f"format-{FORMAT}"
    with tempfile.TemporaryDirectory() as work:
        export_bundle(_checkpoint(Path(work) / "checkpoint"), folder)
    reference = ReferenceBackend.open(Bundle.open(folder))
    as_onnx = reference.with_activations(ACTIVATIONS["MatMulNBits"])
    save({"reference": logits(reference), "onnx": logits(as_onnx)}, folder.with_suffix(".safetensors"))


if __name__ == "__main__":
    main()
