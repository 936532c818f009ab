"""A request for embeddings, and what answers it.

Knows nothing of models.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, Field

from qwen_service.protocol.base import Count, Listed, Request, Words, whole
from qwen_service.protocol.completions import TokenIds

MOST_INPUTS = 2048
Input = Annotated[str, Field(min_length=1), AfterValidator(whole)]


class EmbeddingRequest(Request):
    input: (
        Input
        | TokenIds
        | Annotated[Listed[Input], Field(min_length=1, max_length=MOST_INPUTS)]
        | Annotated[Listed[TokenIds], Field(min_length=1, max_length=MOST_INPUTS)]
    )
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Count | None = None
    user: Words | None = None


class Vector(BaseModel):
    object: Literal["embedding"]
    index: int
    # Numbers, or 32-bit floats, little endian, in base64.
    embedding: list[float] | str


class EmbeddingUsage(BaseModel):
    prompt_tokens: int
    total_tokens: int


class EmbeddingList(BaseModel):
    object: Literal["list"]
    data: list[Vector]
    model: str
    usage: EmbeddingUsage
