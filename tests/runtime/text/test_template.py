"""Chat templates of real shapes, wrong ones, and hostile ones."""

from __future__ import annotations

import time

import pytest

from edgeloop.runtime.errors import UsageError
from edgeloop.runtime.text.template import render_chat

TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Is 1 < 2 & 'so'? 你好"},
]
CHATML = """{%- for message in messages %}
    {%- if loop.first and message.role != 'system' %}{{ '<|im_start|>system\\nDefault<|im_end|>\\n' }}{% endif %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] | trim + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
NAMESPACE = """{% set ns = namespace(count=0, system='') %}
{% for m in messages if m.role == 'system' %}{% set ns.system = ns.system ~ m.content %}{% endfor %}
{% for m in messages[1:] %}{% set ns.count = ns.count + 1 %}
{{ bos_token }}[INST] {{ ns.system }} {{ m | tojson }} {{ loop.index }}/{{ loop.length }}{{ eos_token }}
{% endfor %}{{ ns.count }}"""


def test_a_chatml_template():
    assert render_chat(CHATML, TURNS) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nIs 1 < 2 & 'so'? 你好<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert render_chat(CHATML, TURNS[1:], generate=False).startswith(
        "<|im_start|>system\nDefault<|im_end|>\n"
    )


def test_namespaces_filters_and_json():
    assert render_chat(NAMESPACE, TURNS, "<s>", "</s>") == (
        '<s>[INST] Be brief. {"role": "user", "content": "Is 1 < 2 & \'so\'? 你好"} 1/1</s>\n1'
    )


def test_it_renders_what_transformers_renders():
    chat_template_utils = pytest.importorskip("transformers.utils.chat_template_utils")
    for template in (CHATML, NAMESPACE):
        compiled = chat_template_utils._compile_jinja_template(template)
        wanted = compiled.render(
            messages=TURNS, add_generation_prompt=True, bos_token="<s>", eos_token="</s>"
        )
        assert render_chat(template, TURNS, "<s>", "</s>") == wanted


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('no system role') }}", "refuses these messages: no system role"),
        ("{% for %}", "failed: "),
        ("{{ messages.nothing.more }}", "failed: "),
        ("{{ messages[0].content + 1 }}", "failed: TypeError"),
        ("{{ 1 / 0 }}", "failed: ZeroDivisionError"),
        ("{{ ''.__class__.__mro__ }}", "failed: "),
        ("{% include 'x' %}", "failed: "),
        ("{{ messages.append(1) }}", "failed: "),
    ],
)
def test_wrong_templates(template, message):
    with pytest.raises(UsageError, match=message):
        render_chat(template, TURNS)


GROW = "{% set ns = namespace(x=START) %}{% for i in range(60) %}{% set ns.x = STEP %}{% endfor %}{{ OUT }}"


def grow(start, step, out="ns.x"):
    return GROW.replace("START", start).replace("STEP", step).replace("OUT", out)


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) if false %}{% endfor %}{% endfor %}",
        "{% for i in range(99999) %}{% set x = range(99999) | list %}{% endfor %}",
        "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ 'a' * 999999999 }}",
        "{{ 9 ** 9 ** 9 }}",
        "{{ '%999999999d' % 1 }}",
        "{{ 'a'.ljust(999999999) }}",
        "{{ '{:999999999}'.format(1) }}",
        "{{ 'a' | center(999999999) }}",
        grow("'aa'", "ns.x ~ ns.x"),
        grow("'aa'", "ns.x + ns.x"),
        grow("'aa'", "ns.x | replace('a', ns.x)"),
        grow("'aa'", "ns.x.replace('a', ns.x)"),
        grow("'aa'", "ns.x.join([ns.x, ns.x, ns.x])"),
        grow("'aa'", "[ns.x, ns.x] | join"),
        grow("[1]", "[ns.x, ns.x]"),
        grow("[1]", "[ns.x, ns.x]", "ns.x | tojson"),
        grow("[1]", "[ns.x, ns.x]", "ns.x | string | length"),
        grow("[1]", "[ns.x, ns.x]", "'' ~ ns.x"),
        grow("9", "ns.x * ns.x"),
        "x" * 300_000,
    ],
)
def test_hostile_templates_end_soon(template):
    start = time.monotonic()
    with pytest.raises(UsageError):
        render_chat(template, TURNS)
    assert time.monotonic() - start < 10


def test_a_template_cannot_switch_the_checks_off():
    with pytest.raises(UsageError, match="200000 steps"):
        render_chat(
            "{% set _step = 1 %}{% for i in range(99999) %}{% for j in range(99) %}{% endfor %}{% endfor %}",
            TURNS,
        )
