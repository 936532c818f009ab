"""Messages -> token ids by the tokenizer's own chat template, safe from role injection.

Knows no model. A control token written inside a message is cut in two before the template sees
it, and the rendered text is read piece by piece at these cuts: no piece holds it whole.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from typing import Any

from qwen_service.engine import Chat, Refused


class PromptBuilder:
    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        # The plain tokenizer keeps no state, so it may be used from several threads.
        self._backend = tokenizer.backend_tokenizer
        control = [
            token.content for token in tokenizer.added_tokens_decoder.values() if token.special
        ]
        # Matched by lookahead: tokens that overlap are all found, and each loses its first letter.
        self._control = re.compile(f"(?=(?:{'|'.join(map(re.escape, control))}))(.)", re.DOTALL)

    def ids(self, prompt: Chat) -> list[int]:
        # Unguessable, and letters only: templates may quote, escape or trim what they are given.
        cut = secrets.token_hex(16)
        messages = [self._neutral(message, cut) for message in prompt.messages]
        tools = [self._neutral(tool, cut) for tool in prompt.tools]
        texts = self._render(messages, tools).split(cut)
        try:
            pieces = self._backend.encode_batch(texts, add_special_tokens=False)
        except (TypeError, UnicodeError) as error:
            # Half of a surrogate pair, out of a JSON escape.
            raise Refused("the messages hold what is no text", param="messages") from error
        return [token for piece in pieces for token in piece.ids]

    def _neutral(self, value: Any, cut: str) -> Any:
        if isinstance(value, str):
            return self._control.sub(lambda match: match[1] + cut, value)
        if isinstance(value, Mapping):
            return {
                self._neutral(key, cut): self._neutral(item, cut) for key, item in value.items()
            }
        if isinstance(value, list | tuple):
            return [self._neutral(item, cut) for item in value]
        return value

    def _render(self, messages: list[Any], tools: list[Any]) -> str:
        from jinja2 import TemplateError

        try:
            return str(
                self._tokenizer.apply_chat_template(
                    messages, tools=tools or None, add_generation_prompt=True, tokenize=False
                )
            )
        except (TemplateError, TypeError) as error:
            reason = f"the model's chat template cannot render these messages: {error}"
            raise Refused(reason, param="messages") from error
