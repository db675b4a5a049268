"""Chat templates of model families, and tokenizers with them.

TRL ships the templates of many families. The others are written here from their published
behaviour, as short as their markers allow.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

from tests.fakes.tiny_model import alphabet, bare_tokenizer

MISTRAL = """{%- if messages[0].role == 'system' %}{% set system = messages[0].content %}{% set loop_messages = messages[1:] %}
{%- else %}{% set loop_messages = messages %}{% endif %}
{%- set users = loop_messages | selectattr('role', 'equalto', 'user') | list %}
{{- bos_token }}
{%- for m in loop_messages %}
  {%- if m.role == 'user' %}
    {%- if tools and m == users[-1] %}{{ '[AVAILABLE_TOOLS] ' + (tools | tojson) + '[/AVAILABLE_TOOLS]' }}{% endif %}
    {%- if loop.last and system is defined %}{{ '[INST] ' + system + '\\n\\n' + m.content + '[/INST]' }}
    {%- else %}{{ '[INST] ' + m.content + '[/INST]' }}{% endif %}
  {%- elif m.tool_calls %}
    {{- '[TOOL_CALLS] [' }}
    {%- for c in m.tool_calls %}
      {%- if c.id | length != 9 %}{{ raise_exception('Tool call IDs should have a length of 9!') }}{% endif %}
      {{- (c.function | tojson)[:-1] + ', "id": "' + c.id + '"}' + ('' if loop.last else ', ') }}
    {%- endfor %}
    {{- ']' + eos_token }}
  {%- elif m.role == 'assistant' %}{{ ' ' + m.content + eos_token }}
  {%- elif m.role == 'tool' %}{{ '[TOOL_RESULTS] {"content": ' + m.content + ', "call_id": "' + m.tool_call_id + '"}[/TOOL_RESULTS]' }}
  {%- endif %}
  {%- if m.role == 'assistant' and loop.first %}{{ raise_exception('roles must alternate') }}{% endif %}
{%- endfor %}"""

PHI_4 = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '<|im_sep|>' + m.content + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
)

SMOLLM3 = """{%- set system = messages[0].content if messages[0].role == 'system' else '' %}
{%- set mode = '/no_think' if '/no_think' in system else '/think' %}
{{- '<|im_start|>system\\nToday Date: ' + strftime_now('%d %B %Y') + '\\nReasoning Mode: ' + mode + '\\n' + system + '<|im_end|>\\n' }}
{%- for m in messages if m.role != 'system' %}
  {%- if m.role == 'assistant' and mode == '/no_think' %}{{ '<|im_start|>assistant\\n<think>\\n\\n</think>\\n' + m.content + '<|im_end|>\\n' }}
  {%- else %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' + ('<think>\\n\\n</think>\\n' if mode == '/no_think' else '') }}{% endif %}"""

GRANITE = """{%- if messages[0].role == 'system' %}{% set system = messages[0].content %}{% set loop_messages = messages[1:] %}
{%- else %}{% set loop_messages = messages %}{% set system = "Today's Date: " + strftime_now('%B %d, %Y') + '.\\nYou are Granite.' %}{% endif %}
{{- '<|start_of_role|>system<|end_of_role|>' + system + '<|end_of_text|>\\n' }}
{%- if tools %}{{ '<|start_of_role|>available_tools<|end_of_role|>' + (tools | tojson) + '<|end_of_text|>\\n' }}{% endif %}
{%- for m in loop_messages %}
  {{- '<|start_of_role|>' + (m.role if m.role != 'tool' else 'tool_response') + '<|end_of_role|>' }}
  {%- if m.tool_calls %}{{ '<|tool_call|>[' }}{% for c in m.tool_calls %}{{ (c.function | tojson) + ('' if loop.last else ', ') }}{% endfor %}{{ ']' }}
  {%- else %}{{ m.content }}{% endif %}
  {{- '<|end_of_text|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_of_role|>assistant<|end_of_role|>' }}{% endif %}"""

KIMI = """{%- if messages[0].role != 'system' %}{{ '<|im_system|>system<|im_middle|>You are Kimi.<|im_end|>' }}{% endif %}
{%- for m in messages %}
  {{- '<|im_' + m.role + '|>' + m.role + '<|im_middle|>' + m.content + '<|im_end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_assistant|>assistant<|im_middle|>' }}{% endif %}"""

#: Templates that write the beginning of an answer never, so that the model has to, or always.
NEVER_PROMPTS = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
ALWAYS_PROMPTS = NEVER_PROMPTS + "{{ '<|im_start|>assistant\n' }}"

#: Templates without special tokens around the turns.
VICUNA = (
    "{{ bos_token + (messages[0].content if messages[0].role == 'system' else 'A chat.') + ' ' }}"
    "{% for m in messages %}{% if m.role == 'user' %}{{ 'USER: ' + m.content + ' ' }}"
    "{% elif m.role == 'assistant' %}{{ 'ASSISTANT: ' + m.content + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
ALPACA = (
    "{% for m in messages %}{{ {'user': '### Instruction:\n', 'assistant': '### Response:\n'}.get(m.role, '') }}"
    "{{ m.content + '\n\n' }}{% endfor %}{% if add_generation_prompt %}{{ '### Response:\n' }}{% endif %}"
)
LLAMA_2 = """{%- if messages[0].role == 'system' %}{% set system = '<<SYS>>\\n' + messages[0].content + '\\n<</SYS>>\\n\\n' %}
{%- set loop_messages = messages[1:] %}{% else %}{% set loop_messages = messages %}{% set system = '' %}{% endif %}
{%- for m in loop_messages %}
  {%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}
  {%- if m.role == 'user' %}{{ bos_token + '[INST] ' + (system if loop.first else '') + m.content + ' [/INST]' }}
  {%- else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}
{%- endfor %}"""

WRITTEN_HERE = {
    "llama_2": LLAMA_2,
    "vicuna": VICUNA,
    "alpaca": ALPACA,
    "never_prompts": NEVER_PROMPTS,
    "always_prompts": ALWAYS_PROMPTS,
    "mistral_v0_3": MISTRAL,
    "phi_4": PHI_4,
    "smollm3": SMOLLM3,
    "granite": GRANITE,
    "kimi_k2": KIMI,
}

_MARKS = re.compile(
    r"<[|｜][^<>\s'\"{}]*[|｜]>|</?s>|\[/?[A-Z_]{3,}\]|<(?:start|end)_of_(?:turn|utterance)>|\[gMASK\]|<sop>"
    r"|<(?:turn|channel|tool_call|tool_response|tool)\|>|<\|(?:turn|channel|tool_call|tool_response|tool)>"
)


def trl_templates() -> dict[str, str]:
    """The templates that TRL ships, but not its variants for training."""
    spec = importlib.util.find_spec("trl")
    assert spec is not None
    assert spec.origin is not None
    files = sorted((Path(spec.origin).parent / "chat_templates").glob("*.jinja"))
    return {file.stem: file.read_text() for file in files if not file.stem.endswith("_training")}


def all_templates() -> dict[str, str]:
    return {**trl_templates(), **WRITTEN_HERE}


def tokenizer_with(chat_template: str) -> Any:
    """A tokenizer of bytes, the special tokens of the template, `<bos>` and `<eos>`."""
    marks = sorted({*_MARKS.findall(chat_template), "<|im_assistant|>", "<|im_user|>", "<|im_system|>", "<|im_tool|>"})
    special = ["<bos>", "<eos>", "<pad>"]
    names = {"bos_token": special[0], "eos_token": special[1], "pad_token": special[2]}
    tokenizer = bare_tokenizer([*special, *marks, *alphabet()], **names)
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    tokenizer.chat_template = chat_template
    return tokenizer
