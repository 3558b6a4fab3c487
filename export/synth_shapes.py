"""The named shapes that ``synth`` makes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """Sizes of a checkpoint. ``layers`` are stored layers, or for MoR the layers before sharing.

    ``family`` is "mor", "mobilellm" or "ouro"; ``sharing`` and ``ln_share`` are MoR's.
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

    @property
    def head_dim(self) -> int:
        """The size of a head."""
        return self.hidden_size // self.heads

    @property
    def stored_layers(self) -> list[int]:
        """For each layer written to the checkpoint, the first layer that has its weights.

        Where MoR's L is not divisible by R, its authors keep L rounded down: SmolLM's 30 layers become 1 + 9 ×
        3 + 1 = 29.
        """
        if self.family != "mor":
            return list(range(self.layers))
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
        return len(self.stored_layers) * (1 if self.family == "mor" else self.repeats)


SHAPES = {
    "mor-360m-r3": Shape("mor", 49152, 960, 2560, 15, 5, layers=32, repeats=3),
    "smollm-135m-r3": Shape("mor", 49152, 576, 1536, 9, 3, layers=30, repeats=3),
    "mobilellm-ls-125m": Shape("mobilellm", 32000, 576, 1536, 9, 3, layers=30, repeats=2),
    "ouro-1.4b": Shape(
        "ouro", 49152, 2048, 5632, 16, 16, 24, 4, context=65536, rope_theta=1e6, norm_eps=1e-6, tied=False
    ),
}
