"""Section `service`: the HTTP program, its limits, and who may ask it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from qwen_deploy.config.fields import Address, Gpu, LocalPath, Memory, Origin, Positive, Section


class Service(Section):
    address: Address = Field(
        "0.0.0.0",
        description="Address to listen on. 127.0.0.1 serves the host itself and SSH tunnels only.",
    )
    port: int = Field(8000, gt=0, lt=65536, description="Port to listen on.")
    auth: bool = Field(
        True,
        description="Ask clients for an API key. The first `up` makes one and shows it once; "
        "hosts store hashes.",
    )
    api_key_file: LocalPath | None = Field(
        None,
        description="File on this machine with an API key to accept, instead of one made by `up`.",
        examples=["./api-key.txt"],
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Where the model runs.")
    gpus: tuple[Gpu, ...] = Field(
        (),
        description="UUIDs of the GPUs, or of one MIG instance, that the service may use, as "
        "`nvidia-smi -L` shows them; all where none is named. Several share the layers of a model "
        "that none has room for.",
        examples=[["GPU-8932f937-d72c-4106-c12f-20bd9faed9f6"]],
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Number format of the weights; auto takes the checkpoint's."
    )
    max_batch: Positive = Field(32, description="Requests that generate at the same time.")
    max_queue: Positive = Field(
        128, description="Requests that may wait; one more is answered 429 with Retry-After."
    )
    max_context: Positive | None = Field(
        None, description="Tokens of prompt and answer; at most the model's own.", examples=[8192]
    )
    kv_memory: Memory | None = Field(
        None,
        description="Memory for what running requests keep of their tokens: bytes, or a share of "
        "what is free once the model is loaded; 0.9 of it on GPUs and 0.5 on CPUs by default.",
        examples=["8GiB"],
    )
    threads: Positive | None = Field(
        None, description="CPU threads of the engine; PyTorch decides by default.", examples=[8]
    )
    drain_seconds: Positive = Field(
        30, description="Seconds that running requests get to finish when the unit stops."
    )
    web_ui: bool = Field(
        True,
        description="Serve a chat page at /. Who opens it logs in with an API key, unless auth is "
        "false. It takes memory only once somebody does, and asks no other host for anything.",
    )
    metrics: Literal["open", "key", "off"] = Field(
        "open",
        description="Who may read /metrics: open to everyone, with a key, or off. It tells the "
        "names of keys, how much they ask, and nothing of what is said.",
    )
    log_prompts: bool = Field(
        False,
        description="Write prompts and answers to the journal, up to 2000 characters of each.",
    )
    basic_auth: bool = Field(
        False,
        description="Also take an API key as the password of Basic authentication, as clients of "
        "the original demo send it.",
    )
    cors_origins: tuple[Origin, ...] = Field(
        (),
        description="Origins whose pages may ask from a browser; * stands for all.",
        examples=[["https://chat.example.com"]],
    )
    ready_seconds: Positive = Field(
        1800, description="Seconds a release may take to be ready before it is rolled back."
    )
