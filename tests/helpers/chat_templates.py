"""The chat templates that tests render, as model files contain them."""

from __future__ import annotations

QWEN3 = """
{%- set last = namespace(at=messages|length - 1) -%}
{%- for m in messages if m.role == 'user' %}{% set last.at = messages.index(m) %}{% endfor -%}
{%- for m in messages -%}
{{- '<|im_start|>' ~ m.role ~ '\n' -}}
{%- set text = m.content.split('</think>')[-1].lstrip('\n')
    if m.role == 'assistant' and '</think>' in m.content else m.content -%}
{{- text ~ '<|im_end|>\n' -}}
{%- endfor -%}
{{- '<|im_start|>assistant\n' -}}
{%- if enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif -%}
"""

# Written for these tests: independent statements of the formats that the published templates make.
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' ~ m.role ~ '\n' ~ m.content ~ '<|im_end|>\n' }}"
    "{% endfor %}{{ '<|im_start|>assistant\n' }}"
)
GEMMA = """
{%- set ns = namespace(lead='', want='user') -%}
{{- bos_token -}}
{%- for m in messages -%}
{%- if loop.first and m.role == 'system' -%}
{%- set ns.lead = m.content ~ '\n\n' -%}
{%- else -%}
{%- if m.role != ns.want %}{{ raise_exception('roles alternate') }}{% endif -%}
{%- set ns.want = 'assistant' if m.role == 'user' else 'user' -%}
{{- '<start_of_turn>' ~ ('model' if m.role == 'assistant' else 'user') ~ '\n' ~ ns.lead -}}
{%- set ns.lead = '' -%}
{{- m.content | trim ~ '<end_of_turn>\n' -}}
{%- endif -%}
{%- endfor -%}
{{- '<start_of_turn>model\n' -}}
"""
