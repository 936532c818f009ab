"""The fields by which a caller says how tokens are to be chosen.

Knows neither messages nor prompts.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from qwen_service.protocol.base import (
    Count,
    Listed,
    Number,
    Request,
    Seed,
    StreamOptions,
    Words,
    whole,
    wrong,
)

Stop = Annotated[str, Field(min_length=1, max_length=1024), AfterValidator(whole)]
TokenId = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]
Bias = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]
MOST_BIASES = 1024


class SamplingFields(Request):
    max_tokens: Count | None = None
    temperature: Number | None = Field(None, ge=0, le=2)
    top_p: Number | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=2**31 - 1)
    min_p: Number | None = Field(None, ge=0, le=1)
    repetition_penalty: Number | None = Field(None, gt=0, le=10)
    presence_penalty: Number | None = Field(None, ge=-2, le=2)
    frequency_penalty: Number | None = Field(None, ge=-2, le=2)
    logit_bias: dict[TokenId, Bias] | None = Field(None, max_length=MOST_BIASES)
    stop: Stop | Listed[Stop] | None = None
    seed: Seed | None = None
    n: Count | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: Words | None = None

    def with_usage(self) -> bool:
        if self.stream_options is not None and not self.stream:
            raise wrong("stream_options", "should be given with stream only")
        return bool(self.stream_options and self.stream_options.include_usage)
