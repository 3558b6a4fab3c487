"""The named shapes that ``synth`` makes."""

from __future__ import annotations

from dataclasses import dataclass

WRITTEN_OUT = ("mor", "llama", "gemma", "gpt_neox")
"""Families whose checkpoints have each layer as often as it is applied; ``layers`` are those before sharing."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a checkpoint. ``layers``: the loop's stored ones, or of families ``WRITTEN_OUT`` those before sharing.

    ``family`` names who reads it (``families/__init__.py``). ``sharing`` is for those ``WRITTEN_OUT``, ``ln_share`` for
    MoR; ``edges`` are the layers before the loop of "huginn" and "retrofit", and as many after it. ``head_size``: where
    it is not hidden_size / heads.
    """

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    heads: int
    kv_heads: int
    layers: int
    repeats: int
    context: int = 2048
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5
    tied: bool = True
    sharing: str = "middle_cycle"
    ln_share: bool = True
    edges: int = 0
    head_size: int | None = None

    @property
    def head_dim(self) -> int:
        """The size of a head."""
        return self.head_size or self.hidden_size // self.heads

    @property
    def stored_layers(self) -> list[int]:
        """For each layer written to the checkpoint, the first layer that has its weights.

        Where MoR's L is not divisible by R, its authors keep L rounded down: SmolLM's 30 layers become 1 + 9 ×
        3 + 1 = 29.
        """
        if self.family not in WRITTEN_OUT:
            return list(range(self.layers + 2 * self.edges))
        edge = 1 if self.sharing.startswith("middle_") else 0
        shared = (self.layers - 2 * edge) // self.repeats
        if self.sharing.endswith("cycle"):
            middle = [edge + j for _ in range(self.repeats) for j in range(shared)]
        else:
            middle = [edge + j * self.repeats for j in range(shared) for _ in range(self.repeats)]
        return [*range(edge), *middle, *([edge + shared * self.repeats] if edge else [])]

    @property
    def applied_layers(self) -> int:
        """The number of layers of the same model unrolled."""
        if self.family in WRITTEN_OUT:
            return len(self.stored_layers)
        return self.layers * self.repeats + 2 * self.edges


SHAPES = {
    "mor-360m-r3": Shape("mor", 49152, 960, 2560, 15, 5, layers=32, repeats=3),
    "smollm-135m-r3": Shape("mor", 49152, 576, 1536, 9, 3, layers=30, repeats=3),
    "mobilellm-ls-125m": Shape("mobilellm", 32000, 576, 1536, 9, 3, layers=30, repeats=2),
    "ouro-1.4b": Shape(
        "ouro", 49152, 2048, 5632, 16, 16, 24, 4, context=65536, rope_theta=1e6, norm_eps=1e-6, tied=False
    ),
    "ouro-2.6b": Shape(
        "ouro", 49152, 2048, 5632, 16, 16, 48, 4, context=65536, rope_theta=1e6, norm_eps=1e-6, tied=False
    ),
    "nanbeige-4.2-3b": Shape(
        "nanbeige",
        166144,
        3072,
        10752,
        48,
        8,
        22,
        2,
        context=262144,
        rope_theta=7e7,
        tied=False,
        head_size=128,
    ),
    "huginn-3.5b": Shape(
        "huginn", 65536, 5280, 17920, 55, 55, 4, 32, context=4096, rope_theta=5e4, norm_eps=1e-6, edges=2
    ),
    "retrofit-tinyllama-4-8-4": Shape(
        "retrofit", 32000, 2048, 5632, 32, 4, 8, 32, context=2048, tied=False, edges=4
    ),
    "rrt-tinyllama-2x11": Shape("llama", 32000, 2048, 5632, 32, 4, 22, 2, tied=False, sharing="cycle"),
    "rrt-gemma-2b-2x9": Shape(
        "gemma", 256000, 2048, 16384, 8, 1, 18, 2, context=8192, norm_eps=1e-6, sharing="cycle", head_size=256
    ),
    "rrt-pythia-1b-2x8": Shape("gpt_neox", 50304, 2048, 8192, 8, 8, 16, 2, tied=False, sharing="cycle"),
}
