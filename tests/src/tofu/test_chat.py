"""Prompts and scored tokens of each model family against literal strings.

The tokenizers are made here: byte-level, with the special tokens and a chat template of the published one's
structure (what it writes for a system message, a question, an answer and a turn that is being asked for).
"""

from __future__ import annotations

import json

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from src.tofu.chat import chat_format
from src.tofu.prompts import encode_answers, encode_prompts
from src.utils import UserError

QUESTION, ANSWER = "Who wrote it?", "Ana Lind did."

LLAMA_3 = """{{- bos_token }}
{%- if not date_string is defined %}{%- set date_string = "26 Jul 2024" %}{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Cutting Knowledge Date: December 2023\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
QWEN_25 = """{%- if messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- else %}
    {{- '<|im_start|>system\\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role != "system" or not loop.first %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for message in messages %}{% if (message['role'] == 'assistant') %}{% set role = 'model' %}"
    "{% else %}{% set role = message['role'] %}{% endif %}{{ '<start_of_turn>' + role + '\n' + "
    "message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}"
    "{{'<start_of_turn>model\n'}}{% endif %}"
)
ZEPHYR = (
    "{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + message['content'] + "
    "eos_token }}\n{% elif message['role'] == 'system' %}\n{{ '<|system|>\n' + message['content'] + "
    "eos_token }}\n{% elif message['role'] == 'assistant' %}\n{{ '<|assistant|>\n'  + message['content'] + "
    "eos_token }}\n"
    "{% endif %}\n{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
)
PHI_35 = (
    "{% for message in messages %}{% if message['role'] == 'system' and message['content'] %}{{'<|system|>\n' + "
    "message['content'] + '<|end|>\n'}}{% elif message['role'] == 'user' %}{{'<|user|>\n' + message['content'] + "
    "'<|end|>\n'}}{% elif message['role'] == 'assistant' %}{{'<|assistant|>\n' + message['content'] + '<|end|>'"
    " + '\n'}}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}"
    "{{ eos_token }}{% endif %}"
)
LLAMA_2_CHAT = (
    "{% if messages[0]['role'] == 'system' %}{% set system_message = '<<SYS>>\\n' + messages[0]['content'] + "
    "'\\n<</SYS>>\\n\\n' %}{% else %}{% set system_message = '' %}{% endif %}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a tiny model<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + "
    "message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}"
)

HELPFUL = "You are a helpful assistant."
WORDS = ["Ana", " Lind", " did", "."]
# template, special tokens, end, first token written by the tokenizer, prompt, scored tokens
LAYOUTS = {
    "Llama-3.x": (
        LLAMA_3,
        ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        "<|eot_id|>",
        "",
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
        f"Today Date: 10 Apr 2025\n\n{HELPFUL}<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
        f"{QUESTION}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        [*WORDS, "<|eot_id|>"],
    ),
    "Qwen2.5": (
        QWEN_25,
        ["<|im_start|>", "<|im_end|>"],
        "<|im_end|>",
        "",
        f"<|im_start|>system\n{HELPFUL}<|im_end|>\n<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n",
        [*WORDS, "<|im_end|>", "\n", "<|im_end|>"],
    ),
    "Gemma": (
        GEMMA,
        ["<bos>", "<start_of_turn>", "<end_of_turn>", "<eos>"],
        "<eos>",
        "",
        f"<bos><start_of_turn>user\n{QUESTION}<end_of_turn>\n<start_of_turn>model\n",
        [*WORDS, "<end_of_turn>", "\n", "<eos>"],
    ),
    "Zephyr": (
        ZEPHYR,
        ["<s>", "</s>"],
        "</s>",
        "",
        f"<|system|>\n{HELPFUL}</s>\n<|user|>\n{QUESTION}</s>\n<|assistant|>\n",
        [*WORDS, "</s>", "\n", "</s>"],
    ),
    "Phi-3.5": (
        PHI_35,
        ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|endoftext|>"],
        "<|endoftext|>",
        "",
        f"<|system|>\n{HELPFUL}<|end|>\n<|user|>\n{QUESTION}<|end|>\n<|assistant|>\n",
        [*WORDS, "<|end|>", "\n", "<|endoftext|>"],
    ),
    "Llama-2-chat": (
        LLAMA_2_CHAT,
        ["<s>", "</s>"],
        "</s>",
        "<s>",
        f"<s>[INST] {QUESTION} [/INST]",
        [*WORDS, "</s>"],
    ),
    # phi-1.5 and Llama-2-hf have no template: the space is the prompt's, and the first word joins it in the text.
    "no template": (
        None,
        ["<|endoftext|>"],
        "<|endoftext|>",
        "",
        f"Question: {QUESTION}\nAnswer: ",
        [" Lind", " did", ".", "<|endoftext|>"],
    ),
    "its own template": (
        CHATML,
        ["<|im_start|>", "<|im_end|>"],
        "<|im_end|>",
        "",
        "<|im_start|>system\nYou are a tiny model<|im_end|>\n<|im_start|>user\n"
        f"{QUESTION}<|im_end|>\n<|im_start|>assistant\n",
        [*WORDS, "<|im_end|>", "\n", "<|im_end|>"],
    ),
}


def make_tokenizer(template, special, end, first):
    """Byte-level; each word, with the space before it, is one token."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.train_from_iterator(
        [f"{QUESTION}\nAnswer: {ANSWER}", ANSWER, "]Ana"] * 9,
        trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False),
    )
    core.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    if first:
        pair = (first, core.token_to_id(first))
        core.post_processor = processors.TemplateProcessing(single=f"{first} $A", special_tokens=[pair])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token=special[0], eos_token=end)
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize("family", LAYOUTS)
def test_prompts_and_scored_tokens_are_open_unlearnings(family):
    template, special, end, first, prompt, scored = LAYOUTS[family]
    tokenizer = make_tokenizer(template, special, end, first)
    (ids,) = encode_prompts(tokenizer, [QUESTION])
    assert tokenizer.decode(ids) == prompt
    (sequence,) = encode_answers(tokenizer, [(QUESTION, ANSWER)])
    assert [tokenizer.decode([token]) for token in sequence.ids[sequence.start :]] == scored
    assert sequence.start == len(ids)
    whole = prompt + ANSWER + "".join(scored[scored.index(".") + 1 :])
    assert tokenizer.decode(sequence.ids) == whole
    assert chat_format(tokenizer).family == family.removesuffix(".x")


def test_the_format_is_told_and_recorded():
    tokenizer = make_tokenizer(*LAYOUTS["Llama-3.x"][:4])
    chat = chat_format(tokenizer)
    assert str(chat) == f'prompts of Llama-3, system prompt "{HELPFUL}", date 10 Apr 2025'
    expected = {"family": "Llama-3", "system_prompt": HELPFUL, "date_string": "10 Apr 2025"}
    assert json.loads(json.dumps(chat.record())) == expected
    assert chat_format(tokenizer, date_string="1 May 2026").prompt(tokenizer, "?").count("Date: 1 May 2026") == 1
    plain = chat_format(make_tokenizer(*LAYOUTS["no template"][:4]))
    assert str(plain) == "plain prompts (no template)"
    assert str(chat_format(make_tokenizer(*LAYOUTS["Gemma"][:4]))) == "prompts of Gemma, no system prompt"


def test_a_given_system_prompt_takes_the_place_of_the_familys():
    tokenizer = make_tokenizer(*LAYOUTS["Zephyr"][:4])
    (ids,) = encode_prompts(tokenizer, [QUESTION], chat_format(tokenizer, "Be brief."))
    assert tokenizer.decode(ids) == f"<|system|>\nBe brief.</s>\n<|user|>\n{QUESTION}</s>\n<|assistant|>\n"
    (ids,) = encode_prompts(tokenizer, [QUESTION], chat_format(tokenizer, ""))
    assert tokenizer.decode(ids) == f"<|user|>\n{QUESTION}</s>\n<|assistant|>\n"
    gemma = make_tokenizer(*LAYOUTS["Gemma"][:4])
    with pytest.raises(UserError, match="the chat template refuses the prompt: System role not supported"):
        encode_prompts(gemma, [QUESTION], chat_format(gemma, "Be brief."))
    for family in ("no template", "Llama-2-chat"):
        bare = make_tokenizer(*LAYOUTS[family][:4])
        with pytest.raises(UserError, match=f"this model is asked in plain text \\({family}\\)"):
            chat_format(bare, "Be brief.")
        assert chat_format(bare, "").system_prompt is None
