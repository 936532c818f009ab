"""The tokenizer of the first generation: its vocabulary, its control tokens, its chat template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from qwen_service.engines.qwen1.vocabulary import make_tokenizer, read_ranks

END = "<|endoftext|>"
# In this order behind the vocabulary; 151643 to 151850 in the published one.
CONTROL_TOKENS = (END, "<|im_start|>", "<|im_end|>", *(f"<|extra_{n}|>" for n in range(205)))
# ChatML, which the original builds in code. `cut` parts what it encodes apart: a newline at the
# start of a content never melts with the one before.
CHAT_TEMPLATE = """\
{%- if not messages or messages[0].role != 'system' -%}
{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
{%- endif -%}
{%- for message in messages -%}
{{ '<|im_start|>' + message.role + '\\n' }}{{ cut }}{{ message.content or '' }}
{{- '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|im_start|>assistant\\n' }}
{%- endif -%}
"""


class QWenTokenizer(PreTrainedTokenizerFast):  # type: ignore[misc]
    # tokenizer_config.json names this class, so its name is the original's.
    vocab_files_names = {"vocab_file": "qwen.tiktoken"}  # noqa: RUF012

    def __init__(self, vocab_file: str, **kwargs: Any) -> None:
        self._tokenizer = make_tokenizer(read_ranks(Path(vocab_file)))
        self._tokenizer.add_special_tokens(
            [AddedToken(token, normalized=False, special=True) for token in CONTROL_TOKENS]
        )
        kwargs = {"chat_template": CHAT_TEMPLATE} | kwargs
        kwargs |= {"bos_token": None, "eos_token": END, "pad_token": END, "unk_token": None}
        kwargs |= {"extra_special_tokens": list(CONTROL_TOKENS[1:])}
        super().__init__(vocab_file=vocab_file, **kwargs)

    @classmethod
    def convert_to_native_format(cls, **kwargs: Any) -> dict[str, Any]:
        return kwargs
