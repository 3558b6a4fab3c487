"""From a plan of runs to a Reading: ties, shapes and dtypes are checked, loaders made, nothing is loaded."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ..family import Reading
from .llama_config import LlamaConfig
from .llama_names import ATTENTION, SANDWICH_NORMS, LlamaNames
from .llama_program import program_of
from .llama_spec import Segment, Spec
from .lora import Scale
from .reader import Reader, Source
from .ties import TiedRun


def read_layers(
    names: LlamaNames,
    config: LlamaConfig,
    plan: Sequence[TiedRun],
    family: str,
    *,
    scale: Scale | None = None,
    share_embedding: bool = False,
    loop_norm: bool = False,
    read: Collection[str] = (),
) -> Reading:
    """Return the Reading of a plan: ties, shapes and dtypes checked from headers and hashes, no tensor loaded.

    CheckpointError names two tensors that should be tied, a tensor that is missing or of a wrong shape, one
    inside a layer that nothing reads (it would change what is computed), and a LoRA without a known scale. ``read``
    are names that the family has read itself.
    """
    c = config
    reader = _LlamaReader(names, config, scale)
    reader.used.update(read)
    segments = tuple(reader.segment(i, run) for i, run in enumerate(plan))
    reader.plain("embed.weight", names.embed, (c.vocab_size, c.hidden_size))
    reader.plain("norm.weight", names.norm, (c.hidden_size,))
    tied = reader.head_is_embedding(names.head, c.tie_word_embeddings, share_embedding)
    if not tied:
        reader.plain("head.weight", names.head, (c.vocab_size, c.hidden_size))
    reader.refuse_leftovers("plain Llama layers (linears without bias, RMSNorms, LoRA)")
    spec = Spec(
        family=family,
        segments=segments,
        vocab_size=c.vocab_size,
        hidden_size=c.hidden_size,
        intermediate_size=c.intermediate_size,
        heads=c.heads,
        kv_heads=c.kv_heads,
        head_dim=c.head_dim,
        norm_eps=c.norm_eps,
        rope_theta=c.rotation.theta,
        rope_scaling=c.rotation.scaling,
        context_length=c.context_length,
        tied_embedding=tied,
        sandwich_norms=names.norms is SANDWICH_NORMS,
        loop_norm=loop_norm,
        sliding_window=c.sliding_window,
        bos_token_id=c.bos_token_id,
        eos_token_ids=c.eos_token_ids,
    )
    return Reading(program_of(spec), reader.tensors, frozenset(reader.used))


class _LlamaReader(Reader):
    """Reads segment by segment."""

    names: LlamaNames

    def __init__(self, names: LlamaNames, config: LlamaConfig, scale: Scale | None) -> None:
        super().__init__(names, scale)
        d, q, kv = config.hidden_size, config.heads * config.head_dim, config.kv_heads * config.head_dim
        f = config.intermediate_size
        self.width = d
        self.shapes = {"q_proj": (q, d), "k_proj": (kv, d), "v_proj": (kv, d), "o_proj": (d, q)}
        self.shapes |= {"gate_proj": (f, d), "up_proj": (f, d), "down_proj": (d, f)}

    def segment(self, number: int, run: TiedRun) -> Segment:
        """Add the tensors of a run and return its segment."""
        prefix = f"segments.{number}.layers"
        lora: dict[str, int] = {}
        rescaled = list[str]()
        own_attention = run.own_attention and self.attention_differs(run)
        for projection, shape in self.shapes.items():
            groups = [[self.names.linear(layer, projection) for layer in applied] for applied in run.applied]
            delta = self.delta_of(groups)
            for j, group in enumerate(groups):
                stem = f"{prefix}.{j}.{projection}"
                if own_attention and projection in ATTENTION:
                    self.stacked(f"{stem}.weight", group, shape, merged=delta is None)
                else:
                    self.tied(group, shape)
                    self.plain(f"{stem}.weight", group[0], shape, merged=delta is None)
                if delta is not None:
                    self.delta(stem, [Source(name) for name in group], shape, delta)
            if delta is not None:
                lora[projection] = delta.rank
                rescaled += [projection] * delta.rescaled
        per_repeat = self.norms_differ(run)
        repeats = len(run.applied[0])
        for j, applied in enumerate(run.applied):
            for norm in self.names.norms:
                rows = [self.names.norm_of(layer, norm) for layer in applied]
                canonical = f"{prefix}.{j}.{norm}.weight"
                if per_repeat:
                    self.stacked(canonical, rows, (self.width,))
                else:
                    self.plain(canonical, rows[0], (self.width,))
        encoded = self.encoded(prefix, run)
        return Segment(
            len(run.applied),
            repeats,
            per_repeat,
            lora,
            own_attention,
            rescaled=tuple(rescaled),
            encoded=encoded,
        )

    def encoded(self, prefix: str, run: TiedRun) -> bool:
        """Add the vectors that multiply what the run's last layer gives, a depth each, where it has them."""
        rows = [name for layer in run.applied[-1] if (name := self.names.encoding(layer))]
        if not rows:
            return False
        self.stacked(f"{prefix}.{len(run.applied) - 1}.encoding.weight", rows, (self.width,))
        return True

    def attention_differs(self, run: TiedRun) -> bool:
        """Return whether any layer of the run has another q, k, v or o at another depth."""
        return self.differ(
            ([self.names.linear(layer, projection) for layer in applied], self.shapes[projection])
            for applied in run.applied
            for projection in ATTENTION
        )

    def norms_differ(self, run: TiedRun) -> bool:
        """Return whether the norms of the run differ between depths."""
        groups = [
            [self.names.norm_of(layer, norm) for layer in applied]
            for applied in run.applied
            for norm in self.names.norms
        ]
        if run.per_repeat_norms is False:
            for group in groups:
                self.tied(group, (self.width,))
        differ = self.differ((group, (self.width,)) for group in groups)
        return len(run.applied[0]) > 1 and (differ or bool(run.per_repeat_norms))
