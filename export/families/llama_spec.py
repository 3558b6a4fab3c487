"""A model of Llama's layers in a few numbers, of which ``llama_program.py`` makes its program.

Shape letters: D hidden size, V vocabulary, r rank of a delta.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from ...runtime.model.decoder import Stages, stages_of
from ...runtime.model.program import Routing
from ...runtime.model.rotation import Scaling

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class Segment(Struct, frozen=True, forbid_unknown_fields=True):
    """``layers`` physical layers, applied ``repeats`` times in a row.

    ``lora`` maps a projection name to the rank of its per-repeat delta; ``per_repeat_norms`` says that the
    layers' norm weights have a row for each repeat, ``per_repeat_attention`` that q, k, v and o have a matrix for each.
    ``rescaled`` are the projections whose matrix with its delta has another length of rows at each repeat (DoRA).
    ``encoded``: what the last layer gives is multiplied by a vector of each repeat. ``mlp``: the width of the MLPs
    where it is another than the model's.
    """

    layers: int
    repeats: int = 1
    per_repeat_norms: bool = False
    lora: dict[str, int] = {}
    per_repeat_attention: bool = False
    mlp: int | None = None
    rescaled: tuple[str, ...] = ()
    encoded: bool = False


class Spec(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Embedding, segments of Llama layers of which one may be the loop, norm, head; and what differs between depths.

    Canonical names of its tensors, as they follow from the program (all ``weight`` matrices are [out, in]):

    ``embed.weight`` [V, D], ``norm.weight`` [D], ``head.weight`` [V, D] unless ``tied_embedding``, and for
    segment s, physical layer j, prefix ``segments.{s}.layers.{j}.``:
    ``{q,k,v,o,gate,up,down}_proj.weight``, the first four [repeats, out, in] with ``per_repeat_attention``;
    ``attention_norm.weight`` and ``mlp_norm.weight`` (before the attention and the MLP), with ``sandwich_norms`` also
    ``attention_out_norm.weight`` and ``mlp_out_norm.weight`` (on their outputs, before the residual is added), each
    [D] or, with ``per_repeat_norms``, [repeats, D]; with ``lora``: ``{projection}.lora_a`` [repeats, r, in] and
    ``{projection}.lora_b`` [repeats, out, r], the LoRA scale multiplied into ``lora_b``; with ``rescaled``
    ``{projection}.lora_scale`` [repeats, out]; with ``encoded``, of the last layer, ``encoding.weight`` [repeats, D].

    Those of the heads that the host computes are in ``Program``.
    """

    family: str
    segments: tuple[Segment, ...]
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    heads: int
    kv_heads: int
    head_dim: int
    norm_eps: float
    rope_theta: float
    context_length: int
    tied_embedding: bool
    sandwich_norms: bool = False
    loop_norm: bool = False
    """The final norm is applied after every depth, and its output feeds the next one (Ouro)."""
    kv: Literal["per-depth", "shared"] = "per-depth"
    """``shared``: depths ≥ 1 read the K/V that depth 0 made, and only compute queries of their own."""
    rope_scaling: Scaling | None = None
    sliding_window: int | None = None
    """How many tokens attention sees at most, the newest included; None: all."""
    exit_gate: bool = False
    """A head on the state after each depth gives the probability to stop there (Ouro)."""
    routing: Routing | None = None
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()

    @property
    def stages(self) -> Stages:
        """How the segments are split into the host's depth loop and the graphs around it."""
        return stages_of([segment.repeats for segment in self.segments])

    @property
    def depths(self) -> int:
        """R: how often the host applies the block."""
        return self.stages.depths

    @property
    def applied_layers(self) -> int:
        """The number of layers of the same model unrolled."""
        return sum(s.layers * s.repeats for s in self.segments)

    @property
    def window(self) -> int | None:
        """The sliding window in tokens; None where a token sees the whole context."""
        window = self.sliding_window
        return None if window is None or window >= self.context_length else window
