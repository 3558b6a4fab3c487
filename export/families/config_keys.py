"""The keys that a Llama-like config.json may have: a list of known ones, and an error or a warning for all others.

A key that changes what the model computes and is not understood must never be ignored: the export would be silently
wrong.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Collection, Mapping
from typing import Any

from ...runtime.errors import CheckpointError
from ...runtime.wording import shown

logger = logging.getLogger(__name__)

OFF: tuple[Any, ...] = (None, False)

ONLY: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish"),
    "hidden_activation": (None, "silu", "swish"),
    "attention_bias": OFF,
    "mlp_bias": OFF,
    "qkv_bias": OFF,
    "use_bias": OFF,
    "partial_rotary_factor": (None, 1.0),
    "quantization_config": (None,),
    "quantization": (None,),
    "is_encoder_decoder": OFF,
    "add_cross_attention": OFF,
    "rope_interleaved": OFF,
    "pruned_heads": (None, {}),
    "per_layer_config": (None, {}),
}
"""Keys that change the computation, and the values that are computed here."""

WINDOW = ("sliding_window", "use_sliding_window", "max_window_layers", "layer_types")
"""Keys that say which layers attend to the last tokens only; ``llama_config`` reads them together."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


READ = _words("""
    architectures bos_token_id eos_token_id head_dim hidden_size intermediate_size max_position_embeddings model_type
    num_attention_heads num_hidden_layers num_key_value_heads rms_norm_eps rope_parameters rope_scaling rope_theta
    tie_word_embeddings vocab_size
""").union(WINDOW)
"""Keys that ``llama_config`` reads, for every family of Llama's layers."""

HARMLESS = _words("""
    _attn_implementation _attn_implementation_autoset _commit_hash _from_model_config _name_or_path attn_implementation
    dtype torch_dtype transformers_version transformers.js_config language license name_or_path trust_remote_code
    unsloth_fixed unsloth_version use_flash_attn use_flash_attn_2 _flash_attn_2_enabled is_llama_config

    attention_dropout attention_probs_dropout_prob attn_pdrop classifier_dropout dropout embd_pdrop hidden_dropout
    hidden_dropout_prob resid_pdrop gradient_checkpointing initializer_factor initializer_range init_std
    neftune_noise_alpha pretraining_tp use_cache

    chunk_size_feed_forward cross_attention_hidden_size finetuning_task id2label is_decoder label2id model_max_length
    max_sequence_length num_labels output_attentions output_hidden_states prefix problem_type return_dict
    task_specific_params tf_legacy_loss tie_encoder_decoder tokenizer_class torchscript use_bfloat16

    bos_token decoder_start_token_id eos_token pad_token pad_token_id sep_token_id unk_token unk_token_id

    assistant_confidence_threshold assistant_early_exit assistant_ensemble_weight assistant_lookbehind bad_words_ids
    begin_suppress_tokens cache_config cache_implementation compile_config constraints continuous_batching_config
    disable_compile diversity_penalty do_sample dola_layers early_stopping encoder_no_repeat_ngram_size
    encoder_repetition_penalty epsilon_cutoff eta_cutoff exponential_decay_length_penalty force_words_ids
    forced_bos_token_id forced_eos_token_id guidance_scale is_assistant length_penalty low_memory max_cache_len
    max_length max_matching_ngram_size max_new_tokens max_time min_length min_new_tokens min_p no_repeat_ngram_size
    num_assistant_tokens num_assistant_tokens_schedule num_beam_groups num_beams num_return_sequences output_logits
    output_scores penalty_alpha prefill_chunk_size prompt_lookup_num_tokens remove_invalid_values renormalize_logits
    repetition_penalty return_dict_in_generate sequence_bias speculation_type stop_strings suppress_tokens
    target_lookbehind temperature token_healing top_h top_k top_p typical_p use_mtp watermarking_config
""")
"""Keys that do not change the logits: transformers' bookkeeping, training only, tokens' names, how text is
generated."""

TRAINING = _words("""
    WANDB_MODE wandb wandb_entity wandb_mode wandb_project wandb_run_id wandb_run_name wandb_watch tensorboard
    tensorboard_dir name seed output_dir resume_from_checkpoint resume_step evaluation stop_steps save_steps
    save_interval save_total_limit fixed_save_steps logging_steps

    dataset weights tokenizer max_length add_bos_token global_shuffling local_shuffling dataloader_num_workers
    total_batch_size per_device_train_batch_size gradient_accumulation_steps batch_size_rampup_steps

    model model_args model_config model_name_or_path attn_implementation use_pretrained_weights precision deepspeed
    gradient_checkpointing optimizer learning_rate lr_scheduler_type lr_scheduler_kwargs adam_beta1 adam_beta2
    weight_decay max_grad_norm num_train_steps num_warmup_steps
""")
"""Settings of the MoR authors' conf.yaml that say how the model was trained, not what it computes."""

CHANGES = re.compile(
    "loop|recur|shar|depth|exit|mor|ut_steps|double|multiplier|scal|expert|moe|window|alibi|parallel|n_gram|hyper_conn"
    "|router|dora|lora|norm|clip|cap|qk|kv|q_|k_|v_|rope|rotary|position|pos_|attn|attention|act|mlp|ffn|bias|resid|emb"
    "|logit|layer|head|hidden|rank|mamba|ssm|conv|gat(e|ing)|temperature|sink|chunk|sparse|skip|mup|block|quant|mask"
    "|interleave|_dim|_size|num_|alpha|beta|factor|mix|fus"
)
"""An unknown key with one of these in its name may change the computation: it is refused."""


def check_keys(
    config: Mapping[str, Any],
    understood: Collection[str],
    where: str,
    read: Collection[str] = READ,
    only: Mapping[str, tuple[Any, ...]] = ONLY,
) -> None:
    """Raise CheckpointError for a key that may change the computation and is not read; warn of others not known.

    ``understood`` are keys that the family itself reads, ``read`` those that its sizes come from, ``only`` those
    that may have some values. A key that is null or false changes nothing.
    """
    strange = []
    for key, value in config.items():
        if key in understood or key in read:
            continue
        if key in only:
            if value not in only[key]:
                wanted = [json.dumps(known) for known in only[key]]
                raise CheckpointError(
                    f"{where}: {key} is {shown(value)}, which is not supported; wanted {' or '.join(wanted)}, or no "
                    "such key"
                )
        elif key in HARMLESS or value is None or value is False:
            continue
        elif CHANGES.search(key.lower()):
            raise CheckpointError(
                f"{where}: {key} is {shown(value)}, and this family does not know the key; "
                "a key that may change the computation is never ignored"
            )
        else:
            strange.append(key)
    warn_of(strange, where)


def warn_of(strange: Collection[str], where: str) -> None:
    """Log a warning that lists unknown keys, if there are any."""
    if strange:
        named = ", ".join(f"{key!r:.60}" for key in sorted(strange)[:10]) + (
            " …" if len(strange) > 10 else ""
        )
        logger.warning("%s has keys that edgeloop does not know and takes no notice of: %s", where, named)
