"""Prompts -> token ids by the tokenizer's own chat template, safe from role injection.

Knows no model. A control token written inside a message is cut in two before the template sees
it, and the rendered text is read piece by piece at these cuts: no piece holds it whole.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from qwen_service.engine import Chat, Prompt, Refused, Text, Tokens
from qwen_service.inference.model import ReadPrompt

TURN = "<|im_start|>"
THINK, THOUGHT = "<think>", "</think>"
# Where a template knows no turns of that kind, an open thought is looked for this close to its end.
TAIL_LENGTH = 64
MOST_ERROR_LENGTH = 300
# A text with no more of them for each token of the context is short enough to be read whole, and
# one with more than these is most likely too long: that is found out before it is rendered.
CHARACTERS_A_TOKEN = 2
MANY_CHARACTERS_A_TOKEN = 8
SLICE_LENGTH = 8192
# What a cut through a word may add.
TOKENS_A_CUT = 8


class PromptBuilder:
    def __init__(self, tokenizer: Any, *, most_tokens: int) -> None:
        self._tokenizer = tokenizer
        self._most_tokens = most_tokens
        # The plain tokenizer keeps no state, so it may be used from several threads.
        self._backend = tokenizer.backend_tokenizer
        self._vocabulary = len(tokenizer)
        control = [
            token.content for token in tokenizer.added_tokens_decoder.values() if token.special
        ]
        self._control = _beginnings(control)

    def read(self, prompt: Prompt) -> ReadPrompt:
        if isinstance(prompt, Chat):
            return self._chat(prompt)
        if isinstance(prompt, Text):
            return ReadPrompt(_not_empty(self._ids([prompt.text], "prompt"), "prompt"))
        return ReadPrompt(self._checked(prompt, "prompt"))

    def read_input(self, prompt: Prompt) -> ReadPrompt:
        """A text to be embedded, within the tokens that the tokenizer puts around a whole text."""
        if isinstance(prompt, Tokens):
            return ReadPrompt(self._checked(prompt, "input"))
        if isinstance(prompt, Chat):
            raise Refused("messages cannot be embedded, only texts", param="input")
        ids = self._ids([prompt.text], "input", add_special_tokens=True)
        return ReadPrompt(_not_empty(ids, "input"))

    def ids(self, prompt: Chat) -> list[int]:
        return list(self._chat(prompt).tokens)

    def _chat(self, prompt: Chat) -> ReadPrompt:
        # Unguessable, and letters only: templates may quote, escape or trim what they are given.
        cut = secrets.token_hex(16)
        self._require_short(_surely_rendered(prompt), "messages", MANY_CHARACTERS_A_TOKEN)
        text = self._render(prompt, cut)
        ids = _not_empty(self._ids(text.split(cut), "messages"), "messages")
        return ReadPrompt(ids, _opened(text))

    def _ids(
        self, texts: Sequence[str], param: str, *, add_special_tokens: bool = False
    ) -> list[int]:
        try:
            self._require_short(texts, param)
            pieces = self._backend.encode_batch(texts, add_special_tokens=add_special_tokens)
        except (TypeError, UnicodeError) as error:
            # Half of a surrogate pair, out of a JSON escape.
            raise Refused(f"the {param} hold what is no text", param=param) from error
        return [token for piece in pieces for token in piece.ids]

    def _require_short(
        self, texts: Sequence[str], param: str, characters_a_token: int = CHARACTERS_A_TOKEN
    ) -> None:
        """A megabyte without a blank takes the tokenizer half a minute: it is read in slices, and
        no further than the context goes."""
        if sum(map(len, texts)) <= characters_a_token * self._most_tokens:
            return
        tokens = 0
        for text in texts:
            for start in range(0, len(text), SLICE_LENGTH):
                piece = text[start : start + SLICE_LENGTH]
                encoding = self._backend.encode(piece, add_special_tokens=False)
                tokens += max(1, len(encoding.ids) - TOKENS_A_CUT)
                if tokens > self._most_tokens:
                    raise Refused(
                        f"This model's maximum context length is {self._most_tokens} tokens. "
                        f"However, there are more in the {param}. Please reduce the length.",
                        param=param,
                        code="context_length_exceeded",
                    )

    def _checked(self, prompt: Tokens, param: str) -> Sequence[int]:
        for token in prompt.ids:
            if not 0 <= token < self._vocabulary:
                raise Refused(
                    f"the {param} holds the token {token}, "
                    f"the vocabulary ends at {self._vocabulary - 1}",
                    param=param,
                )
        return _not_empty(prompt.ids, param)

    def _neutral(self, value: Any, cut: str) -> Any:
        if isinstance(value, str):
            return self._control.sub(lambda match: match[0] + cut, value)
        if isinstance(value, Mapping):
            return {
                self._neutral(key, cut): self._neutral(item, cut) for key, item in value.items()
            }
        if isinstance(value, list | tuple):
            return [self._neutral(item, cut) for item in value]
        return value

    def _render(self, prompt: Chat, cut: str) -> str:
        from jinja2 import TemplateError

        if not self._tokenizer.chat_template:
            raise Refused(
                "this model has no chat template, it completes texts only",
                param="messages",
                code="no_chat_template",
            )
        # Their names are the template's, and no text of theirs may speak with control tokens.
        variables = {
            name: self._neutral(value, cut)
            for name, value in prompt.variables.items()
            if name not in OWN_VARIABLES
        }
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    [self._neutral(message, cut) for message in prompt.messages],
                    tools=[self._neutral(tool, cut) for tool in prompt.tools] or None,
                    add_generation_prompt=not prompt.continues,
                    continue_final_message=prompt.continues,
                    tokenize=False,
                    # For the first generation's template, which parts more than control tokens.
                    cut=cut,
                    **variables,
                )
            )
        except (TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
            # Some go on with all that was rendered.
            cause = str(error).replace(cut, "").partition("\n")[0][:MOST_ERROR_LENGTH]
            reason = f"the model's chat template cannot render these messages: {cause}"
            raise Refused(reason, param="messages") from error


# What this module itself hands to the template, or transformers takes for its own options.
OWN_VARIABLES = frozenset(
    (
        *("conversation", "messages", "tools", "documents", "chat_template", "cut"),
        *("add_generation_prompt", "continue_final_message", "tokenize", "padding", "truncation"),
        *("sanitize_control_tokens", "max_length", "return_tensors"),
        *("return_dict", "return_assistant_tokens_mask"),
        *("tokenizer_kwargs", "processor_kwargs", "template_kwargs"),
    )
)


def _beginnings(tokens: Sequence[str]) -> re.Pattern[str]:
    """The first letter of each, also where they overlap; the rest is only looked at."""
    rests: dict[str, list[str]] = {}
    for token in tokens:
        rests.setdefault(token[0], []).append(re.escape(token[1:]))
    return re.compile(
        "|".join(f"{re.escape(first)}(?={'|'.join(rest)})" for first, rest in rests.items())
        # A vocabulary may have none.
        or "(?!)"
    )


def _surely_rendered(prompt: Chat) -> list[str]:
    """Templates drop thoughts of earlier answers, and blanks around a text."""
    said = (message.get("content") for message in prompt.messages)
    return [text.rpartition(THOUGHT)[2].strip() for text in said if isinstance(text, str)]


def _opened(text: str) -> str:
    """Control tokens inside messages are cut, so the last turn is where the model goes on."""
    turn = text.rfind(TURN)
    tail = text[turn:] if turn >= 0 else text[-TAIL_LENGTH:]
    return THINK if tail.rfind(THINK) > tail.rfind(THOUGHT) else ""


def _not_empty(ids: Sequence[int], param: str) -> Sequence[int]:
    if not ids:
        raise Refused(f"the {param} is empty", param=param)
    return ids
