"""Random-weight checkpoints of real shapes, in their authors' own formats: to size and time a design first.

The text such a model writes is noise; its sizes, speeds and memory are those of the trained model.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import torch

from ..runtime.errors import ExportError, UsageError
from .bundle.staging import staged
from .synth_neox import NeoxWeights
from .synth_raven import RavenWeights
from .synth_shapes import SHAPES, Shape
from .synth_tokenizer import write_tokenizer
from .synth_weights import SynthWeights

__all__ = ["SHAPES", "Shape", "synthesize", "synthesize_shape"]

logger = logging.getLogger(__name__)

FORMATS: dict[str, type[SynthWeights]] = {
    "huginn": RavenWeights,
    "retrofit": RavenWeights,
    "gpt_neox": NeoxWeights,
}
"""By family: tensors and configs, where they are not Llama's."""
DTYPES = {"float16": torch.float16, "float32": torch.float32}


def synthesize(
    shape_name: str,
    out: Path,
    *,
    seed: int = 0,
    dtype: str = "float16",
    force: bool = False,
    lora_rank: int = 0,
) -> Path:
    """Write a checkpoint of a named shape, with a byte tokenizer, to ``out``; returns ``out``.

    The same arguments give the same weights. ``lora_rank`` adds a LoRA on all linears of MoR shapes' shared
    layers. UsageError: an unknown shape or dtype, a LoRA on another family, ``out`` exists and ``force`` is off
    or it is no checkpoint. ExportError: no room on the disk, no right to write.
    """
    if shape_name not in SHAPES:
        raise UsageError(f"no shape named {shape_name!r}; choose one of {', '.join(SHAPES)}")
    return synthesize_shape(SHAPES[shape_name], out, seed=seed, dtype=dtype, force=force, lora_rank=lora_rank)


def synthesize_shape(
    shape: Shape, out: Path, *, seed: int = 0, dtype: str = "float16", force: bool = False, lora_rank: int = 0
) -> Path:
    """Write a checkpoint of ``shape``, as ``synthesize`` does of a named one."""
    if dtype not in DTYPES:
        raise UsageError(f"dtype is {dtype!r}; wanted {' or '.join(DTYPES)}")
    if lora_rank < 0 or (lora_rank and shape.family != "mor"):
        raise UsageError(
            f"a LoRA of rank {lora_rank} on a {shape.family} shape; LoRA is for MoR shapes, rank ≥ 0"
        )
    out = Path(out)
    _check_free(out, force)
    kind = FORMATS.get(shape.family, SynthWeights)
    weights = kind(shape, torch.Generator().manual_seed(seed), DTYPES[dtype], lora_rank)
    with staged(out, lambda: _check_free(out, force)) as folder:
        free, wanted = shutil.disk_usage(folder).free, weights.bytes_wanted()
        if free < wanted:
            raise ExportError(
                f"{out} needs {wanted >> 20} MB, and the disk has {free >> 20} MB; free some room"
            )
        weights.write(folder)
        write_tokenizer(folder, shape.vocab_size)
    logger.info("wrote %s: %d parameters", out, weights.parameters)
    return out


def _check_free(out: Path, force: bool) -> None:
    """Raise UsageError when ``out`` exists and may not be replaced."""
    if not out.exists() and not out.is_symlink():
        return
    if not force:
        raise UsageError(f"{out} exists: choose another folder or pass --force to replace it")
    if out.is_symlink() or not (out / "config.json").is_file():
        raise UsageError(f"{out} exists and is not a checkpoint: --force replaces checkpoints only")
