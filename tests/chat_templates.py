"""Chat templates that write what published models' own ones write, in words of ours: what tests of turns are held to.

Each is a source and what it sees of the tokenizer. The models are those whose formats these are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

_ALTERNATE = "{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles alternate') }}{% endif %}"
TEMPLATES: dict[str, tuple[str, dict[str, str]]] = {
    # Qwen 1.5, OpenHermes and most others
    "chatml": (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
        {},
    ),
    # Qwen 2.5, SmolLM 2: a system message where there is none
    "chatml with a system message": (
        "{% for m in messages %}{% if loop.first and m.role != 'system' %}"
        "{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{% endif %}"
        "{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
        {},
    ),
    # Llama 3
    "llama 3": (
        "{% for m in messages %}{{ bos_token if loop.first else '' }}"
        "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + m.content | trim + '<|eot_id|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}",
        {"bos_token": "<|begin_of_text|>"},
    ),
    # Llama 3.2: dates in a system message that is always there
    "llama 3.2": (
        "{{ bos_token }}{% set first = messages[0].role == 'system' %}"
        "{% set system = messages[0].content | trim if first else '' %}"
        "{% set rest = messages[1:] if first else messages %}"
        "{{ '<|start_header_id|>system<|end_header_id|>\\n\\nCutting Knowledge Date: December 2023\\nToday Date: ' "
        "+ strftime_now('%d %b %Y') + '\\n\\n' + system + '<|eot_id|>' }}"
        "{% for m in rest %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + m.content | trim "
        "+ '<|eot_id|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}",
        {"bos_token": "<|begin_of_text|>"},
    ),
    # Llama 2: the system message is a part of the first user's
    "llama 2": (
        "{% set first = messages[0].role == 'system' %}{% set rest = messages[1:] if first else messages %}"
        "{% for m in rest %}"
        + _ALTERNATE
        + "{% set said = '<<SYS>>\\n' + messages[0].content + '\\n<</SYS>>\\n\\n' + m.content "
        "if first and loop.first else m.content %}"
        "{{ bos_token + '[INST] ' + said.strip() + ' [/INST]' if m.role == 'user' "
        "else ' ' + said.strip() + ' ' + eos_token }}{% endfor %}",
        {"bos_token": "<s>", "eos_token": "</s>"},
    ),
    # Mistral 7B 0.1
    "mistral": (
        "{{ bos_token }}{% for m in messages %}"
        + _ALTERNATE
        + "{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
        "{% elif m.role == 'assistant' %}{{ m.content + eos_token }}"
        "{% else %}{{ raise_exception('only user and assistant') }}{% endif %}{% endfor %}",
        {"bos_token": "<s>", "eos_token": "</s>"},
    ),
    # Mistral 7B 0.3: the system message is a part of the last user's
    "mistral 0.3": (
        "{% set first = messages[0].role == 'system' %}{% set rest = messages[1:] if first else messages %}"
        "{{ bos_token }}{% for m in rest %}"
        + _ALTERNATE
        + "{% set last = m.role == 'user' and rest[loop.index:] | selectattr('role', 'equalto', 'user') | list "
        "| length == 0 %}"
        "{% if m.role == 'user' %}{{ '[INST] ' + (messages[0].content + '\\n\\n' if first and last else '') "
        "+ m.content + '[/INST]' }}{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}",
        {"bos_token": "<s>", "eos_token": "</s>"},
    ),
    # Gemma 1 and 2
    "gemma": (
        "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{% for m in messages %}"
        + _ALTERNATE
        + "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' + m.content | trim "
        "+ '<end_of_turn>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}",
        {"bos_token": "<bos>"},
    ),
    # Gemma 3
    "gemma 3": (
        "{{ bos_token }}{% set first = messages[0].role == 'system' %}"
        "{% set rest = messages[1:] if first else messages %}{% for m in rest %}"
        + _ALTERNATE
        + "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' }}"
        "{{ messages[0].content + '\\n\\n' if first and loop.first else '' }}"
        "{{ m.content | trim + '<end_of_turn>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}",
        {"bos_token": "<bos>"},
    ),
    # Zephyr, TinyLlama
    "zephyr": (
        "{% for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content + eos_token }}{{ '\\n' }}"
        "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>' }}{{ '\\n' }}{% endif %}{% endfor %}",
        {"eos_token": "</s>"},
    ),
    # Phi 3: an end where no answer is asked for
    "phi 3": (
        "{% for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content + '<|end|>\\n' }}{% endfor %}"
        "{{ '<|assistant|>\\n' if add_generation_prompt else eos_token }}",
        {"eos_token": "<|endoftext|>"},
    ),
    # DeepSeek R1's distillates: what was thought is left out
    "deepseek r1": (
        "{% set first = messages[0].role == 'system' %}{{ bos_token + (messages[0].content if first else '') }}"
        "{% for m in (messages[1:] if first else messages) %}{% if m.role == 'user' %}{{ '<｜User｜>' + m.content }}"
        "{% elif m.role == 'assistant' %}{% set said = m.content.split('</think>')[-1] if '</think>' in m.content "
        "else m.content %}{{ '<｜Assistant｜>' + said + '<｜end▁of▁sentence｜>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\\n' }}{% endif %}",
        {"bos_token": "<｜begin▁of▁sentence｜>"},
    ),
    # Qwen 3: thinking that can be left off, and that earlier turns lose
    "qwen 3": (
        "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' and not "
        "(m.content.startswith('<tool_response>') and m.content.endswith('</tool_response>')) %}"
        "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
        "{% for m in messages %}{% if m.role == 'assistant' %}{% set said = m.content %}{% set thought = '' %}"
        "{% if '</think>' in said %}{% set thought = said.split('</think>')[0].rstrip('\\n').split('<think>')[-1]"
        ".lstrip('\\n') %}{% set said = said.split('</think>')[-1].lstrip('\\n') %}{% endif %}"
        "{{ '<|im_start|>assistant\\n' }}{% if loop.index0 > ns.last and (loop.last or thought) %}"
        "{{ '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' + said.lstrip('\\n') }}"
        "{% else %}{{ said }}{% endif %}{{ '<|im_end|>\\n' }}"
        "{% else %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
        "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
        "{% endif %}",
        {},
    ),
}
REFUSED: dict[str, str] = {
    "contents in capitals": "{% for m in messages %}{{ m.role + ': ' + m.content | upper + '\\n' }}{% endfor %}",
    "how many there were": "{% for m in messages %}{{ loop.index ~ '. ' + m.content + '\\n' }}{% endfor %}",
    "the newest alone": "{{ messages[-1].content }}",
    "the time of day": "{% set f = '%H' %}{{ strftime_now(f) }}{% for m in messages %}{{ m.content }}{% endfor %}",
    "nothing but errors": "{{ raise_exception('no') }}",
}
"""Templates that turns cannot say, by what they do."""


def transformers_tokenizer(special: Mapping[str, str]) -> Any:
    """transformers' tokenizer with these tokens, which renders a template; a skip where there is no transformers."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models

    engine = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=engine, **special)
