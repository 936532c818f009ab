"""Requests for the tokens of a text and the text of tokens, in the shape that vLLM gave them.

Knows nothing of tokenizers.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, Field

from qwen_service.protocol.base import Listed, Strict, Words
from qwen_service.protocol.chat import MOST_TOOLS, Messages, TemplateVariables
from qwen_service.protocol.completions import TokenId
from qwen_service.protocol.tools import ToolField


class TokenizeRequest(Strict):
    """A text as it is, or messages as the chat template writes them."""

    model: str | None = None
    prompt: Words | None = None
    messages: Messages | None = None
    tools: Annotated[Listed[ToolField], Field(max_length=MOST_TOOLS)] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: TemplateVariables | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None


class Tokenized(BaseModel):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizeRequest(Strict):
    model: str | None = None
    tokens: Listed[TokenId]


class Detokenized(BaseModel):
    prompt: str
