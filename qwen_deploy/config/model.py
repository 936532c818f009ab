"""Sections `model` and `weights`: what is served, and how it travels to the hosts."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from qwen_deploy.config.fields import (
    Alias,
    Hours,
    LocalPath,
    Name,
    Positive,
    Rate,
    Section,
    Text,
    Url,
)
from qwen_deploy.sizes import rate_bytes


class Model(Section):
    source: Text = Field(
        "auto",
        description="Where the checkpoint comes from. auto (modelscope or huggingface, whichever "
        "is quicker from the host, the other one when it fails), modelscope, huggingface, git-lfs, "
        "the https:// URL of a mirror, a folder or an archive (tar, tar.gz, tar.zst, zip) on this "
        "machine, or host:/path for one that lies on the hosts. Only safetensors is loaded.",
    )
    revision: Text | None = Field(
        None,
        description="Branch, tag or commit at the hub; its default branch where none is given. "
        "What the hosts hold stays until another one is named or `up --refresh` asks again.",
        examples=["main"],
    )
    name: Name = Field(
        "Qwen/Qwen2.5-7B-Instruct",
        description="Name under which clients ask for the model.",
    )
    aliases: tuple[Alias, ...] = Field(
        ("gpt-3.5-turbo", "Qwen"),
        description="Further names that mean the same model, for clients with a fixed name.",
    )


class Weights(Section):
    connections: Positive = Field(4, description="Files that a host reads at the same time.")
    retry_seconds: Positive = Field(
        600, description="Seconds without a byte from any source after which a host gives up."
    )
    limit_rate: Rate | None = Field(
        None,
        description="Bytes a second that a host reads from a hub or from this machine, by day.",
        examples=["20M"],
    )
    night_rate: Rate | None = Field(
        None, description="The same by night; as by day where none is given.", examples=["100M"]
    )
    night: Hours = Field("22:00-06:00", description="When it is night, in the host's local time.")
    fan_out: Literal["auto", "tree", "none"] = Field(
        "auto",
        description="With several hosts: auto lets the first read the hub and each other one from "
        "the host before it, while that still receives; tree from one of fewer steps; none lets "
        "every host read the hub.",
    )
    fan_out_port: int = Field(
        0, ge=0, lt=65536, description="Port on which hosts read from each other; 0 takes any."
    )
    huggingface_endpoint: Url | None = Field(
        None,
        description="Mirror of huggingface.co; else $HF_ENDPOINT.",
        examples=["https://hf-mirror.com"],
    )
    modelscope_endpoint: Url | None = Field(
        None,
        description="Mirror of www.modelscope.cn; else $MODELSCOPE_ENDPOINT.",
        examples=["https://models.example.com"],
    )
    huggingface_token_file: LocalPath | None = Field(
        None, description="File on this machine with a token.", examples=["./hf-token.txt"]
    )
    modelscope_token_file: LocalPath | None = Field(
        None, description="File on this machine with a token.", examples=["./ms-token.txt"]
    )
    proxy: Url | None = Field(
        None,
        description="HTTP proxy through which hosts reach hubs.",
        examples=["http://proxy.example.com:3128"],
    )
    ca_file: LocalPath | None = Field(
        None,
        description="CA bundle on this machine with which hubs and mirrors are checked.",
        examples=["./ca.pem"],
    )

    @property
    def rates(self) -> tuple[int | None, int | None]:
        """Bytes a second by day and by night; None is no limit."""
        day = rate_bytes(self.limit_rate)
        return day, (rate_bytes(self.night_rate) if self.night_rate else day)
